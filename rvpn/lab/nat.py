"""
A NAT in front of the client, as a calculation: IPv4 or IPv6, UDP ports, ICMP errors and checksums included.

    from the client -> outbound -> source is the public address, UDP source ports are drawn
    to the public address -> inbound -> the client's address and ports, or None where no mapping exists

`rebind` forgets every mapping and takes another public address, as a home router does after a restart: the
peer then sees the same client come from elsewhere, and what is sent to the old address is lost. The client is
the only host behind it, so a public address belongs to it alone and needs no state but for the ports.
"""

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from itertools import chain
from random import Random
from struct import Struct

from rvpn.datapath.packet import checksum

_WORD = Struct("!H")
_UDP, _TCP, _ICMP, _ICMPV6, _FRAGMENT = 17, 6, 1, 58, 44
#: Where the checksum is in headers that have one over the addresses too.
_CHECKSUM_OFFSET = {_UDP: 6, _TCP: 16, _ICMPV6: 2}
#: ICMP errors, by protocol; they quote the packet that they are about (RFC 792, RFC 4443).
_ERRORS = {_ICMP: frozenset((3, 11, 12)), _ICMPV6: frozenset((1, 2, 3, 4))}
_QUOTE_OFFSET = 8
_PORTS = range(1024, 65536)

PortMap = Callable[[int], int | None]


class Nat:
    """The mappings of one client, from its packed address to an address out of `network`."""

    def __init__(self, client: bytes, network: IPv4Network | IPv6Network, source: Random) -> None:
        self._client, self._network, self._source = client, network, source
        self._ports: dict[int, int] = {}
        self._clients: dict[int, int] = {}
        self.rebind()

    def rebind(self) -> None:
        """Forget every mapping and take another public address."""
        before = getattr(self, "public", b"")
        while (drawn := self._network[self._source.randrange(1, 255)].packed) == before:
            pass
        #: The public address, packed.
        self.public = drawn
        self._ports.clear()
        self._clients.clear()

    def outbound(self, packet: bytes) -> bytes:
        """Return the client's packet as the Internet sees it; packets of others as they are."""
        changed = _Packet(packet)
        if changed.source != self._client:
            return packet
        changed.rewrite(True, self.public, self._public_port)
        changed.rewrite_quote(False, self.public, self._public_port)
        return bytes(changed.data)

    def inbound(self, packet: bytes) -> bytes | None:
        """
        Return a packet for the client with its own address, None for a forgotten mapping, others as they are.
        """
        changed = _Packet(packet)
        if changed.destination != self.public:
            inside_network = int.from_bytes(changed.destination, "big") >> self._host_bits == self._prefix
            return None if inside_network else packet
        mapped = changed.rewrite(False, self._client, self._clients.get)
        quoted = changed.rewrite_quote(True, self._client, self._clients.get)
        return bytes(changed.data) if mapped and quoted else None

    @property
    def _host_bits(self) -> int:
        return self._network.max_prefixlen - self._network.prefixlen

    @property
    def _prefix(self) -> int:
        return int(self._network.network_address) >> self._host_bits

    def _public_port(self, port: int) -> int:
        if port not in self._ports:
            drawn = self._source.choice(_PORTS)
            free = next(
                each for each in chain(range(drawn, _PORTS.stop), _PORTS) if each not in self._clients
            )
            self._ports[port], self._clients[free] = free, port
        return self._ports[port]


class _Packet:
    """An IP packet, whole or quoted, whose addresses and ports can be rewritten."""

    def __init__(self, packet: bytes | bytearray) -> None:
        self.data = bytearray(packet)
        self.four = packet[0] >> 4 == 4
        self.first = True  # whether it has the transport header: fragments behind the first have none
        if self.four:
            self.length, self.protocol = (packet[0] & 15) * 4, packet[9]
            self.first = not _WORD.unpack_from(packet, 6)[0] & 0x1FFF
        else:
            self.length, self.protocol = 40, packet[6]
            if self.protocol == _FRAGMENT:
                self.length, self.protocol = 48, packet[40]
                self.first = not _WORD.unpack_from(packet, 42)[0] & 0xFFF8

    @property
    def source(self) -> bytes:
        return bytes(self.data[self._place(True)])

    @property
    def destination(self) -> bytes:
        return bytes(self.data[self._place(False)])

    def rewrite(self, at_source: bool, address: bytes, map_port: PortMap) -> bool:
        """Replace source or destination; return whether its port, if it has one, is mapped."""
        place = self._place(at_source)
        old, self.data[place] = bytes(self.data[place]), address
        new = address
        if self.four:
            self._adjust(10, old, new)
        if self.first and self.protocol == _UDP and len(self.data) >= self.length + 4:
            at = self.length if at_source else self.length + 2
            (port,) = _WORD.unpack_from(self.data, at)
            mapped = map_port(port)
            if mapped is None:
                return False
            _WORD.pack_into(self.data, at, mapped)
            old, new = old + _WORD.pack(port), new + _WORD.pack(mapped)
        if self.first and self.protocol in _CHECKSUM_OFFSET:
            self._adjust(self.length + _CHECKSUM_OFFSET[self.protocol], old, new)
        return True

    def rewrite_quote(self, at_source: bool, address: bytes, map_port: PortMap) -> bool:
        """
        Replace an address in the packet that an ICMP error quotes; return as `rewrite`, True for no error.
        """
        start = self.length + _QUOTE_OFFSET
        if len(self.data) < start + (20 if self.four else 40) or not self._is_error():
            return True
        quote = _Packet(self.data[start:])
        mapped = quote.rewrite(at_source, address, map_port)
        self.data[start:] = quote.data
        self._complete_icmp()
        return mapped

    def _is_error(self) -> bool:
        return self.first and self.data[self.length] in _ERRORS.get(self.protocol, ())

    def _place(self, at_source: bool) -> slice:
        start, size = (12, 4) if self.four else (8, 16)
        return slice(start, start + size) if at_source else slice(start + size, start + 2 * size)

    def _adjust(self, at: int, old: bytes, new: bytes) -> None:
        """Update a checksum for words that changed (RFC 1624), if it is there at all."""
        if len(self.data) < at + 2:
            return
        (value,) = _WORD.unpack_from(self.data, at)
        if value == 0 and self.protocol == _UDP and at > self.length:
            return  # the sender computed none (RFC 768)
        total = (0xFFFF - value) - int.from_bytes(old, "big") + int.from_bytes(new, "big")
        # 0 and 0xFFFF mean the same, but that 0 in UDP means no checksum.
        _WORD.pack_into(self.data, at, 0xFFFF - total % 0xFFFF)

    def _complete_icmp(self) -> None:
        at = self.length + 2
        _WORD.pack_into(self.data, at, 0)
        message = bytes(self.data[self.length :])
        pseudo = (
            b"" if self.four else self.source + self.destination + Struct("!II").pack(len(message), _ICMPV6)
        )
        _WORD.pack_into(self.data, at, checksum(pseudo + message))
