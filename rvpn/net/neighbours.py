"""
Answers for clients' inner addresses on a gateway's LAN, given by this process and nobody else (DESIGN 8).

    ARP, neighbour discovery -> filter in the kernel -> doRead -> all that waits is read
        -> another machine says that it has one of our addresses -> foreignAnnouncement
        -> somebody asks for one that we own -> answer
    announce -> gratuitous ARP, unsolicited advertisement -> everybody's neighbour caches

A process that is stopped or killed is silent at once; proxy entries of the kernel would go on to answer. One
that was stopped and goes on finds old questions in its sockets, and perhaps the announcement of the gateway
that took over meanwhile. It must hear that before it answers anybody: so a wake-up reads all that waits, and
takes the announcements first. If something was lost for want of room, it answers nothing of what waited.

Each socket is for one type of frame. So the kernel spends nothing on IPv4 packets that pass, and on IPv6
packets only a short filter; neither wakes this process.
"""

import errno
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.gateway.address_resolution import (
    ADVERTISEMENT,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    ICMPV6,
    SOLICITATION,
    Heard,
    announcements,
    answer,
    read,
    solicited_node,
)
from rvpn.interfaces import IPAddress
from rvpn.net import bpf

#: Bytes that the kernel keeps for us in each socket, and frames read at a wake-up: more than it puts there.
RECEIVE_BUFFER, MOST_WAITING = 1 << 17, 1024
#: Less than net.core.optmem_max allows one socket.
GROUPS_PER_SOCKET = 256
#: Bytes; the frames that we understand are far shorter.
_LONGEST_FRAME = 2048

# linux/if_arp.h, linux/socket.h, linux/if_packet.h.
_ARPHRD_ETHER = 1
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_PACKET_OTHERHOST = 3
#: Frames that arrived since the last time, and those of them that did not fit.
_STATISTICS = struct.Struct("=II")

_PACKET_TYPE = 0xFFFFF004  # linux/filter.h; not in the frame: to whom it was sent
_NEXT_HEADER, _ICMPV6_TYPE = 14 + 6, 14 + 40
#: What was sent to another machine is seen where an interface is promiscuous; it is none of our business.
_TO_US = (
    (bpf.LOAD, 0, 0, _PACKET_TYPE),
    (bpf.IF_EQUAL, 0, 1, _PACKET_OTHERHOST),
    (bpf.RETURN, 0, 0, bpf.NOTHING),
)
_ARP_FILTER = *_TO_US, (bpf.RETURN, 0, 0, bpf.ALL)
_DISCOVERY_FILTER = (
    *_TO_US,
    (bpf.LOAD_BYTE, 0, 0, _NEXT_HEADER),
    (bpf.IF_EQUAL, 0, 3, ICMPV6),
    (bpf.LOAD_BYTE, 0, 0, _ICMPV6_TYPE),
    (bpf.IF_EQUAL, 2, 0, SOLICITATION),
    (bpf.IF_EQUAL, 1, 0, ADVERTISEMENT),
    (bpf.RETURN, 0, 0, bpf.NOTHING),
    (bpf.RETURN, 0, 0, bpf.ALL),
)

_REFUSALS = {
    errno.ENODEV: "there is no such interface",
    errno.EPERM: "no permission to listen there: run as root or with CAP_NET_RAW",
}

_log = Logger()


class NeighbourReceiver(Protocol):
    """Who knows what is ours. Exceptions are logged and end nothing."""

    def owns(self, address: bytes) -> bool:
        """Tell whether to answer for an address (packed) now."""

    def foreignAnnouncement(self, address: IPAddress) -> None:
        """Hear that another machine says that it has an address of ours."""

    def drop(self, reason: DropReason) -> None:
        """Count a frame that could not be read."""


@implementer(IReadDescriptor)
class NeighbourPort:
    """
    The packet sockets on `interface`: bound after construction, reading after `startReading`.

    An interface may go down and come up again; one that was removed and made anew takes a new port. Raises
    `LocalError` if there is none or it is no Ethernet, or without the right to listen there.
    """

    def __init__(self, interface: str, receiver: NeighbourReceiver, reactor: IReactorFDSet) -> None:
        self.interface = interface
        self._receiver = receiver
        self._reactor = reactor
        self._buffer = memoryview(bytearray(_LONGEST_FRAME))
        with ExitStack() as opened:
            arp = opened.enter_context(_open(interface, ETHERTYPE_ARP, _ARP_FILTER))
            discovery = opened.enter_context(_open(interface, ETHERTYPE_IPV6, _DISCOVERY_FILTER))
            opened.pop_all()
        self._sockets = {4: arp, 6: discovery}
        self._groups = _Groups(socket.if_nametoindex(interface))
        # An interface that goes down is an error of its sockets, and the reactor gives up who has one.
        self._events = select.epoll()
        for each in self._sockets.values():
            self._events.register(each, select.EPOLLIN)

    def startReading(self) -> None:
        """Begin to answer."""
        self._reactor.addReader(self)

    def close(self) -> None:
        """Stop answering. May be called again."""
        if not self._events.closed:
            self._reactor.removeReader(self)
            self._events.close()
            self._groups.close()
            for each in self._sockets.values():
                each.close()

    def announce(self, address: IPAddress) -> None:
        """Tell the LAN that `address` is here. Never raises: who was not told asks in time."""
        try:
            for frame in announcements(address.packed, self._mac):
                self._sockets[address.version].send(frame)
            if address.version == 6:
                self._groups.join(address.packed)
        except OSError as error:
            fields = {"address": str(address), "interface": self.interface, "refusal": error.strerror}
            _log.warn("cannot announce {address} on {interface}: {refusal}", **fields)

    @property
    def _mac(self) -> bytes:
        """The interface's MAC, which its administrator may change."""
        mac: bytes = self._sockets[4].getsockname()[4]
        return mac

    def doRead(self) -> None:
        """Take the announcements of others, then answer the questions."""
        # An exception that reached the reactor would silently end the reading while the process lives on.
        try:
            mac = self._mac
            heard = [each for each in self._waiting() if each.mac != mac]
            for each in heard:
                if self._receiver.owns(each.address):
                    self._receiver.foreignAnnouncement(ip_address(each.address))
            if self._overflowed():  # an announcement may have been lost; they ask again
                return
            for each in heard:
                if each.wanted is not None and self._receiver.owns(each.wanted):
                    self._answer(each, mac)
        except Exception:
            _log.failure("What was heard on {interface} could not be handled", interface=self.interface)

    def _overflowed(self) -> bool:
        """Tell whether frames were lost since the last call."""
        size = _STATISTICS.size
        told = [each.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, size) for each in self._sockets.values()]
        return any(_STATISTICS.unpack(each)[1] for each in told)

    def _answer(self, heard: Heard, mac: bytes) -> None:
        with suppress(OSError):  # the interface went down, or its queue is full: they ask again
            self._sockets[6 if len(heard.address) == 16 else 4].send(answer(heard, mac))

    def _waiting(self) -> Iterator[Heard]:
        for each in self._sockets.values():
            for _ in range(MOST_WAITING):
                try:
                    length = each.recv_into(self._buffer)
                    heard = read(self._buffer[:length])
                except BlockingIOError:
                    break
                except OSError:  # the interface went down, which is told once
                    continue
                except RemoteError as error:
                    self._receiver.drop(error.reason)
                    continue
                if heard is not None:
                    yield heard

    def connectionLost(self, reason: Failure) -> None:
        """Close: the reactor is about to end, which is the only cause there is."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor of the epoll set for the reactor."""
        return self._events.fileno()

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return f"neighbours on {self.interface}"


class _Groups:
    """
    The solicited-node groups of our addresses, joined by the kernel on behalf of this process.

    It sets the network card's filter, and reports to switches that forward solicitations only to members
    (RFC 4541); it answers none. The groups are left when the process ends.
    """

    def __init__(self, index: int) -> None:
        """`index` is that of the interface."""
        self._index = struct.pack("=i", index)
        self._joined: set[bytes] = set()
        self._sockets: list[socket.socket] = []

    def join(self, address: bytes) -> None:
        """Join the group of an IPv6 address. Raises `OSError`."""
        group = solicited_node(address)
        if group in self._joined:
            return
        if len(self._joined) == len(self._sockets) * GROUPS_PER_SOCKET:
            self._sockets.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        self._sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + self._index)
        self._joined.add(group)

    def close(self) -> None:
        """Leave the groups."""
        for each in self._sockets:
            each.close()


def _open(interface: str, ethertype: int, instructions: Sequence[bpf.Instruction]) -> socket.socket:
    """Return a socket for one type of frame on an interface. Raises `LocalError`."""
    try:
        # Of protocol 0, it hears nothing before it has its filter and its interface.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            bpf.attach(opened, instructions)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            opened.bind((interface, ethertype))
            if opened.getsockname()[3] != _ARPHRD_ETHER:
                raise LocalError(f"cannot answer for clients on {interface}: it is no Ethernet")
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        refusal = _REFUSALS.get(error.errno or 0, error.strerror)
        raise LocalError(f"cannot answer for clients on {interface}: {refusal}") from error
    return opened
