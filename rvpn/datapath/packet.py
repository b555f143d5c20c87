"""
Inner IPv4 and IPv6 packets: reading them safely, and the ICMP errors that answer them.

Every packet passes `addresses`, which is all the data path needs. `inspect` reads the rest of the headers
where an ICMP error is in question: `too_big` for a packet that does not fit the tunnel, `unreachable` for one
that has no session. Addresses are packed (4 or 16 bytes, network order), lengths are in bytes. A packet whose
lengths lie raises `RemoteError` MALFORMED_PACKET, and nothing else is ever raised.
"""

from struct import Struct
from typing import NamedTuple

from rvpn.constants import IP_HEADER, MIN_TUNNEL_MTU, NextHeader
from rvpn.errors import DropReason, RemoteError

# Version and header length, total length, source, destination (RFC 791).
_IPV4 = Struct("!BxH8x4s4s")
# Version, payload length, source, destination (RFC 8200).
_IPV6 = Struct("!B3xH2x16s16s")
_IPV4_SIZE, _IPV6_SIZE = IP_HEADER[4], IP_HEADER[6]
# Looking up the member of an enum costs more than the rest of a comparison.
_NEXT_IPV4, _NEXT_IPV6 = NextHeader.IPV4, NextHeader.IPV6

# RFC 8200 section 4, RFC 4302, RFC 7401, RFC 5533, RFC 6275.
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION, _MOBILITY = 0, 43, 44, 51, 60, 135
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION, _MOBILITY))
#: IPv6 extension headers that a packet may have; real ones have one or two.
MAX_EXTENSIONS = 16

# ICMP's protocol number for each IP version.
_ICMP_PROTOCOL = {4: 1, 6: 58}
# Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122 section 3.2.2).
_ICMPV4_ERRORS = frozenset((3, 4, 5, 11, 12))
# ICMPv6 types from here on are informational, but for the redirect (RFC 4443 section 2.1 and 2.4 (e)).
_ICMPV6_INFORMATIONAL, _ICMPV6_REDIRECT = 128, 137
# The longest ICMP error with its IP header: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c).
_ERROR_SIZE = {4: 576, 6: MIN_TUNNEL_MTU}
# Type, code, checksum, MTU or zero.
_ICMP = Struct("!BBHI")
# Version and header length, class, total length, identification, flags, TTL, protocol, checksum, addresses.
_IPV4_FULL = Struct("!BBHHHBBH4s4s")
# Version, class and flow, payload length, next header, hop limit, addresses.
_IPV6_FULL = Struct("!IHBB16s16s")
# Source, destination, length, next header (RFC 8200 section 8.1).
_PSEUDO_HEADER = Struct("!16s16sII")
_DONT_FRAGMENT, _FRAGMENT_OFFSET = 0x4000, 0x1FFF
_HOP_LIMIT = 64

# Host unreachable (RFC 792), address unreachable (RFC 4443).
_UNREACHABLE = {4: (3, 1), 6: (1, 3)}
# Fragmentation needed (RFC 1191 section 4), packet too big (RFC 4443 section 3.2).
_TOO_BIG = {4: (3, 4), 6: (2, 0)}


class Headers(NamedTuple):
    """
    What the IP headers of a packet say.

    `header_length` counts IPv4 options and IPv6 extension headers, `protocol` is that of what follows them.
    `fragment_offset` is in bytes, 0 for whole packets and first fragments. `dont_fragment` holds for all of
    IPv6.
    """

    version: int
    source: bytes
    destination: bytes
    header_length: int
    protocol: int
    dont_fragment: bool
    fragment_offset: int


def addresses(packet: memoryview) -> tuple[NextHeader, bytes, bytes]:
    """
    Return the ESP next header that `packet` takes, its source and its destination.

    Version, header length and total length are checked, nothing else.
    """
    size = len(packet)
    if size >= _IPV4_SIZE:
        first, total, source, destination = _IPV4.unpack_from(packet)
        if first >> 4 == 4:
            if total == size and _IPV4_SIZE <= (first & 15) * 4 <= size:
                return _NEXT_IPV4, source, destination
        elif first >> 4 == 6 and size >= _IPV6_SIZE:
            _, payload, source, destination = _IPV6.unpack_from(packet)
            if payload + _IPV6_SIZE == size:
                return _NEXT_IPV6, source, destination
    raise _malformed(packet)


def inspect(packet: memoryview) -> Headers:
    """Read the IP headers of `packet`, IPv6 extension headers included."""
    next_header, source, destination = addresses(packet)
    if next_header == NextHeader.IPV6:
        return Headers(6, source, destination, *_upper_layer(packet))
    flags = packet[6] << 8 | packet[7]
    return Headers(
        4,
        source,
        destination,
        header_length=(packet[0] & 15) * 4,
        protocol=packet[9],
        dont_fragment=bool(flags & _DONT_FRAGMENT),
        fragment_offset=(flags & _FRAGMENT_OFFSET) * 8,
    )


def _upper_layer(packet: memoryview) -> tuple[int, int, bool, int]:
    """Follow the extension headers of an IPv6 packet; return the last four members of `Headers`."""
    protocol, offset = packet[6], _IPV6_SIZE
    for _ in range(MAX_EXTENSIONS + 1):
        if protocol not in _EXTENSIONS:
            return offset, protocol, True, 0
        if len(packet) < offset + 8:
            break
        following, length = packet[offset], packet[offset + 1]
        if protocol == _FRAGMENT:
            length = 0
            fragment_offset = (packet[offset + 2] << 8 | packet[offset + 3]) & ~7
            if fragment_offset:
                return offset + 8, following, True, fragment_offset
        # RFC 4302 section 2.2 counts in other units than RFC 8200 section 4.
        offset += (length + 2) * 4 if protocol == _AUTHENTICATION else (length + 1) * 8
        if len(packet) < offset:
            break
        protocol = following
    raise _malformed(packet)


def _malformed(packet: memoryview) -> RemoteError:
    start = bytes(packet[:_IPV6_SIZE]).hex()
    return RemoteError(DropReason.MALFORMED_PACKET, f"{len(packet)} bytes that begin with {start}")


def checksum(data: bytes | memoryview) -> int:
    """Return the internet checksum of `data` (RFC 1071); 0 if `data` contains its own, correct one."""
    value = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    # The one's complement sum of 16-bit words is the remainder by 0xffff, but that it is 0 for zeros alone.
    return 0xFFFF - (value % 0xFFFF or (0xFFFF if value else 0))


def too_big(packet: memoryview, mtu: int, source: bytes) -> bytes | None:
    """
    Return the ICMP error from `source` saying that packets of at most `mtu` bytes get through, or None.

    None is returned where `unreachable` returns it. An IPv4 packet that may be fragmented draws the error
    too, since its sender then takes to fragmenting itself.
    """
    headers = inspect(packet)
    return _error(packet, headers, source, _TOO_BIG[headers.version], mtu)


def unreachable(packet: memoryview, source: bytes) -> bytes | None:
    """
    Return the ICMP error from `source` saying that the destination of `packet` cannot be reached, or None.

    None where RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7 or RFC 4443 section 2.4 (e) forbids an error,
    and where `source` is of the other IP version.
    """
    headers = inspect(packet)
    return _error(packet, headers, source, _UNREACHABLE[headers.version], 0)


def _error(
    packet: memoryview, headers: Headers, source: bytes, type_and_code: tuple[int, int], rest: int
) -> bytes | None:
    """Return the IP packet with the ICMP error, as much of `packet` quoted as is allowed, or None."""
    if len(source) != len(headers.source) or not _may_draw_error(packet, headers):
        return None
    version, receiver = headers.version, headers.source
    protocol = _ICMP_PROTOCOL[version]
    quoted = packet[: _ERROR_SIZE[version] - IP_HEADER[version] - _ICMP.size]
    size = _ICMP.size + len(quoted)
    pseudo_header = _PSEUDO_HEADER.pack(source, receiver, size, protocol) if version == 6 else b""
    blank = _ICMP.pack(*type_and_code, 0, rest)
    icmp = _ICMP.pack(*type_and_code, checksum(b"".join((pseudo_header, blank, quoted))), rest)
    ip = (_ipv4_header if version == 4 else _ipv6_header)(source, receiver, size, protocol)
    return b"".join((ip, icmp, quoted))


def _may_draw_error(packet: memoryview, headers: Headers) -> bool:
    """Tell whether an ICMP error may answer `packet`: see `unreachable` for the rules' places."""
    if headers.fragment_offset or not (_is_unicast(headers.source) and _is_unicast(headers.destination)):
        return False
    if headers.protocol != _ICMP_PROTOCOL[headers.version]:
        return True
    if headers.header_length == len(packet):
        return False  # ICMP without a type: it might have been an error.
    icmp_type = packet[headers.header_length]
    if headers.version == 4:
        return icmp_type not in _ICMPV4_ERRORS
    return icmp_type >= _ICMPV6_INFORMATIONAL and icmp_type != _ICMPV6_REDIRECT


def _is_unicast(address: bytes) -> bool:
    """Tell whether the address can be that of one other host (RFC 1122 section 3.2.1.3, RFC 4291)."""
    if len(address) == 4:
        return 0 < address[0] < 224 and address[0] != 127
    return address[0] != 0xFF and int.from_bytes(address, "big") > 1


def _ipv4_header(source: bytes, destination: bytes, payload: int, protocol: int) -> bytes:
    # Internetwork control (RFC 1812 section 4.3.2.5); never fragmented, so that it needs no identification
    # (RFC 6864 section 4.1).
    fields = 0x45, 0xC0, _IPV4_SIZE + payload, 0, _DONT_FRAGMENT, _HOP_LIMIT, protocol
    blank = _IPV4_FULL.pack(*fields, 0, source, destination)
    return _IPV4_FULL.pack(*fields, checksum(blank), source, destination)


def _ipv6_header(source: bytes, destination: bytes, payload: int, protocol: int) -> bytes:
    return _IPV6_FULL.pack(6 << 28, payload, protocol, _HOP_LIMIT, source, destination)
