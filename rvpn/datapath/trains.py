"""
Trains: super-packets of TCP whose segments travel without headers of their own, between ends that agreed so.

    super-packet:  headers | slice 0 | slice 1 | ... | slice n
    packet k:      slice k | headers | bytes of a slice | bytes of the headers | sequence number of packet 0

Each packet is one segment, and says all about itself: what is lost is a segment, as in plain ESP, and packets
may come in any order. But what stands behind the payload is the same throughout, so that neither end makes
headers for each segment, and the receiver opens each straight behind the one before, over what stood behind
that (rvpn.datapath.joining).

`Train` is what the packets have in common: the headers of the super-packet as they are, 20 to 60 bytes of
IPv4 or 40 of IPv6 and 20 to 60 of TCP; the bytes of a slice but the last (2); the bytes of the headers (1);
and the ESP sequence number of the first packet, modulo 256 (1). The numbers of a train follow one another.
"""

from collections.abc import Callable
from struct import Struct

from rvpn.constants import IP_HEADER, TRAIN_FIELDS, NextHeader
from rvpn.datapath.coalesce import ALONE, LONGEST
from rvpn.datapath.offload import (
    CHECKSUM_OFFSET,
    FIN,
    FLAGS,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
    PSH,
    TCP,
    Segmentation,
    Transport,
    resized,
    successors,
    transport,
    write_header,
)
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.codec import TRAILERS

#: Segments of a train: for fewer it does not pay, and more could not be told apart.
FEWEST, MOST = 3, 256

_FIELDS = Struct("!HBB")
_TRAILERS = TRAILERS[NextHeader.TRAIN]
_GSO_TYPE = {4: GSO_TCPV4, 6: GSO_TCPV6}


class Train:
    """
    What the packets of a train have in common: see the module. `where` tells the parts of `headers`,
    `segments` how many there are, `last` how many bytes of payload the last one has. `last_ending` is what
    stands behind that, up to the ICV, and `ending` behind the payload of all others.
    """

    __slots__ = (
        "_header_at",
        "ending",
        "first",
        "headers",
        "last",
        "last_ending",
        "segments",
        "size",
        "where",
    )

    def __init__(self, headers: bytes, where: Transport, size: int, first: int, payload: int) -> None:
        self.headers, self.where, self.size, self.first = headers, where, size, first & 0xFF
        whole, rest = divmod(payload - 1, size)
        self.segments, self.last = whole + 1, rest + 1
        self.ending, self.last_ending = self._behind(size), self._behind(self.last)
        self._header_at: Callable[[int], bytes] | None = None

    @classmethod
    def of(cls, cut: Segmentation, packet: memoryview, first: int) -> "Train | None":
        """Return the train for a super-packet with partial checksums; None if it is one for plain ESP."""
        where, size, count = cut.where, cut.size, cut.count
        if not cut.partial or where.protocol != TCP or not FEWEST <= count <= MOST or len(packet) > LONGEST:
            return None
        headers = bytes(packet[: where.payload])
        extended = headers[0] >> 4 == 6 and where.offset != IP_HEADER[6]
        if extended or headers[where.offset + FLAGS] & ALONE:
            return None
        return cls(headers, where, size, first, len(packet) - where.payload)

    @classmethod
    def read(cls, plaintext: bytes, length: int) -> "Train":
        """
        Return the train of an opened packet, whose padding begins at `length`.

        Raises `RemoteError` MALFORMED_PACKET if it is none that `of` may make.
        """
        at = length - TRAIN_FIELDS
        if at > 0:
            size, begin, first = _FIELDS.unpack_from(plaintext, at)
            headers = plaintext[max(0, at - begin) : at]
            where = transport(headers)
            told = int.from_bytes(headers[2:4]) if headers[0] >> 4 == 4 else int.from_bytes(headers[4:6])
            total = told + (IP_HEADER[6] if headers[0] >> 4 == 6 else 0)
            payload = total - begin
            fits = where.protocol == TCP and where.payload == begin == len(headers) and total <= LONGEST
            if fits and 0 < size < payload <= MOST * size and not headers[where.offset + FLAGS] & ALONE:
                return cls(headers, where, size, first, payload)
        raise RemoteError(DropReason.MALFORMED_PACKET, f"no segment of a train in {length} bytes")

    @property
    def addresses(self) -> tuple[bytes, bytes]:
        """Source and destination."""
        headers = self.headers
        return (headers[12:16], headers[16:20]) if headers[0] >> 4 == 4 else (headers[8:24], headers[24:40])

    def payload(self, number: int) -> int:
        """Return how many bytes of payload segment `number` has; 0 if there is none of that number."""
        if number < self.segments - 1:
            return self.size
        return self.last if number < self.segments else 0

    def _behind(self, payload: int) -> bytes:
        fields = self.headers + _FIELDS.pack(self.size, len(self.headers), self.first)
        return fields + _TRAILERS[payload + len(fields) & 3]

    def cut(self, packet: memoryview) -> list[bytes]:
        """Return what is to be sealed of the super-packet: all of equal length but the last."""
        begin, size, ending, join = self.where.payload, self.size, self.ending, b"".join
        last = begin + (self.segments - 1) * size
        segments = [join((packet[at : at + size], ending)) for at in range(begin, last, size)]
        segments.append(join((packet[last:], self.last_ending)))
        return segments

    def headers_of(self, begin: int, end: int) -> bytes:
        """Return the virtio_net_hdr and headers of one packet of the segments from `begin` up to `end`."""
        where, headers, size, count = self.where, self.headers, self.size, end - begin
        if count < self.segments:
            flags = headers[where.offset + FLAGS]
            middle = flags & ~(FIN | PSH)
            if self._header_at is None:
                first = resized(headers, where, where.payload + size, middle)
                self._header_at = successors(first, where, size)
            headers = self._header_at(begin)
            last = end == self.segments
            if count > 1 or last:
                length = where.payload + (count - 1) * size + self.payload(end - 1)
                headers = resized(headers, where, length, flags if last else middle)
        kind, size = (_GSO_TYPE[headers[0] >> 4], size) if count > 1 else (GSO_NONE, 0)
        field = where.offset, CHECKSUM_OFFSET[TCP]
        return write_header(NEEDS_CSUM, kind, where.payload, size, *field) + headers
