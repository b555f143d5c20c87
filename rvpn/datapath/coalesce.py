"""
Opened packets on their way to the TUN device: those that continue one another become super-packets again.

    packet -> `take`: it is exactly what cutting would have made the next segment; its payload is kept
           -> else `start`: what grew until now is written, and this packet grows, if its kind can

Cutting and putting together are the same calculation (`rvpn.datapath.offload.successors`): a packet continues
another if its headers are those foretold. So nothing is lost, and what differs in anything, be it an
acknowledgement, a window, an option, a congestion mark or the order, begins anew. Only packets with partial
checksums are put together: a complete one that nobody has verified is passed on as it is, for the receiver to
find it wrong.
"""

from collections.abc import Collection

from rvpn.datapath.offload import (
    CHECKSUM_OFFSET,
    CWR,
    FIN,
    FLAGS,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    NEEDS_CSUM,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    Transport,
    resized,
    successors,
    transport,
    write_header,
)
from rvpn.interfaces import PacketBatch

#: Bytes of the longest super-packet, and datagrams in one of UDP (UDP_MAX_SEGMENTS of older kernels).
LONGEST, MOST_DATAGRAMS = 0xFFFF, 64
#: Flags of a segment that is never one of several.
ALONE = SYN | RST | URG | CWR
_LAST = PSH | FIN
_GSO_TYPE = {(4, TCP): GSO_TCPV4, (6, TCP): GSO_TCPV6, (4, UDP): GSO_UDP, (6, UDP): GSO_UDP}
_DONT_FRAGMENT = 0x40  # in the seventh byte
#: Shorter than any packet: nothing continues what was written.
_NOTHING = -1
#: No IP packet begins so: what is to follow is not foretold yet.
_UNKNOWN = b"\0"


class Coalescer:
    """
    Adds packets to a batch, one super-packet growing at a time; `flush` is needed after the last.

    `packets` is the batch, `protocols` are those of which the TUN device takes super-packets. Packets are
    given with their length: what stands behind it does not matter.
    """

    def __init__(self, protocols: Collection[int]) -> None:
        self._protocols = protocols
        self.packets = PacketBatch(0)
        self._parts: list[bytes] = []
        self._where = Transport(0, 0, 0)
        self._flags = self._payload = self._size = self._most = 0
        self._whole, self._expected = _NOTHING, _UNKNOWN

    def take(self, packet: bytes, length: int) -> bool:
        """Return whether `packet` continues what grows, which then is kept."""
        if length == self._whole and packet.startswith(self._expected):
            parts = self._parts
            parts.append(packet[self._payload : length])
            if len(parts) < self._most:
                self._expected = self._header_at(len(parts))
            else:
                self._whole = _NOTHING
            return True
        if length > self._whole:
            return False
        if self._expected is _UNKNOWN:
            self._foretell(packet)
            return self.take(packet, length)
        return self._take_last(packet, length)

    def _foretell(self, second: bytes) -> None:
        """Find out what the packets after the first are to look like; `second` may tell what is constant."""
        where = self._where
        first = self._parts[0][: where.payload]
        self._header_at = successors(first, where, self._size)
        # An identification that stays the same, as of a UDP socket that is not connected, means nothing in a
        # packet that is never fragmented (RFC 6864 section 4.1).
        atomic = where.protocol == UDP and first[0] >> 4 == 4 and first[6] & _DONT_FRAGMENT
        if atomic and second.startswith(first):
            self._header_at = lambda _: first
        self._expected = self._header_at(1)

    def _take_last(self, packet: bytes, length: int) -> bool:
        """Return whether `packet` is shorter than the others, or has a flag that only the last one may."""
        where, expected = self._where, self._expected
        # The ports, and with TCP the sequence number: what most packets that continue nothing differ in.
        start, end = where.offset, where.offset + (8 if where.protocol == TCP else 4)
        if length <= where.payload or packet[start:end] != expected[start:end]:
            return False
        flags = packet[start + FLAGS] if where.protocol == TCP else 0
        if flags & ~_LAST != (expected[start + FLAGS] if where.protocol == TCP else 0):
            return False
        if not packet.startswith(resized(expected, where, length, flags)):
            return False
        self._parts.append(packet[where.payload : length])
        self._whole, self._flags = _NOTHING, flags
        return True

    def start(self, packet: bytes, length: int) -> None:
        """
        Add a packet with a partial checksum, which others may continue.

        Raises `RemoteError` if it is not of TCP or UDP.
        """
        packet = packet[:length]
        where = transport(packet)
        if self._parts:
            self.flush()
        self._where, self._payload, self._parts = where, where.payload, [packet]
        self._flags = packet[where.offset + FLAGS] if where.protocol == TCP else 0
        size = self._size = length - where.payload
        if size and where.protocol in self._protocols and not self._flags & (_LAST | ALONE):
            self._whole, self._expected = length, _UNKNOWN
            longest = (LONGEST - where.payload) // size
            self._most = min(MOST_DATAGRAMS, longest) if where.protocol == UDP else longest
            if self._most < 2:
                self._whole = _NOTHING

    def flush(self) -> None:
        """Write what grew to the batch: nothing continues it any more."""
        parts = self._parts
        if not parts:
            return
        where, first, kind, size = self._where, parts[0], GSO_NONE, 0
        if len(parts) > 1:
            kind, size = _GSO_TYPE[first[0] >> 4, where.protocol], self._size
            length = len(first) + (len(parts) - 2) * size + len(parts[-1])
            parts = [
                resized(first[: where.payload], where, length, self._flags),
                first[where.payload :],
                *parts[1:],
            ]
        field = where.offset, CHECKSUM_OFFSET[where.protocol]
        header = write_header(NEEDS_CSUM, kind, where.payload, size, *field)
        self.packets.append(b"".join((header, *parts)))
        self._parts, self._whole = [], _NOTHING
