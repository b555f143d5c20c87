"""
What a captured frame is: the question whether the outside saw only ciphertext and the LAN only clear packets.

    Ethernet frame -> Classifier.classify -> Kind -> counted per link

The outside link and the LAN are judged by the same rules; what may be there is the reader's question.
"""

from collections.abc import Collection
from enum import Enum, unique

from rvpn.constants import (
    CONTROL_SPI,
    DEFAULT_PORT,
    IP_HEADER,
    KEY_EXCHANGE_MARKER,
    NAT_KEEPALIVE,
    UDP_HEADER,
)
from rvpn.datapath.packet import inspect
from rvpn.errors import RemoteError
from rvpn.interfaces import IPAddress

_ETHERNET_HEADER = 14
#: Long enough for every header that is looked at.
_HEADERS = 128
_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_ICMP, _IGMP, _UDP, _ESP, _ICMPV6 = 1, 2, 17, 50, 58
#: Multicast listener discovery and neighbour discovery (RFC 2710, RFC 3810, RFC 4861).
_NEIGHBOUR_TYPES = frozenset((130, 131, 132, 133, 134, 135, 136, 137, 143))


@unique
class Kind(Enum):
    """What a frame is; the value is its name in reports."""

    ESP = "ESP"
    KEY_EXCHANGE = "key exchange"
    SESSION_CONTROL = "session control"
    KEEPALIVE = "NAT keepalive"
    #: An inner packet in clear, between the client's inner address and anybody.
    CLEAR = "clear"
    ICMP = "ICMP"
    FRAGMENT = "fragment"
    #: Traffic of the link itself: ARP, neighbour and listener discovery, IGMP.
    NEIGHBOUR = "neighbour"
    OTHER = "other"


class Classifier:
    """Knows the tunnel's UDP port and the client's inner addresses."""

    def __init__(self, inner: Collection[IPAddress], port: int = DEFAULT_PORT) -> None:
        self._inner = frozenset(address.packed for address in inner)
        self._port = port.to_bytes(2, "big")

    def classify(self, frame: memoryview) -> Kind:
        """Tell what an Ethernet frame is, of which at least the headers were stored."""
        ether_type = int.from_bytes(frame[12:14], "big")
        if ether_type == _ARP:
            return Kind.NEIGHBOUR
        if ether_type not in (_IPV4, _IPV6):
            return Kind.OTHER
        return self._classify_packet(frame[_ETHERNET_HEADER:])

    def _classify_packet(self, packet: memoryview) -> Kind:
        start = _start(packet)
        try:
            headers = inspect(start)
        except RemoteError:
            return Kind.OTHER
        if headers.source in self._inner or headers.destination in self._inner:
            return Kind.CLEAR
        if headers.fragment_offset:
            return Kind.FRAGMENT
        payload = start[headers.header_length :]
        if headers.protocol == _UDP:
            return self._classify_udp(payload)
        if headers.protocol == _ICMPV6 and payload and payload[0] in _NEIGHBOUR_TYPES:
            return Kind.NEIGHBOUR
        kinds = {_ICMP: Kind.ICMP, _ICMPV6: Kind.ICMP, _IGMP: Kind.NEIGHBOUR, _ESP: Kind.ESP}
        return kinds.get(headers.protocol, Kind.OTHER)

    def _classify_udp(self, datagram: memoryview) -> Kind:
        """Demultiplex as the tunnel's own UDP port does (RFC 3948, DESIGN 3)."""
        if self._port not in (datagram[:2], datagram[2:4]):
            return Kind.OTHER
        content = datagram[UDP_HEADER:]
        if content == NAT_KEEPALIVE:
            return Kind.KEEPALIVE
        start = bytes(content[:4])
        if start == KEY_EXCHANGE_MARKER:
            return Kind.KEY_EXCHANGE
        if start == CONTROL_SPI.to_bytes(4, "big"):
            return Kind.SESSION_CONTROL
        return Kind.ESP if len(start) == 4 else Kind.OTHER


def _start(packet: memoryview) -> memoryview:
    """
    Return the first bytes of a packet as a packet of its own: captures are cut off, and `inspect` is strict.
    """
    start = bytearray(packet[:_HEADERS])
    if len(start) >= IP_HEADER[6] and start[0] >> 4 == 6:
        start[4:6] = (len(start) - IP_HEADER[6]).to_bytes(2, "big")
    elif len(start) >= IP_HEADER[4]:
        start[2:4] = len(start).to_bytes(2, "big")
    return memoryview(start)
