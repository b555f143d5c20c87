"""
Opened packets on their way to the TUN device: those that continue one another become super-packets again.

    packet -> `take`: it is exactly what cutting would have made the next segment; its payload is kept
           -> else `start`: what grew until now is written, and this packet grows, if its kind can
           -> `put`, if its checksum is complete: it is written as it is

Cutting and putting together are the same calculation (`rvpn.offload.successors`): a packet continues another
if its headers are those foretold. So nothing is lost, and what differs in anything, be it an acknowledgement,
a window, an option, a congestion mark or the order, begins anew. Only packets with partial checksums are put
together: a complete one that nobody has verified is passed on as it is, for the receiver to find it wrong.
"""

from collections.abc import Collection

from rvpn.interfaces import PacketBatch
from rvpn.offload import (
    CHECKSUM_OFFSET,
    COMPLETE,
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

#: Bytes of the longest super-packet, and datagrams in one of UDP (UDP_MAX_SEGMENTS of older kernels).
LONGEST, MOST_DATAGRAMS = 0xFFFF, 64
_LAST, _ALONE = PSH | FIN, SYN | RST | URG | CWR
_GSO_TYPE = {(4, TCP): GSO_TCPV4, (6, TCP): GSO_TCPV6, (4, UDP): GSO_UDP, (6, UDP): GSO_UDP}
_DONT_FRAGMENT = 0x40  # in the seventh byte
#: Shorter than any packet: nothing continues what was written.
_NOTHING = -1


class Coalescer:
    """
    Adds packets to a batch, one super-packet growing at a time; `flush` is needed after the last.

    `protocols` are those of which the TUN device takes super-packets. Packets are given with their length:
    what stands behind it does not matter.
    """

    def __init__(self, protocols: Collection[int]) -> None:
        self._protocols = protocols
        self._packets = PacketBatch(0)
        self._parts: list[memoryview] = []
        self._where = Transport(0, 0, 0)
        self._length = self._flags = 0
        self._whole, self._expected = _NOTHING, b""

    def begin(self, packets: PacketBatch) -> None:
        """Add to `packets` from now on."""
        self._packets = packets

    def take(self, packet: bytes, length: int) -> bool:
        """Return whether `packet` continues what grows, which then is kept."""
        if length > self._whole:
            return False
        parts, payload = self._parts, self._where.payload
        if not self._expected:
            self._foretell(packet)
        if length < self._whole or not packet.startswith(self._expected):
            return self._take_last(packet, length)
        parts.append(memoryview(packet)[payload:length])
        self._length += length - payload
        if self._length > self._longest or len(parts) == self._most:
            self._whole = _NOTHING
        else:
            self._expected = self._header_at(len(parts))
        return True

    def _foretell(self, second: bytes) -> None:
        """Find out what the packets after the first are to look like; `second` may tell what is constant."""
        where = self._where
        first = bytes(self._parts[0][: where.payload])
        self._header_at = successors(first, where, self._size)
        # An identification that stays the same, as of a UDP socket that is not connected, means nothing in a
        # packet that is never fragmented (RFC 6864 section 4.1).
        if (
            where.protocol == UDP
            and first[0] >> 4 == 4
            and first[6] & _DONT_FRAGMENT
            and second.startswith(first)
        ):
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
        self._parts.append(memoryview(packet)[where.payload : length])
        self._length += length - where.payload
        self._whole, self._flags = _NOTHING, flags
        return True

    def start(self, packet: bytes, length: int) -> None:
        """
        Add a packet with a partial checksum, which others may continue.

        Raises `RemoteError` if it is not of TCP or UDP.
        """
        view = memoryview(packet)[:length]
        where = transport(view)
        self.flush()
        self._where, self._length, self._parts = where, length, [view]
        self._flags = packet[where.offset + FLAGS] if where.protocol == TCP else 0
        self._size = length - where.payload
        if where.protocol in self._protocols and self._size and not self._flags & (_LAST | _ALONE):
            self._whole, self._expected = length, b""
            self._longest = LONGEST - self._size
            self._most = MOST_DATAGRAMS if where.protocol == UDP else LONGEST

    def put(self, packet: bytes, length: int) -> None:
        """Add a packet that is complete."""
        self.flush()
        self._write(COMPLETE, (memoryview(packet)[:length],))

    def flush(self) -> None:
        """Write what grew to the batch: nothing continues it any more."""
        if not self._parts:
            return
        where, parts, first = self._where, self._parts, self._parts[0]
        kind, size = GSO_NONE, 0
        if len(parts) > 1:
            kind, size = _GSO_TYPE[first[0] >> 4, where.protocol], self._size
            headers = bytes(first[: where.payload])
            headers = resized(headers, where, self._length, self._flags)
            parts = [memoryview(headers), first[where.payload :], *parts[1:]]
        field = where.offset, CHECKSUM_OFFSET[where.protocol]
        self._write(write_header(NEEDS_CSUM, kind, where.payload, size, *field), parts)
        self._parts, self._whole = [], _NOTHING

    def _write(self, header: bytes, parts: Collection[bytes | memoryview]) -> None:
        packets = self._packets
        written = b"".join((header, *parts))
        start = packets.length
        packets.buffer[start : start + len(written)] = written
        packets.add(len(written))
