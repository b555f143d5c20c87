"""The lab's NAT: every packet that it rewrites is one that scapy would have made with the new addresses."""

import logging
from ipaddress import ip_address
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.nat import Nat
from rvpn.lab.topology import NAT_NETWORKS

# Importing scapy reads the machine's interfaces and warns about what it finds missing.
logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, UDPerror  # noqa: E402, F401
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)

CLIENT = {4: "192.0.2.1", 6: "2001:db8:0:1::1"}
GATEWAY = {4: "198.51.100.21", 6: "2001:db8:0:21::1"}
ROUTER = {4: "192.0.2.254", 6: "2001:db8:0:1::fe"}
IP_LAYER = {4: IP, 6: IPv6}


def parse(data: bytes | None) -> Any:
    """Return the packet as scapy reads it."""
    assert data is not None
    return IP_LAYER[data[0] >> 4](data)


class NatTests(SynchronousTestCase):
    """A client behind a NAT, in both families."""

    def setUp(self) -> None:
        self.nats = {
            version: Nat(ip_address(CLIENT[version]).packed, NAT_NETWORKS[version], Random(1))
            for version in (4, 6)
        }

    def out(self, version: int, payload: Any) -> Any:
        """Send a payload from client to gateway through the NAT; return the packet behind it."""
        packet = IP_LAYER[version](src=CLIENT[version], dst=GATEWAY[version]) / payload
        return parse(self.nats[version].outbound(bytes(packet)))

    def from_gateway(self, version: int, destination: str, payload: Any) -> bytes:
        """Return a packet of the gateway's."""
        return bytes(IP_LAYER[version](src=GATEWAY[version], dst=destination) / payload)

    def assertCorrect(self, packet: Any) -> None:
        """Assert that scapy would compute the same checksums."""
        again = packet.copy()
        for layer in (again, again.payload):
            for name in ("chksum", "cksum"):
                if name in layer.fields:
                    delattr(layer, name)
        self.assertEqual(bytes(packet), bytes(again))

    def test_out(self) -> None:
        """UDP, TCP and ICMP leave with the public address and right checksums."""
        for version, nat in self.nats.items():
            echo = ICMP() if version == 4 else ICMPv6EchoRequest()
            for payload in (UDP(sport=4500, dport=4500) / b"odd", TCP(sport=4500) / b"even", echo / b"ping"):
                packet = self.out(version, payload)
                self.assertEqual(ip_address(packet.src).packed, nat.public)
                self.assertIn(ip_address(packet.src), NAT_NETWORKS[version])
                self.assertEqual(packet.dst, GATEWAY[version])
                self.assertCorrect(packet)

    def test_back(self) -> None:
        """An answer to the public address and port reaches the client at its own."""
        for version, nat in self.nats.items():
            sent = self.out(version, UDP(sport=4500, dport=4500) / b"request")
            answer = (
                IP_LAYER[version](src=sent.dst, dst=sent.src) / UDP(sport=4500, dport=sent.sport) / b"answer"
            )
            packet = parse(nat.inbound(bytes(answer)))
            self.assertEqual((packet.dst, packet[UDP].dport), (CLIENT[version], 4500))
            self.assertEqual(bytes(packet[UDP].payload), b"answer")
            self.assertCorrect(packet)

    def test_port_is_drawn_once(self) -> None:
        """A client's port keeps its public port, and no two ports share one."""
        first = [self.out(4, UDP(sport=port, dport=4500)).sport for port in range(4500, 4600)]
        second = [self.out(4, UDP(sport=port, dport=4501)).sport for port in range(4500, 4600)]
        self.assertEqual(first, second)
        self.assertEqual(len(set(first)), 100)

    def test_unmapped(self) -> None:
        """A datagram to a port that the client never used is dropped."""
        for version, nat in self.nats.items():
            public = str(ip_address(nat.public))
            stray = self.from_gateway(version, public, UDP(sport=4500, dport=4500))
            self.assertIsNone(nat.inbound(stray))

    def test_rebind(self) -> None:
        """After a rebinding the same port comes from elsewhere, and the old address is dead."""
        for version, nat in self.nats.items():
            before = self.out(version, UDP(sport=4500, dport=4500))
            nat.rebind()
            after = self.out(version, UDP(sport=4500, dport=4500))
            self.assertNotEqual(before.src, after.src)
            self.assertNotEqual(before.sport, after.sport)
            late = IP_LAYER[version](src=GATEWAY[version], dst=before.src) / UDP(
                sport=4500, dport=before.sport
            )
            self.assertIsNone(nat.inbound(bytes(late)))

    def test_no_checksum(self) -> None:
        """A UDP checksum that the sender left out stays out (RFC 768)."""
        self.assertEqual(self.out(4, UDP(sport=4500, dport=4500, chksum=0) / b"data")[UDP].chksum, 0)

    def test_checksum_is_never_zero(self) -> None:
        """A computed UDP checksum of zero is sent as 0xFFFF, for every value of the data (RFC 768)."""
        packet = bytearray(bytes(IP(src=CLIENT[4], dst=GATEWAY[4]) / UDP(sport=4500, dport=4500)))
        for value in range(1, 1 << 16):
            packet[26:28] = value.to_bytes(2, "big")
            self.assertNotEqual(self.nats[4].outbound(bytes(packet))[26:28], b"\0\0")

    def test_icmp_error_in(self) -> None:
        """An ICMP error about the client's packet names the client's own address and port when it arrives."""
        for version, nat in self.nats.items():
            sent = self.out(version, UDP(sport=4500, dport=4500) / bytes(1400))
            error = ICMP(type=3, code=4, nexthopmtu=1300) if version == 4 else ICMPv6PacketTooBig(mtu=1300)
            packet = IP_LAYER[version](src=ROUTER[version], dst=sent.src) / error / bytes(sent)[:548]
            got = parse(nat.inbound(bytes(packet)))
            self.assertEqual(got.dst, CLIENT[version])
            quoted = parse(bytes(got)[(28 if version == 4 else 48) :])
            self.assertEqual(
                (quoted.src, quoted.dst, quoted.sport), (CLIENT[version], GATEWAY[version], 4500)
            )
            self.assertCorrect(got)

    def test_icmp_error_out(self) -> None:
        """An ICMP error of the client's quotes its public address and port."""
        for version, nat in self.nats.items():
            sent = self.out(version, UDP(sport=4500, dport=4500))
            datagram = IP_LAYER[version](src=GATEWAY[version], dst=sent.src) / UDP(
                sport=4500, dport=sent.sport
            )
            received = nat.inbound(bytes(datagram))
            assert received is not None
            error = ICMP(type=3, code=3) if version == 4 else ICMPv6PacketTooBig(mtu=1280)
            got = self.out(version, error / received)
            quoted = parse(bytes(got)[(28 if version == 4 else 48) :])
            self.assertEqual((quoted.dst, quoted.dport), (sent.src, sent.sport))
            self.assertCorrect(got)

    def test_fragments(self) -> None:
        """
        Fragments behind the first have addresses alone, which are rewritten, and are else left as they are.
        """
        four = self.out(4, UDP(sport=4500, dport=4500) / bytes(100))
        rest = b"\x11\x94\x11\x94 payload"
        fragment = IP(src=CLIENT[4], dst=GATEWAY[4], proto=17, frag=10) / rest
        got = parse(self.nats[4].outbound(bytes(fragment)))
        self.assertEqual((got.src, bytes(got.payload)), (four.src, rest))
        six = IPv6(src=CLIENT[6], dst=GATEWAY[6]) / IPv6ExtHdrFragment(nh=17, offset=10) / rest
        self.assertEqual(self.nats[6].outbound(bytes(six))[48:], rest)

    def test_others_pass(self) -> None:
        """Packets between others are none of its business."""
        packet = bytes(IP(src=ROUTER[4], dst=GATEWAY[4]) / UDP())
        self.assertEqual(self.nats[4].outbound(packet), packet)
        self.assertEqual(self.nats[4].inbound(packet), packet)
