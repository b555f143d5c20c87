"""ICMP echo over a raw socket: requests that carry a number and when they were sent, and their replies."""

import os
import socket
import time
from ipaddress import ip_address
from struct import Struct
from typing import NamedTuple

from rvpn.datapath.packet import checksum
from rvpn.interfaces import IPAddress

#: ICMP echo: type, code, checksum, identifier, sequence (RFC 792, RFC 4443).
_ECHO = Struct("!BBHHH")
_ECHO_TYPES = {4: (8, 0), 6: (128, 129)}
#: What each packet carries: a number that does not wrap, and when it was sent in nanoseconds.
STAMP = Struct("!QQ")


class Reply(NamedTuple):
    """The answer to request `number`; times are of the monotonic clock, in nanoseconds."""

    number: int
    sent: int
    received: int


class EchoSocket:
    """Sends echo requests of `size` bytes of payload to one address, and takes the replies from there."""

    def __init__(self, address: IPAddress, size: int = STAMP.size) -> None:
        self._address = address
        self._padding = bytes(max(0, size - STAMP.size))
        self._request, self._reply = _ECHO_TYPES[address.version]
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        protocol = socket.IPPROTO_ICMP if address.version == 4 else socket.IPPROTO_ICMPV6
        self._socket = socket.socket(family, socket.SOCK_RAW, protocol)
        self._socket.setblocking(False)
        self._identifier = os.getpid() & 0xFFFF

    def fileno(self) -> int:
        """Return the descriptor to wait at for replies."""
        return self._socket.fileno()

    def send(self, number: int) -> None:
        """Send one request. Raises OSError."""
        body = STAMP.pack(number, time.monotonic_ns()) + self._padding
        blank = _ECHO.pack(self._request, 0, 0, self._identifier, number & 0xFFFF)
        # The kernel completes the checksum of ICMPv6 (RFC 3542 section 3.1).
        value = checksum(blank + body) if self._address.version == 4 else 0
        packet = _ECHO.pack(self._request, 0, value, self._identifier, number & 0xFFFF) + body
        self._socket.sendto(packet, (str(self._address), 0))

    def receive(self) -> Reply | None:
        """Return the reply that has arrived, None if it was something else."""
        try:
            packet, (source, *_) = self._socket.recvfrom(1 << 16)
        except BlockingIOError:
            return None  # the kernel found a wrong checksum only now
        now = time.monotonic_ns()
        if self._address.version == 4:
            packet = packet[(packet[0] & 15) * 4 :]
        if len(packet) < _ECHO.size + STAMP.size or ip_address(source) != self._address:
            return None
        kind, _, _, identifier, _ = _ECHO.unpack_from(packet)
        if kind != self._reply or identifier != self._identifier:
            return None
        number, sent = STAMP.unpack_from(packet, _ECHO.size)
        return Reply(number, sent, now)
