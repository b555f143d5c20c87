"""Inner packets as a TUN device with offloads gives them, made by scapy."""

import logging
from struct import pack
from typing import Any

from rvpn.datapath.offload import (
    CHECKSUM_OFFSET,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    NEEDS_CSUM,
    TCP,
    UDP,
    Transport,
    VnetHeader,
    transport,
)

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, IPOption_NOP  # noqa: E402
from scapy.layers.inet import TCP as TcpLayer  # noqa: E402, N811
from scapy.layers.inet import UDP as UdpLayer  # noqa: E402, N811
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt  # noqa: E402

GSO_TYPE = {(4, TCP): GSO_TCPV4, (6, TCP): GSO_TCPV6, (4, UDP): GSO_UDP, (6, UDP): GSO_UDP}
LAYERS: dict[int, Any] = {4: IP, 6: IPv6, TCP: TcpLayer, UDP: UdpLayer}
SOURCE, DESTINATION = {4: "10.99.0.1", 6: "2001:db8:99::1"}, {4: "10.0.0.1", 6: "2001:db8::1"}


def packet(version: int, protocol: int, payload: bytes, *, extended: bool = False, **fields: Any) -> bytes:
    """
    Return a complete packet, with IPv4 options or an IPv6 extension header if `extended`; `fields` are
    scapy's.
    """
    addresses = {"src": SOURCE[version], "dst": DESTINATION[version]}
    mine = {name: fields.pop(name) for name in ("id", "tos", "tc") if name in fields}
    if version == 4:
        header = IP(**addresses, **mine, flags="DF", options=[IPOption_NOP()] * 4 if extended else [])
    else:
        header = IPv6(**addresses, **mine)
        header = header / IPv6ExtHdrDestOpt() if extended else header
    if protocol == TCP:
        fields = {"flags": "A"} | fields
    made = header / LAYERS[protocol](**{"sport": 1024, "dport": 5001} | fields) / payload
    return bytes(made)


def recomputed(data: bytes) -> bytes:
    """Return the packet with the lengths and checksums that scapy finds right."""
    layer = LAYERS[data[0] >> 4](data)
    protocol = TcpLayer if TcpLayer in layer else UdpLayer
    layer.fields.pop("chksum", None)
    layer.fields.pop("len", None)
    layer.fields.pop("plen", None)
    del layer[protocol].chksum
    if protocol is UdpLayer:
        del layer[protocol].len
    return bytes(layer)


def partial(data: bytes) -> bytes:
    """Return the packet with the sum of the pseudo-header where the checksum stands."""
    where = transport(data)
    addresses = data[12:20] if data[0] >> 4 == 4 else data[8:40]
    total = (int.from_bytes(addresses) + where.protocol + len(data) - where.offset) % 0xFFFF
    return data[: where.checksum] + pack("!H", total) + data[where.checksum + 2 :]


def vnet(data: bytes, size: int = 0) -> VnetHeader:
    """Return what a TUN device says of a packet with a partial checksum: a super-packet if `size` is set."""
    where: Transport = transport(data)
    kind = GSO_TYPE[data[0] >> 4, where.protocol] if size else GSO_NONE
    hdr_len = where.payload if size else 0
    return VnetHeader(NEEDS_CSUM, kind, hdr_len, size, where.offset, CHECKSUM_OFFSET[where.protocol])
