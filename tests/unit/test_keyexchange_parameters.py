"""`rvpn.keyexchange.parameters`: what both ends say survives the wire, and nothing else is taken for it."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import MAX_SPI, MIN_SPI, TransformID
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import Parameters
from rvpn.keyexchange.parameters import (
    INITIATOR_LENGTH,
    MAX_ADDRESSES,
    MAX_PARAMETERS,
    MAX_REFUSAL,
    MAX_TRANSFORMS,
    decode,
    encode,
)

addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
parameters = st.builds(
    Parameters,
    spi=st.integers(MIN_SPI, MAX_SPI),
    transforms=st.lists(st.sampled_from(list(TransformID)), max_size=MAX_TRANSFORMS).map(tuple),
    inner_addresses=st.lists(addresses, max_size=MAX_ADDRESSES).map(tuple),
    lifetime=st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000),
    refusal=st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=MAX_REFUSAL),
    partial_checksums=st.booleans(),
    trains=st.booleans(),
)
SPI = b"\1\0\4\0\0\4\0"


class RoundTripTests(SynchronousTestCase):
    """What is encoded is decoded."""

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(parameters, st.integers(0, 400))
    def test_round_trip(self, value: Parameters, at_least: int) -> None:
        """Any parameters come back equal, padded or not, and padding makes them as long as asked."""
        encoded = encode(value, at_least)
        self.assertEqual(decode(encoded), value)
        self.assertGreaterEqual(len(encoded), at_least)
        self.assertLessEqual(len(encoded), max(len(encode(value)), at_least + 2))

    def test_order_of_addresses(self) -> None:
        """Addresses of both versions keep their order."""
        mixed = (IPv6Address("::1"), IPv4Address("10.0.0.1"), IPv6Address("::2"))
        self.assertEqual(decode(encode(Parameters(1024, (), mixed))).inner_addresses, mixed)

    def test_longest_answer(self) -> None:
        """The longest answer is no longer than what an initiator pads to."""
        answer = Parameters(
            spi=MAX_SPI,
            transforms=(TransformID.AES_GCM_16_256,),
            inner_addresses=(IPv6Address("2001:db8::1"),) * MAX_ADDRESSES,
            lifetime=7200.0,
            refusal="x" * MAX_REFUSAL,
        )
        self.assertLessEqual(len(encode(answer)), INITIATOR_LENGTH)

    def test_long_refusal(self) -> None:
        """A refusal that is too long is cut, between two characters."""
        decoded = decode(encode(Parameters(spi=0, transforms=(), refusal="x" + "ä" * MAX_REFUSAL)))
        self.assertEqual(decoded.refusal, "x" + "ä" * ((MAX_REFUSAL - 1) // 2))


class LaterVersionTests(SynchronousTestCase):
    """What a later version may add is skipped."""

    def test_unknown_type(self) -> None:
        """An unknown type changes nothing."""
        self.assertEqual(decode(SPI + b"\x63\0\3abc").spi, 1024)

    def test_unknown_capability(self) -> None:
        """The bits of capabilities that nobody knows yet change nothing."""
        for bits in (0, 1, 2, 0xFC, 0xFD, 0xFF):
            told = decode(SPI + b"\x0a\0\1" + bytes([bits]))
            partial, trains = bool(bits & 1), bool(bits & 2)
            self.assertEqual(told, Parameters(1024, (), partial_checksums=partial, trains=trains))

    def test_unknown_transform(self) -> None:
        """An unknown transform in an offer is passed over."""
        offer = decode(SPI + b"\2\0\4\xff\xff\0\x14")
        self.assertEqual(offer.transforms, (TransformID.AES_GCM_16_256,))


class MalformedTests(SynchronousTestCase):
    """Anything else is refused as the peer's fault."""

    def test_refused(self) -> None:
        """Each of these breaks one rule."""
        cases = {
            "no SPI": b"",
            "SPI reserved": b"\1\0\4\0\0\0\xff",
            "SPI of the control packets": b"\1\0\4\xff\xff\xff\xff",
            "SPI of three bytes": b"\1\0\3\0\4\0",
            "header cut short": SPI + b"\2\0",
            "value cut short": SPI + b"\2\0\4\0\x14",
            "duplicate": SPI + SPI,
            "duplicate padding": SPI + b"\0\0\0" * 2,
            "half a transform": SPI + b"\2\0\3\0\x14\0",
            "too many transforms": SPI + b"\2\0\x22" + b"\0\x14" * 17,
            "IP version 5": SPI + b"\3\0\5\5\1\2\3\4",
            "half an address": SPI + b"\3\0\4\4\1\2\3",
            "too many addresses": SPI + b"\3\0\x2d" + b"\4\1\2\3\4" * 9,
            "lifetime of one byte": SPI + b"\4\0\1\1",
            "refusal not UTF-8": SPI + b"\5\0\1\xff",
            "refusal that forges a line of log": SPI + b"\5\0\3a\nb",
            "refusal too long": SPI + b"\5\0\x81" + b"x" * 129,
            "capabilities of no byte": SPI + b"\x0a\0\0",
            "capabilities of two bytes": SPI + b"\x0a\0\2\1\1",
            "too long": SPI + b"\0\4\0" + bytes(MAX_PARAMETERS),
        }
        for name, data in cases.items():
            error = self.assertRaises(RemoteError, decode, data)
            self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE, name)

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.binary(max_size=200) | parameters.map(encode), st.data())
    def test_garbage(self, encoded: bytes, data: st.DataObject) -> None:
        """Random bytes and mutations of true ones raise nothing but RemoteError."""
        mutated = bytearray(encoded)
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] ^= data.draw(st.integers(1, 255))
        try:
            decode(bytes(mutated))
        except RemoteError as error:
            self.assertEqual(error.reason, DropReason.MALFORMED_KEY_EXCHANGE)
