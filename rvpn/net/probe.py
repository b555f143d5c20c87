"""
Probes of a target on the LAN: ICMP echo requests out of the LAN interface, and the replies (R14).

    LanWatch -> Probe -> Prober.send -> raw socket -> target
    target -> raw socket -> Prober.doRead -> probeAnswered -> LanWatch

Why ICMP, and not ARP or neighbour discovery from a packet socket: a reply proves that a host's IP works and
that there is a way to it and back, also where the target is behind another router; and it is one exchange
for IPv4 and IPv6. ARP is answered by network cards of sleeping machines and by proxies. The kernel resolves
the neighbour anyway, for the request goes through its tables. A target that ignores ICMP echo cannot be
probed; most routers answer it.

The socket is raw, as ping sockets are closed to everybody until somebody sets net.ipv4.ping_group_range. A
filter in the kernel lets nothing but echo replies through, also those to other programs: identifier,
sequence and sender tell ours. The socket is opened with the first probe, and again after one that could not
be sent, since an interface may go and come back as another. What cannot be sent stays unanswered.
"""

import socket
import struct
from ipaddress import ip_address
from secrets import randbits
from typing import Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rvpn.datapath.packet import checksum
from rvpn.interfaces import IPAddress

READS_PER_WAKEUP = 16

_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1  # linux/socket.h, linux/icmp.h, linux/icmpv6.h
#: Bytes: the longest IPv4 header, and what we read behind it.
_LONGEST = 60 + _ECHO.size

_log = Logger()


class ProbeReceiver(Protocol):
    """Who hears of answers. Exceptions are logged and end nothing."""

    def probeAnswered(self, target: IPAddress, sequence: int) -> None:
        """Hear that `target` answered the request with that sequence number, perhaps once more."""


@implementer(IReadDescriptor)
class Prober:
    """
    Sends echo requests out of `interface` (None: where the routes lead), marked with `mark` (SO_MARK).

    The mark leads past the tunnel of a client on the same host.
    """

    def __init__(
        self, interface: str | None, receiver: ProbeReceiver, reactor: IReactorFDSet, mark: int | None = None
    ) -> None:
        self._interface = interface
        self._receiver = receiver
        self._reactor = reactor
        self._mark = mark
        self._identifier = randbits(16)
        self._version = 0
        self._socket: socket.socket | None = None
        self._refusal: str | None = None

    def send(self, target: IPAddress, sequence: int) -> None:
        """
        Send a request with a sequence number of 16 bits. Never raises: what cannot be sent is logged once.
        """
        request = echo_request(target.version, self._identifier, sequence)
        try:
            self._open(target.version).sendto(request, (str(target), 0))
            refusal = None
        except OSError as error:
            self.close()
            refusal = error.strerror
        if refusal is not None and refusal != self._refusal:
            _log.warn("cannot probe {target}: {refusal}", target=str(target), refusal=refusal)
        self._refusal = refusal

    def _open(self, version: int) -> socket.socket:
        if self._socket is None or self._version != version:
            self.close()
            self._socket = _open(version, self._interface, self._mark)
            self._version = version
            self._reactor.addReader(self)
        return self._socket

    def close(self) -> None:
        """Close the socket; the next `send` opens another. May be called again."""
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None

    def doRead(self) -> None:
        """Report the replies that wait, up to `READS_PER_WAKEUP`."""
        for _ in range(READS_PER_WAKEUP):
            if self._socket is None:  # closed by the receiver
                return
            try:
                packet, sender = self._socket.recvfrom(_LONGEST)
            except OSError:
                return
            sequence = echo_reply_to(self._version, packet, self._identifier)
            if sequence is not None:
                self._report(ip_address(sender[0]), sequence)

    def _report(self, target: IPAddress, sequence: int) -> None:
        # An exception that reached the reactor would silently end the reading while the process lives on.
        try:
            self._receiver.probeAnswered(target, sequence)
        except Exception:
            _log.failure("The answer of {target} could not be handled", target=str(target))

    def connectionLost(self, reason: Failure) -> None:
        """Close: the reactor is about to end, which is the only cause there is."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor for the reactor."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return "probe"


def _open(version: int, interface: str | None, mark: int | None) -> socket.socket:
    """Return a raw socket that receives echo replies alone. Raises `OSError`."""
    family, protocol = {
        4: (socket.AF_INET, socket.IPPROTO_ICMP),
        6: (socket.AF_INET6, socket.IPPROTO_ICMPV6),
    }[version]
    opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        level, option, words = {4: (_SOL_RAW, _ICMP_FILTER, 1), 6: (protocol, _ICMPV6_FILTER, 8)}[version]
        blocked = [0xFFFFFFFF] * words  # a bit for each ICMP type
        blocked[_REPLY[version] // 32] ^= 1 << _REPLY[version] % 32
        opened.setsockopt(level, option, struct.pack(f"={words}I", *blocked))
        if mark is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if interface is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except BaseException:
        opened.close()
        raise
    return opened


def echo_request(version: int, identifier: int, sequence: int) -> bytes:
    """Return an echo request (RFC 792, RFC 4443 section 4.1); the kernel adds ICMPv6's checksum."""
    unsummed = _ECHO.pack(_REQUEST[version], 0, 0, identifier, sequence)
    return _ECHO.pack(_REQUEST[version], 0, checksum(unsummed) if version == 4 else 0, identifier, sequence)


def echo_reply_to(version: int, packet: bytes, identifier: int) -> int | None:
    """
    Return the sequence of a reply to `identifier`, None if it is anything else. IPv4 comes with its header.
    """
    start = (packet[0] & 0x0F) * 4 if version == 4 and packet else 0
    if len(packet) < start + _ECHO.size:
        return None
    kind, _, _, theirs, sequence = _ECHO.unpack_from(packet, start)
    return int(sequence) if (kind, theirs) == (_REPLY[version], identifier) else None
