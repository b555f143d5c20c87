"""ICMP echo as bytes: RFC 792 and RFC 4443, and whatever else a raw socket may bring."""

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest
from twisted.trial.unittest import SynchronousTestCase

from rvpn.net.probe import echo_reply_to, echo_request

IDENTIFIER = 0xBEEF


class RequestTests(SynchronousTestCase):
    """What goes out, read by scapy."""

    def test_ipv4(self) -> None:
        """An IPv4 request has type 8, our numbers, and a correct checksum."""
        request = echo_request(4, IDENTIFIER, 7)
        self.assertEqual(request, bytes(ICMP(type=8, id=IDENTIFIER, seq=7)))

    def test_ipv6(self) -> None:
        """An IPv6 request has type 128 and leaves the checksum to the kernel (RFC 3542 section 3.1)."""
        self.assertEqual(
            echo_request(6, IDENTIFIER, 7), bytes(ICMPv6EchoRequest(id=IDENTIFIER, seq=7, cksum=0))
        )


class ReplyTests(SynchronousTestCase):
    """What comes in, made by scapy."""

    def test_ipv4(self) -> None:
        """An IPv4 reply comes behind its IP header, with options or without."""
        for options in b"", bytes(40):
            packet = bytes(IP(options=options) / ICMP(type=0, id=IDENTIFIER, seq=0xFFFF))
            self.assertEqual(echo_reply_to(4, packet, IDENTIFIER), 0xFFFF)

    def test_ipv6(self) -> None:
        """An IPv6 reply comes without its IP header."""
        self.assertEqual(
            echo_reply_to(6, bytes(ICMPv6EchoReply(id=IDENTIFIER, seq=3, cksum=1)), IDENTIFIER), 3
        )

    def test_not_ours(self) -> None:
        """A reply to somebody else is none, nor is a request, such as our own to this very host."""
        self.assertIsNone(echo_reply_to(4, bytes(IP() / ICMP(type=0, id=IDENTIFIER + 1)), IDENTIFIER))
        self.assertIsNone(echo_reply_to(4, bytes(IP() / ICMP(type=8, id=IDENTIFIER)), IDENTIFIER))
        self.assertIsNone(echo_reply_to(6, bytes(ICMPv6EchoRequest(id=IDENTIFIER, cksum=1)), IDENTIFIER))

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.sampled_from([4, 6]), st.binary(max_size=80))
    def test_garbage(self, version: int, packet: bytes) -> None:
        """Whatever comes raises nothing, and is no reply unless it has the bytes of one."""
        sequence = echo_reply_to(version, packet, IDENTIFIER)
        if sequence is not None:
            self.assertIn(IDENTIFIER.to_bytes(2, "big") + sequence.to_bytes(2, "big"), packet)
