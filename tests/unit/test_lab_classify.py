"""What the lab's captures count as what: frames made by scapy, capture files read by scapy."""

import io
import logging
from itertools import product
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.classify import Classifier, Kind
from rvpn.lab.pcap import PcapWriter
from rvpn.lab.topology import INNER_ADDRESSES

# Importing scapy reads the machine's interfaces and warns about what it finds missing.
logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6MLReport2, ICMPv6ND_NS, IPv6, IPv6ExtHdrHopByHop  # noqa: E402
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.utils import PcapReader  # noqa: E402

OUTER = (IP(src="192.0.2.1", dst="198.51.100.21"), IPv6(src="2001:db8:0:1::1", dst="2001:db8:0:21::1"))
INNER = (IP(src="10.99.0.1", dst="10.0.0.1"), IPv6(src="fd00:10::1", dst="fd00:99::1"))
TUNNEL = UDP(sport=4500, dport=4500)


class ClassifyTests(SynchronousTestCase):
    """One frame of each kind."""

    def assertKind(self, kind: Kind, packet: Any, stored: int | None = None) -> None:
        """Assert what a packet in an Ethernet frame is, of which so many bytes were stored."""
        frame = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet)[:stored]
        self.assertEqual(Classifier(INNER_ADDRESSES).classify(memoryview(frame)), kind, packet)

    def test_tunnel(self) -> None:
        """The first four bytes behind the tunnel's port tell what a datagram is (DESIGN 3)."""
        starts = {
            b"\x12\x34\x56\x78ciphertext": Kind.ESP,
            b"\0\0\0\0key exchange": Kind.KEY_EXCHANGE,
            b"\xff\xff\xff\xffcontrol": Kind.SESSION_CONTROL,
            b"\xff": Kind.KEEPALIVE,
            b"\xff\xff": Kind.OTHER,
            b"": Kind.OTHER,
        }
        for outer, (start, kind) in product(OUTER, starts.items()):
            self.assertKind(kind, outer / TUNNEL / start)

    def test_behind_nat(self) -> None:
        """A NAT changes one of the ports: the other one tells."""
        for outer in OUTER:
            self.assertKind(Kind.ESP, outer / UDP(sport=23456, dport=4500) / b"\x12\x34\x56\x78")
            self.assertKind(Kind.ESP, outer / UDP(sport=4500, dport=23456) / b"\x12\x34\x56\x78")

    def test_clear(self) -> None:
        """Whatever names the client's inner address is in clear, also where it looks like the tunnel."""
        for inner in INNER:
            self.assertKind(Kind.CLEAR, inner / TCP() / b"GET / HTTP/1.1")
            self.assertKind(Kind.CLEAR, inner / TUNNEL / b"\x12\x34\x56\x78")

    def test_other_traffic(self) -> None:
        """Other UDP and TCP, ICMP, fragments and raw ESP are told apart."""
        for outer in OUTER:
            self.assertKind(Kind.OTHER, outer / UDP(sport=53, dport=53) / b"\x12\x34\x56\x78")
            self.assertKind(Kind.OTHER, outer / TCP(sport=4500, dport=4500))
        self.assertKind(Kind.ICMP, OUTER[0] / ICMP())
        self.assertKind(Kind.ICMP, OUTER[1] / ICMPv6EchoRequest())
        self.assertKind(Kind.FRAGMENT, IP(src="192.0.2.1", dst="198.51.100.21", frag=5, proto=17) / b"rest")
        self.assertKind(Kind.ESP, IP(src="192.0.2.1", dst="198.51.100.21", proto=50) / b"\x12\x34\x56\x78")

    def test_neighbours(self) -> None:
        """ARP, neighbour discovery and listener reports are the link's own."""
        self.assertKind(Kind.NEIGHBOUR, ARP())
        self.assertKind(Kind.NEIGHBOUR, OUTER[1] / ICMPv6ND_NS())
        self.assertKind(Kind.NEIGHBOUR, OUTER[1] / IPv6ExtHdrHopByHop() / ICMPv6MLReport2())

    def test_cut_off(self) -> None:
        """A long frame of which only the start was stored is told by its headers."""
        for outer in OUTER:
            self.assertKind(Kind.ESP, outer / TUNNEL / (b"\x12\x34\x56\x78" + bytes(9000)), stored=2000)
        for inner in INNER:
            self.assertKind(Kind.CLEAR, inner / TCP() / bytes(9000), stored=2000)

    def test_rubbish(self) -> None:
        """No frame is too short or too strange."""
        whole = bytes(Ether() / OUTER[0] / TUNNEL / b"\x12\x34\x56\x78")
        for length in range(len(whole) - 4):
            kind = Classifier(INNER_ADDRESSES).classify(memoryview(whole[:length]))
            self.assertEqual(kind, Kind.OTHER)


class PcapTests(SynchronousTestCase):
    """The capture file."""

    def test_read_back(self) -> None:
        """Scapy reads frames, times and full lengths."""
        file = io.BytesIO()
        writer = PcapWriter(file, 2048)
        frame = bytes(Ether() / OUTER[0] / TUNNEL / b"\x12\x34\x56\x78")
        writer.write(1_700_000_000, 123_456_789, frame, len(frame))
        writer.write(1_700_000_001, 5, memoryview(frame)[:40], len(frame))
        file.seek(0)
        first, second = PcapReader(file)
        self.assertEqual(bytes(first), frame)
        self.assertAlmostEqual(float(first.time), 1_700_000_000.123456789, places=6)
        self.assertEqual((len(bytes(second)), second.wirelen), (40, len(frame)))
