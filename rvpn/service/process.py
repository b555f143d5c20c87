"""
A node as a process of the operating system: signals come in, an exit code goes out.

    SIGHUP -> the policy is read again
    SIGTERM, SIGINT -> the reactor stops, and before it the services, in order

Twisted's own handlers of the latter two would have twistd end itself by that signal in the end, so that a
node that took its leave and left nothing behind looks like one that was killed. With ours it ends with exit
code 0, and with 1 if the node could not go on by itself.
"""

import atexit
import os
import signal
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from rvpn.errors import LocalError
from rvpn.service.tunnel import TunnelService


class Process(Service):
    """See the module."""

    _log = Logger()

    def __init__(self, node: TunnelService[Any], reactor: Any) -> None:
        self._node = node
        self._reactor = reactor

    def startService(self) -> None:
        """Take the signals, the reactor's own ones once it has set its handlers."""
        super().startService()
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))
        self._reactor.callWhenRunning(self._take_stop_signals)

    def stopService(self) -> None:
        """Ignore further signals, for the services are stopping, and settle the exit code."""
        super().stopService()
        for number in signal.SIGHUP, signal.SIGTERM, signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)
        if self._node.failed:
            atexit.register(os._exit, 1)  # twistd itself knows no failure after the start

    def _take_stop_signals(self) -> None:
        for number in signal.SIGTERM, signal.SIGINT:
            signal.signal(number, lambda number, _: self._reactor.callFromThread(self._stop, number))

    def _stop(self, number: int) -> None:
        self._log.info("received {signal}", signal=signal.Signals(number).name)
        with suppress(ReactorNotRunning):  # a second signal, before the first took effect
            self._reactor.stop()

    def _reload(self) -> None:
        with suppress(LocalError):  # the node has logged it
            self._node.reload()
