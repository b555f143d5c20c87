"""
Twisted's epoll reactor, without a logging context around each packet.

Twisted puts the name of a descriptor into a context while it works, for the log, and looks at the descriptor
before and after: a dozen calls in Python, a fifth of what an idle tunnel adds to a ping. A `PacketReader`
does without, and everything else is treated as ever. Who wants another reactor has it with `twistd -r`.
"""

import sys
from typing import Any

from twisted.internet.epollreactor import EPOLLIN, EPollReactor
from twisted.internet.main import installReactor
from twisted.python import log


class PacketReader:
    """A descriptor whose `doRead` says itself what it logs for, returns nothing, and raises nothing."""

    def doRead(self) -> None:
        """Read."""


class PacketReactor(EPollReactor):
    """See the module."""

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events and deal with them; as that of the base, but for packets."""
        events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        for descriptor, event in events:
            selectable = self._selectables.get(descriptor)
            if event == EPOLLIN and isinstance(selectable, PacketReader):
                selectable.doRead()
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)

    doIteration = doPoll


def installed() -> Any:
    """Return the reactor of this process: the one that was chosen, else a `PacketReactor`."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(PacketReactor())
    return sys.modules["twisted.internet.reactor"]
