"""Inner packets: what is read from them, and the ICMP errors that answer them."""

from collections.abc import Callable
from ipaddress import ip_address
from struct import pack
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import MIN_TUNNEL_MTU, NextHeader
from rvpn.datapath.packet import (
    MAX_EXTENSIONS,
    Headers,
    addresses,
    checksum,
    inspect,
    too_big,
    unreachable,
)
from rvpn.errors import DropReason, RemoteError

HOST = {4: "10.1.0.2", 6: "fd00::2"}
TARGET = {4: "10.2.0.7", 6: "fd01::7"}
NODE = {4: ip_address("10.1.0.1").packed, 6: ip_address("fd00::1").packed}
ICMP = {4: 1, 6: 58}
UDP = 17


def ipv4(
    payload: bytes = b"payload!",
    source: str = HOST[4],
    destination: str = TARGET[4],
    protocol: int = UDP,
    fragment: int = 0,
    options: bytes = b"",
) -> memoryview:
    """Return an IPv4 packet; `fragment` is its flags and offset field."""
    length = 20 + len(options)
    fields = 0x40 | length // 4, 0, length + len(payload), 1, fragment, 64, protocol, 0
    header = pack("!BBHHHBBH", *fields) + ip_address(source).packed + ip_address(destination).packed
    return memoryview(header + options + payload)


def ipv6(
    payload: bytes = b"payload!", source: str = HOST[6], destination: str = TARGET[6], protocol: int = UDP
) -> memoryview:
    """Return an IPv6 packet; extension headers are part of the payload."""
    header = pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return memoryview(header + ip_address(source).packed + ip_address(destination).packed + payload)


PACKET: dict[int, Callable[..., memoryview]] = {4: ipv4, 6: ipv6}


def naive_checksum(data: bytes) -> int:
    """Add 16-bit words with end-around carry, as RFC 1071 section 1 words it."""
    total = 0
    for position in range(0, len(data), 2):
        total += int.from_bytes(data[position : position + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class PacketTestCase(SynchronousTestCase):
    """An assert for packets that lie."""

    def assert_malformed(
        self, call: Callable[[memoryview], Any], packet: bytes | bytearray | memoryview
    ) -> None:
        """The call refuses the packet."""
        with self.assertRaises(RemoteError) as caught:
            call(memoryview(packet))
        self.assertEqual(caught.exception.reason, DropReason.MALFORMED_PACKET)


class Addresses(PacketTestCase):
    """The hot path's reading."""

    def test_both_versions(self) -> None:
        """The next header, the source and the destination are those of the packet."""
        for version, next_header in ((4, NextHeader.IPV4), (6, NextHeader.IPV6)):
            found = addresses(PACKET[version]())
            source, destination = ip_address(HOST[version]), ip_address(TARGET[version])
            self.assertEqual(found, (next_header, source.packed, destination.packed))

    def test_lengths_that_lie(self) -> None:
        """A packet of which a byte is missing, or that has one too many, is refused."""
        for version in (4, 6):
            packet = bytes(PACKET[version]())
            self.assert_malformed(addresses, packet + b"\0")
            for length in range(len(packet)):
                self.assert_malformed(addresses, packet[:length])

    def test_header_length_that_lies(self) -> None:
        """An IPv4 header is at least 20 bytes long and within the packet."""
        for words in (0, 4, 8, 15):
            packet = bytearray(ipv4())
            packet[0] = 0x40 | words
            self.assert_malformed(addresses, packet)
        addresses(ipv4(options=bytes(40)))

    def test_other_versions(self) -> None:
        """What is neither IPv4 nor IPv6 is refused."""
        for version in (0, 5, 7, 15):
            packet = bytearray(ipv6())
            packet[0] = version << 4
            self.assert_malformed(addresses, packet)

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(start=st.sampled_from([b"", b"\x45", b"\x60"]), rest=st.binary(max_size=80))
    def test_garbage(self, start: bytes, rest: bytes) -> None:
        """Garbage raises nothing but `RemoteError`."""
        for call in (addresses, inspect):
            try:
                call(memoryview(start + rest))
            except RemoteError as error:
                self.assertEqual(error.reason, DropReason.MALFORMED_PACKET)


class Inspect(PacketTestCase):
    """The rest of the headers."""

    def test_ipv4(self) -> None:
        """Options, protocol and fragmentation are read."""
        source, destination = ip_address(HOST[4]).packed, ip_address(TARGET[4]).packed
        self.assertEqual(inspect(ipv4()), Headers(4, source, destination, 20, UDP, False, 0))
        packet = ipv4(options=bytes(8), protocol=6, fragment=0x4000)
        self.assertEqual(inspect(packet), Headers(4, source, destination, 28, 6, True, 0))
        self.assertEqual(inspect(ipv4(fragment=0x2003)).fragment_offset, 24)

    def test_ipv6(self) -> None:
        """A plain packet."""
        source, destination = ip_address(HOST[6]).packed, ip_address(TARGET[6]).packed
        self.assertEqual(inspect(ipv6()), Headers(6, source, destination, 40, UDP, True, 0))

    def test_extension_headers(self) -> None:
        """A chain of extension headers is followed to the protocol behind it."""
        hop_by_hop = bytes((51, 1)) + bytes(14)
        authentication = bytes((44, 4)) + bytes(22)  # 24 bytes: RFC 4302 counts words, less two
        fragment = bytes((60, 0, 0, 1)) + bytes(4)  # offset 0, more to come
        destination = bytes((UDP, 0)) + bytes(6)
        chain = hop_by_hop + authentication + fragment + destination
        found = inspect(ipv6(chain + b"payload!", protocol=0))
        self.assertEqual((found.header_length, found.protocol), (40 + 16 + 24 + 8 + 8, UDP))
        self.assertEqual(found.fragment_offset, 0)

    def test_later_fragment(self) -> None:
        """Behind the header of a later fragment there are no headers to follow."""
        fragment = bytes((60, 0)) + (1280 | 1).to_bytes(2, "big") + bytes(4)
        found = inspect(ipv6(fragment + b"\xff" * 8, protocol=44))
        self.assertEqual((found.header_length, found.protocol, found.fragment_offset), (48, 60, 1280))

    def test_chains_that_lie(self) -> None:
        """A chain that leaves the packet, or is longer than any real one, is refused."""
        self.assert_malformed(inspect, ipv6(bytes((UDP, 1)) + bytes(6), protocol=0))
        self.assert_malformed(inspect, ipv6(bytes((UDP, 0)), protocol=60))
        self.assert_malformed(inspect, ipv6(b"", protocol=43))
        longest = (bytes((60, 0)) + bytes(6)) * (MAX_EXTENSIONS - 1) + bytes((UDP, 0)) + bytes(6)
        self.assertEqual(inspect(ipv6(longest, protocol=60)).protocol, UDP)
        self.assert_malformed(inspect, ipv6(bytes((60, 0)) + bytes(6) + longest, protocol=60))


class Checksum(SynchronousTestCase):
    """RFC 1071."""

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(data=st.one_of(st.binary(max_size=70), st.lists(st.sampled_from([0, 255]), max_size=9).map(bytes)))
    def test_agrees_with_the_naive_sum(self, data: bytes) -> None:
        """Odd lengths and both zeros of the one's complement included."""
        self.assertEqual(checksum(data), naive_checksum(data))

    def test_known(self) -> None:
        """The example of RFC 1071 section 3 sums up to ddf2."""
        self.assertEqual(checksum(bytes.fromhex("0001f203f4f5f6f7")), 0xFFFF - 0xDDF2)

    def test_zeros(self) -> None:
        """Nothing but zeros gives ffff, a sum of ffff gives 0."""
        self.assertEqual([checksum(data) for data in (b"", bytes(20), b"\xff\xff")], [0xFFFF, 0xFFFF, 0])


class IcmpErrors(PacketTestCase):
    """RFC 792, RFC 1191, RFC 1812, RFC 4443."""

    def assert_error(
        self, error: bytes | None, packet: memoryview, type_and_code: tuple[int, int], rest: int
    ) -> None:
        """The error is a correct packet from NODE to the packet's sender and quotes the packet's start."""
        assert error is not None
        headers, original = inspect(memoryview(error)), inspect(packet)
        version = original.version
        self.assertEqual((headers.source, headers.destination), (NODE[version], original.source))
        self.assertEqual(headers.protocol, ICMP[version])
        icmp = error[headers.header_length :]
        pseudo_header = b""
        if version == 6:
            pseudo_header = headers.source + headers.destination + pack("!II", len(icmp), 58)
        else:
            self.assertEqual(naive_checksum(error[:20]), 0)
        self.assertEqual(naive_checksum(pseudo_header + icmp), 0)
        self.assertEqual((icmp[0], icmp[1]), type_and_code)
        self.assertEqual(int.from_bytes(icmp[4:8], "big"), rest)
        limit = 576 if version == 4 else MIN_TUNNEL_MTU
        self.assertEqual(icmp[8:], bytes(packet)[: limit - headers.header_length - 8])

    def test_too_big(self) -> None:
        """It tells the MTU and quotes as much as fits into 576 or 1280 bytes (RFC 1812, RFC 4443)."""
        for size in (0, 547, 548, 549, 1232, 1233, 1400):
            for version, type_and_code in ((4, (3, 4)), (6, (2, 0))):
                packet = PACKET[version](bytes(size))
                self.assert_error(too_big(packet, 1390, NODE[version]), packet, type_and_code, 1390)

    def test_unreachable(self) -> None:
        """It says that the host is unreachable (RFC 792), or the address (RFC 4443)."""
        for version, type_and_code in ((4, (3, 1)), (6, (1, 3))):
            packet = PACKET[version]()
            self.assert_error(unreachable(packet, NODE[version]), packet, type_and_code, 0)

    def assert_silent(self, packet: memoryview) -> None:
        """No error answers the packet."""
        version = inspect(packet).version
        self.assertIsNone(too_big(packet, 1280, NODE[version]))
        self.assertIsNone(unreachable(packet, NODE[version]))

    def test_icmp(self) -> None:
        """No error answers an ICMP error, one answers other ICMP messages."""
        for version, errors, others in (
            (4, (3, 4, 5, 11, 12), (0, 8, 13, 255)),
            (6, (0, 1, 2, 3, 4, 127, 137), (128, 129, 135, 255)),
        ):
            for icmp_type in errors:
                self.assert_silent(PACKET[version](bytes((icmp_type, 0)), protocol=ICMP[version]))
            for icmp_type in others:
                packet = PACKET[version](bytes((icmp_type, 0)), protocol=ICMP[version])
                self.assertIsNotNone(unreachable(packet, NODE[version]))

    def test_own_errors(self) -> None:
        """Two nodes cannot answer each other's errors for ever."""
        for version in (4, 6):
            error = too_big(PACKET[version](), 1280, NODE[version])
            assert error is not None
            self.assert_silent(memoryview(error))

    def test_icmp_behind_extension_headers(self) -> None:
        """An ICMPv6 error behind a destination options header is seen as such."""
        self.assert_silent(ipv6(bytes((58, 0)) + bytes(6) + bytes((1, 0)), protocol=60))

    def test_icmp_without_a_type(self) -> None:
        """ICMP that is cut off before its type might be an error, so none answers it."""
        for version in (4, 6):
            self.assert_silent(PACKET[version](b"", protocol=ICMP[version]))

    def test_addresses(self) -> None:
        """No error goes to or on account of an address that is not one host's."""
        for address in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "239.9.9.9", "240.0.0.1", "255.255.255.255"):
            self.assert_silent(ipv4(source=address))
            self.assert_silent(ipv4(destination=address))
        for address in ("::", "::1", "ff02::1"):
            self.assert_silent(ipv6(source=address))
            self.assert_silent(ipv6(destination=address))

    def test_fragments(self) -> None:
        """Of a packet's fragments only the first draws an error."""
        self.assert_silent(ipv4(fragment=1))
        self.assertIsNotNone(unreachable(ipv4(fragment=0x2000), NODE[4]))
        later, first = (bytes((UDP, 0)) + field + bytes(4) for field in (b"\0\x08", b"\0\1"))
        self.assert_silent(ipv6(later, protocol=44))
        self.assertIsNotNone(unreachable(ipv6(first, protocol=44), NODE[6]))

    def test_source_of_the_other_version(self) -> None:
        """Without an own address of the packet's version there is nobody to send the error."""
        self.assertIsNone(too_big(ipv4(), 1280, NODE[6]))
        self.assertIsNone(unreachable(ipv6(), NODE[4]))

    def test_malformed(self) -> None:
        """A packet that lies draws `RemoteError`, not an answer."""
        self.assert_malformed(lambda packet: too_big(packet, 1280, NODE[4]), b"")
        self.assert_malformed(lambda packet: unreachable(packet, NODE[4]), b"\x45")
