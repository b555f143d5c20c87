"""
Links, addresses and routes of the host as they change: what makes a node look again (R14, R15, X6, DESIGN 3).

    kernel -> rtnetlink socket -> NetworkWatch.doRead -> NetworkState
        -> linkChanged, addressChanged, routeChanged

All that waits in the socket, up to `READS_PER_WAKEUP` notifications, becomes one report for each link and
one for addresses. Routes are reported `SETTLING` seconds later, with all that changed meanwhile: who hears
of them looks the way up anew, which is not to be done for each message of a routing daemon, nor before the
route follows the address. If the socket overflows, notifications are lost: then, as at the start, everything
is reported as if it had changed.

How soon: an interface that is set up or down is reported at once, and so is a lost carrier, unless the
kernel reported another change of a carrier less than a second ago. It puts such reports together, so a link
that goes down, up and down again may stay unnoticed for a second.
"""

import socket
from collections.abc import Collection
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rvpn.errors import LocalError
from rvpn.net.host import TABLE
from rvpn.net.netlink import Netlink
from rvpn.net.notifications import Changes, NetworkState

READS_PER_WAKEUP = 256
#: Seconds from the first sign of another route to the report.
SETTLING = 0.1

#: Bytes: the most that the kernel puts into one notification is less than half of that.
_BUFFER = 1 << 16
#: More notifications than a socket's receive buffer holds.
_MOST_WAITING = 4096
#: RTMGRP_ of linux/rtnetlink.h: links, and addresses and routes of IPv4 and IPv6.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

_log = Logger()


class NetworkReceiver(Protocol):
    """Who hears of changes. Exceptions are logged and end nothing."""

    def linkChanged(self, name: str, up: bool) -> None:
        """
        Hear that an interface is now up (set up, with a carrier), or down or gone.

        At the start, where notifications were lost, and if it has another MTU, it may have been so before.
        """

    def addressChanged(self) -> None:
        """Hear that the host got or lost an address."""

    def routeChanged(self) -> None:
        """
        Hear that routes may lead elsewhere, or carry packets of another length.

        Follows every change of a link or an address.
        """


@implementer(IReadDescriptor)
class NetworkWatch:
    """
    Watches the network namespace in which it was made; changes wait from then on, and are told after
    `startReading`.

    `reactor` takes descriptors and delayed calls, `netlink` is a socket in the same namespace. Links
    `without` (by index), our own TUN device, are not reported, nor are our own routes. Raises `LocalError` if
    the kernel refuses.
    """

    def __init__(
        self,
        receiver: NetworkReceiver,
        reactor: Any,
        netlink: Netlink,
        without: Collection[int] = (),
    ) -> None:
        self._receiver = receiver
        self._reactor = reactor
        self._netlink = netlink
        self._state = NetworkState(without, TABLE.values())
        self._settling: IDelayedCall | None = None
        self._socket = _subscribe()

    def startReading(self) -> None:
        """Report how everything is, and from now on what changes. Raises `LocalError`."""
        self._report(self._state.renew(self._netlink.links()))
        self._reactor.addReader(self)

    def close(self) -> None:
        """Stop watching. May be called again."""
        if self._socket.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    def doRead(self) -> None:
        """Report what changed."""
        # An exception that reached the reactor would silently end the watch while the process lives on.
        try:
            self._report(self._changes())
        except Exception:
            _log.failure("A change of the network could not be handled")

    def _changes(self) -> Changes:
        changes = Changes()
        for _ in range(READS_PER_WAKEUP):
            try:
                data, (port, _) = self._socket.recvfrom(_BUFFER)
            except BlockingIOError:
                break
            except OSError as error:  # ENOBUFS
                return self._begin_anew(error)
            if port == 0:  # from the kernel
                self._state.read(data, changes)
        return changes

    def _begin_anew(self, error: OSError) -> Changes:
        """Look at everything after notifications were lost; those that wait are older and say nothing new."""
        _log.info("Changes of the network were lost ({error}): looking at everything", error=error.strerror)
        for _ in range(_MOST_WAITING):
            try:
                self._socket.recv(1)
            except BlockingIOError:
                break
            except OSError:  # lost again
                continue
        return self._state.renew(self._netlink.links())

    def _report(self, changes: Changes) -> None:
        for name, up in changes.links.items():
            self._receiver.linkChanged(name, up)
        if changes.addresses:
            self._receiver.addressChanged()
        if changes.routes and self._settling is None:
            self._settling = self._reactor.callLater(SETTLING, self._settled)

    def _settled(self) -> None:
        self._settling = None
        self._receiver.routeChanged()

    def connectionLost(self, reason: Failure) -> None:
        """Close: the reactor is about to end, which is the only cause there is."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor for the reactor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return "network watch"


def _subscribe() -> socket.socket:
    try:
        opened = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            opened.bind((0, _GROUPS))
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise LocalError(f"cannot hear of changes of the network: {error.strerror}") from error
    return opened
