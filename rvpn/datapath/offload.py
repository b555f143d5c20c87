"""
Super-packets on their way out: what the kernel leaves us to do for a packet from the TUN device.

Before each packet stands a virtio_net_hdr (linux/virtio_net.h), read by `VnetHeader`. It may say that the
TCP or UDP checksum is partial: the field holds the sum of the pseudo-header alone (RFC 9293 section 3.1, RFC
768), and whoever puts the packet on a real wire completes it. And it may say that the packet is a
super-packet of up to 64 KiB, to be cut into segments of `gso_size` bytes of payload:

    headers | gso_size bytes | gso_size bytes | rest  ->  headers 0 | gso_size bytes, headers 1 | ...

`Segmentation` is the cut, for TCP and UDP over IPv4 and IPv6. Segment k has its own length, IPv4
identification + k and checksum, TCP sequence number + k * gso_size; FIN and PSH are for the last one, CWR for
the first (RFC 3168 section 6.1.2). `successors` tells these headers, for `rvpn.datapath.coalesce` too, which
puts together what looks exactly as if it had been cut so.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from rvpn.constants import IP_HEADER, UDP_HEADER, VNET_HEADER
from rvpn.datapath.packet import checksum, inspect
from rvpn.errors import DropReason, RemoteError

#: Flags: the checksum is partial; it is complete and was found right.
NEEDS_CSUM, DATA_VALID = 1, 2
#: Types of super-packets, 0 for none, and the flag for one of TCP whose first segment has CWR; and where the
#: type stands.
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_ECN = 0, 1, 4, 5, 0x80
GSO_TYPE = 1

TCP, UDP = 6, 17
#: Where the checksum stands in a TCP and a UDP header.
CHECKSUM_OFFSET = {TCP: 16, UDP: 6}
#: TCP's flags, in byte `FLAGS` of its header.
FIN, SYN, RST, PSH, URG, CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80
FLAGS = 13

#: Bytes that a packet may take beside what it has, or a segment beside its payload: ESP, and ample headers.
EXTRA = 256
_VNET = Struct("<BBHHHH")
_SHORT = Struct("!H")
_TCP_HEADER = 20
_MORE_FRAGMENTS_OR_OFFSET = 0x3F  # in the first byte of the two
_KINDS = {GSO_TCPV4: (4, TCP), GSO_TCPV6: (6, TCP)}
_MODULUS = 0xFFFF


class VnetHeader(NamedTuple):
    """
    What stands before each packet: `flags` and `gso_type` as above, `gso_size` bytes of payload in a segment,
    and that the checksum from `csum_start` on is to be written `csum_offset` bytes behind it.
    """

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int

    @classmethod
    def read(cls, packet: memoryview) -> "VnetHeader":
        """Read the beginning of what came from the TUN device, at least VNET_HEADER bytes."""
        return cls(*_VNET.unpack_from(packet))

    def encode(self) -> bytes:
        """Return the bytes."""
        return _VNET.pack(*self)


#: The fields of the header before a packet, and the bytes of one that has these fields.
read_header, write_header = _VNET.unpack_from, _VNET.pack
#: Nothing is left to do.
COMPLETE = bytes(VNET_HEADER)


def room_for(packet: memoryview) -> int:
    """Return how many bytes a super-packet, virtio_net_hdr first, takes at most once cut and sealed."""
    length, gso_size = len(packet), read_header(packet)[3]
    return length + EXTRA * (1 + length // (gso_size or 1))


class Transport(NamedTuple):
    """Where a TCP or UDP header starts in a packet, which of the two it is, and where the payload starts."""

    offset: int
    protocol: int
    payload: int

    @property
    def checksum(self) -> int:
        """Where the checksum stands."""
        return self.offset + CHECKSUM_OFFSET[self.protocol]


def transport(packet: memoryview | bytes) -> Transport:
    """Find the TCP or UDP header. Raises `RemoteError` if there is none, as in a fragment."""
    size = len(packet)
    if size >= IP_HEADER[4] and packet[0] >> 4 == 4:
        offset, protocol = (packet[0] & 15) * 4, packet[9]
        whole = offset >= IP_HEADER[4] and not (packet[6] & _MORE_FRAGMENTS_OR_OFFSET or packet[7])
    elif size >= IP_HEADER[6] and packet[6] in CHECKSUM_OFFSET and packet[0] >> 4 == 6:
        offset, protocol, whole = IP_HEADER[6], packet[6], True
    else:
        headers = inspect(memoryview(packet))
        offset, protocol, whole = headers.header_length, headers.protocol, not headers.fragment_offset
    if whole and protocol == UDP and size >= offset + UDP_HEADER:
        return Transport(offset, UDP, offset + UDP_HEADER)
    if whole and protocol == TCP and size >= offset + _TCP_HEADER:
        payload = offset + (packet[offset + 12] >> 4) * 4
        if offset + _TCP_HEADER <= payload <= size:
            return Transport(offset, TCP, payload)
    raise RemoteError(DropReason.MALFORMED_PACKET, "not a whole TCP or UDP packet")


def is_partial(packet: memoryview, start: int, offset: int) -> bool:
    """
    Whether the checksum from `start` on is that of TCP or UDP, so that a receiver finds out by itself where
    it stands.
    """
    try:
        where = transport(packet)
    except RemoteError:
        return False
    return start == where.offset and offset == CHECKSUM_OFFSET[where.protocol]


def completed(packet: memoryview | bytes, start: int, offset: int) -> bytes:
    """
    Return `packet` with the checksum of all from `start` on, whose field is `offset` bytes behind that.

    Raises `RemoteError` if the field is not in the packet.
    """
    field = start + offset
    if field + 2 > len(packet):
        raise RemoteError(DropReason.MALFORMED_PACKET, f"checksum at {field} of {len(packet)} bytes")
    # RFC 768: a checksum of 0 is sent as 0xffff, which means the same for all others.
    value = checksum(packet[start:]) or _MODULUS
    return b"".join((packet[:field], _SHORT.pack(value), packet[field + 2 :]))


class Segmentation:
    """
    How a super-packet is cut: into `count` segments of at most `longest` bytes, of `octets` together, headers
    included.

    `where` are its headers, `size` the bytes of payload in each segment but the last. `partial` tells whether
    their checksums are, unless completed: UDP over IPv4 may have none at all.
    Raises `RemoteError` MALFORMED_PACKET if `header` does not fit to `packet`.
    """

    def __init__(self, header: VnetHeader, packet: memoryview) -> None:
        where = transport(packet)
        self.partial = bool(header.flags & NEEDS_CSUM)
        version = packet[0] >> 4
        kind = _KINDS.get(header.gso_type & ~GSO_ECN, (version, UDP if header.gso_type == GSO_UDP else 0))
        payload = len(packet) - where.payload
        if kind != (version, where.protocol) or not header.gso_size or not payload:
            raise RemoteError(DropReason.MALFORMED_PACKET, f"no super-packet of type {header.gso_type}")
        if self.partial:
            field = header.csum_start, header.csum_offset
            sound = field == (where.offset, CHECKSUM_OFFSET[where.protocol])
        else:  # UDP may do without, over IPv4
            sound = where.protocol == UDP and not any(packet[where.checksum : where.checksum + 2])
        if not sound:
            raise RemoteError(DropReason.MALFORMED_PACKET, "a super-packet without partial checksum")
        self._packet = packet
        self.where = where
        self.size = min(header.gso_size, payload)
        self.count = -(-payload // self.size)
        self.longest = where.payload + self.size
        self.octets = payload + self.count * where.payload

    def segments(self, trailers: Sequence[bytes] = (b"",) * 4, *, complete: bool = False) -> list[bytes]:
        """
        Return the segments, each followed by that of `trailers` which its length modulo 4 selects.

        All are of equal length but the last. With `complete` their checksums are.
        """
        where, packet, size, join = self.where, self._packet, self.size, b"".join
        starts = range(where.payload, len(packet), size)
        pieces = zip(self._headers(), starts, strict=True)
        if complete and self.partial:
            offset = CHECKSUM_OFFSET[where.protocol]
            whole = (
                completed(join((header, packet[start : start + size])), where.offset, offset)
                for header, start in pieces
            )
            return [segment + trailers[len(segment) & 3] for segment in whole]
        trailer = trailers[self.longest & 3]
        segments = [join((header, packet[start : start + size], trailer)) for header, start in pieces]
        last = where.payload + len(packet) - starts[-1]
        segments[-1] = segments[-1][:last] + trailers[last & 3]
        return segments

    def _headers(self) -> list[bytes]:
        where, packet, count = self.where, self._packet, self.count
        whole = bytes(packet[: where.payload])
        flags = whole[where.offset + FLAGS] if where.protocol == TCP else 0
        middle = resized(whole, where, self.longest, flags & ~(FIN | PSH | CWR))
        header_at = successors(middle, where, self.size)
        headers = [header_at(k) for k in range(count)]
        last = len(packet) - (count - 1) * self.size
        headers[-1] = resized(headers[-1], where, last, flags if count == 1 else flags & ~CWR)
        if flags & CWR and count > 1:
            headers[0] = resized(middle, where, self.longest, flags & ~(FIN | PSH))
        return headers


def resized(header: bytes, where: Transport, length: int, flags: int = 0) -> bytes:
    """
    Return the headers of a packet as they are if it is `length` bytes long and, with TCP, has these flags.

    A partial checksum stays right, and so does a UDP checksum of 0, which says that there is none.
    """
    changed, offset = bytearray(header), where.offset
    if header[0] >> 4 == 4:
        before = _SHORT.unpack_from(header, 2)[0]
        _SHORT.pack_into(changed, 2, length)
        _SHORT.pack_into(changed, 10, 0)
        _SHORT.pack_into(changed, 10, checksum(bytes(changed[:offset])))
    else:
        before = _SHORT.unpack_from(header, 4)[0] + IP_HEADER[6]
        _SHORT.pack_into(changed, 4, length - IP_HEADER[6])
    if where.protocol == TCP:
        changed[offset + FLAGS] = flags
    else:
        _SHORT.pack_into(changed, offset + 4, length - offset)
    (partial,) = _SHORT.unpack_from(header, where.checksum)
    if partial or where.protocol == TCP:
        # The pseudo-header has the length in it. 0xffff is the same sum as 0.
        _SHORT.pack_into(changed, where.checksum, (partial + length - before) % _MODULUS or _MODULUS)
    return bytes(changed)


def successors(header: bytes, where: Transport, size: int) -> Callable[[int], bytes]:
    """
    Return what tells the headers of the k-th segment after that with `header`, each of `size` payload bytes.

    Only what differs is packed anew: the IPv4 identification and checksum, the TCP sequence number.
    """
    if header[0] >> 4 == 4:
        return _ipv4_successors(header, where, size)
    if where.protocol == UDP:
        return lambda _: header
    at = where.offset + 4
    pack = _struct(6, at, len(header)).pack
    before, sequence, after = header[:at], int.from_bytes(header[at : at + 4]), header[at + 4 :]
    return lambda k: pack(before, sequence + k * size & 0xFFFFFFFF, after)


def _ipv4_successors(header: bytes, where: Transport, size: int) -> Callable[[int], bytes]:
    first, identification, middle = header[:4], int.from_bytes(header[4:6]), header[6:10]
    # RFC 1624: the sum of the header grows by one as the identification does, so that its complement shrinks.
    check = int.from_bytes(header[10:12])
    sequence_at = where.offset + 4 if where.protocol == TCP else 0
    pack = _struct(4, sequence_at, len(header)).pack

    def changing(k: int) -> tuple[int, int]:
        """Return both where one of them wraps; as 0xffff and 0 are the same sum, wrapping takes one more."""
        total = _MODULUS - check + k - (identification + k > _MODULUS)
        return identification + k & 0xFFFF, _MODULUS - (total % _MODULUS or _MODULUS)

    if where.protocol == UDP:
        rest = header[12:]

        def udp(k: int) -> bytes:
            now, then = identification + k, check - k
            if now > 0xFFFF or then < 0:
                now, then = changing(k)
            return pack(first, now, middle, then, rest)

        return udp
    before, after = header[12:sequence_at], header[sequence_at + 4 :]
    sequence = int.from_bytes(header[sequence_at : sequence_at + 4])

    def tcp(k: int) -> bytes:
        now, then = identification + k, check - k
        if now > 0xFFFF or then < 0:
            now, then = changing(k)
        return pack(first, now, middle, then, before, sequence + k * size & 0xFFFFFFFF, after)

    return tcp


@lru_cache(maxsize=256)
def _struct(version: int, sequence: int, length: int) -> Struct:
    """
    Return the layout of headers of `length` bytes: IPv4's changing fields, the TCP sequence number if any.
    """
    text = "!"
    if version == 4:
        text += "4sH4sH"
        text += f"{sequence - 12}sI{length - sequence - 4}s" if sequence else f"{length - 12}s"
    else:
        text += f"{sequence}sI{length - sequence - 4}s"
    return Struct(text)
