"""The layout of rtnetlink messages; what the kernel makes of them is tests/integration/test_net_host.py's."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.net.rtnetlink import HOP, attribute, attributes, hops, number, text


class AttributeTests(SynchronousTestCase):
    """`attribute` writes what `attributes` reads."""

    def test_values(self) -> None:
        """Numbers have 32 bits in host order, names end with a zero, and bytes are as they are."""
        data = attribute(1, 0x12345678) + attribute(2, "outside") + attribute(3, b"\1\2\3\4\5")
        self.assertEqual(len(data) % 4, 0)
        found = attributes(data)
        self.assertEqual(found[1], struct.pack("=I", 0x12345678))
        self.assertEqual((number(found[1]), number(None)), (0x12345678, None))
        self.assertEqual((found[2], text(found[2])), (b"outside\0", "outside"))
        self.assertEqual(found[3], b"\1\2\3\4\5")

    def test_nested(self) -> None:
        """An attribute may hold others; the flag that says so is no part of its kind."""
        found = attributes(attribute(0x8000 | 52, attribute(53, "a name")))
        self.assertEqual(attributes(found[52]), {53: b"a name\0"})

    def test_hops(self) -> None:
        """A route over several gateways has one hop for each."""
        ways = [(3, attribute(5, b"\x0a\0\0\1")), (7, b"")]
        data = b"".join(HOP.pack(HOP.size + len(way), 0, 0, index) + way for index, way in ways)
        self.assertEqual(hops(data), [(3, {5: b"\x0a\0\0\1"}), (7, {})])
        self.assertEqual(hops(b""), [])

    @settings(derandomize=True, deadline=None)
    @given(st.binary(max_size=64))
    def test_any(self, data: bytes) -> None:
        """Whatever bytes there are, reading them ends."""
        attributes(data)
        hops(data)
