"""Session control packets: layout, authentication, and channels."""

from hashlib import blake2b

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import DropReason, RemoteError
from rvpn.session.session_control import (
    CONTROL_KEY_SIZE,
    CONTROL_SIZE,
    ControlChannel,
    ControlPacket,
    Kind,
    Status,
    decode,
    encode,
    session_spi,
)

KEY = bytes(range(CONTROL_KEY_SIZE))
OTHER_KEY = KEY[::-1]
PACKET = ControlPacket(
    Kind.CLAIM, 0x1234ABCD, 7, Status.DRAINING, in_reply_to=5, generation=0x400000006553F1000A1B2C3D
)

packets = st.builds(
    ControlPacket,
    kind=st.sampled_from(Kind),
    session=st.integers(0, 2**32 - 1),
    sequence=st.integers(0, 2**64 - 1),
    status=st.sampled_from(Status),
    in_reply_to=st.integers(0, 2**64 - 1),
    generation=st.integers(0, (1 << 96) - 1),
)


def signed(body: str, key: bytes = KEY) -> bytes:
    """Return the bytes of a packet with a correct tag and whatever content."""
    content = bytes.fromhex(body)
    return content + blake2b(content, digest_size=16, key=key, person=b"rvpn control").digest()


class ControlTestCase(SynchronousTestCase):
    """An assert for what is refused."""

    def assert_refused(self, reason: DropReason, datagram: bytes) -> None:
        """The datagram does not decode, for the reason."""
        with self.assertRaises(RemoteError) as caught:
            decode(datagram, KEY)
        self.assertEqual(caught.exception.reason, reason)


class Codec(ControlTestCase):
    """DESIGN 6."""

    def test_layout(self) -> None:
        """The bytes are those of the module's table."""
        body = "ffffffff 05 01 0000 1234abcd 0000000000000007 0000000000000005 400000006553f1000a1b2c3d"
        self.assertEqual(encode(PACKET, KEY), signed(body))
        self.assertEqual(CONTROL_SIZE, 56)

    def test_numbers(self) -> None:
        """The numbers on the wire stay what they are, and statuses are in order (X4)."""
        self.assertEqual(
            [kind.name for kind in sorted(Kind)],
            ["HEARTBEAT", "ANSWER", "CHALLENGE", "RESPONSE", "CLAIM", "CLOSE", "STATUS", "OWNER", "ACK"],
        )
        self.assertEqual((min(Kind), max(Kind)), (1, 9))
        self.assertTrue(Status.OK < Status.DRAINING < Status.LAN_DOWN)

    @settings(derandomize=True, deadline=None)
    @given(packet=packets, key=st.binary(min_size=CONTROL_KEY_SIZE, max_size=CONTROL_KEY_SIZE))
    def test_round_trip(self, packet: ControlPacket, key: bytes) -> None:
        """Every packet comes back, from bytes and from a memoryview, and all have the same length."""
        datagram = encode(packet, key)
        self.assertEqual(len(datagram), CONTROL_SIZE)
        self.assertEqual(decode(datagram, key), packet)
        self.assertEqual(decode(memoryview(datagram), key), packet)
        self.assertEqual(session_spi(datagram), packet.session)

    def test_tampering(self) -> None:
        """A packet with any one bit changed is refused."""
        datagram = encode(PACKET, KEY)
        for bit in range(CONTROL_SIZE * 8):
            forged = bytearray(datagram)
            forged[bit // 8] ^= 1 << bit % 8
            # Without its SPI it is no session control at all.
            expected = DropReason.MALFORMED_CONTROL if bit < 32 else DropReason.BAD_CONTROL_TAG
            self.assert_refused(expected, bytes(forged))

    def test_other_key(self) -> None:
        """Another key's packet is refused."""
        self.assert_refused(DropReason.BAD_CONTROL_TAG, encode(PACKET, OTHER_KEY))

    def test_lengths(self) -> None:
        """One byte less or more than CONTROL_SIZE is refused before any cryptography."""
        datagram = encode(PACKET, KEY)
        for length in range(CONTROL_SIZE):
            self.assert_refused(DropReason.SHORT_DATAGRAM, datagram[:length])
        self.assert_refused(DropReason.MALFORMED_CONTROL, datagram + b"\0")

    def test_authentic_nonsense(self) -> None:
        """A peer's unknown kinds and statuses and a reserved field that is not zero are refused."""
        rest = "1234abcd 0000000000000001 0000000000000000 000000000000000000000000"
        for start in ("00 00 0000", "0a 00 0000", "01 03 0000", "01 00 0001", "01 00 8000"):
            self.assert_refused(DropReason.MALFORMED_CONTROL, signed(f"ffffffff {start} {rest}"))

    @settings(derandomize=True, deadline=None)
    @given(rest=st.binary(max_size=2 * CONTROL_SIZE))
    def test_garbage(self, rest: bytes) -> None:
        """Bytes that nobody signed raise `RemoteError` and no other exception."""
        with self.assertRaises(RemoteError):
            decode(b"\xff\xff\xff\xff" + rest, KEY)

    @settings(derandomize=True, deadline=None)
    @given(
        start=st.tuples(st.integers(0, 10), st.integers(0, 3), st.just(0), st.integers(0, 1)),
        rest=st.binary(min_size=CONTROL_SIZE - 24, max_size=CONTROL_SIZE - 24),
    )
    def test_signed_garbage(self, start: tuple[int, ...], rest: bytes) -> None:
        """Of what a peer signed, nothing but `RemoteError` or a packet comes."""
        datagram = signed("ffffffff" + bytes(start).hex() + rest.hex())
        try:
            self.assertEqual(encode(decode(datagram, KEY), KEY), datagram)
        except RemoteError as error:
            self.assertEqual(error.reason, DropReason.MALFORMED_CONTROL)


class Channel(SynchronousTestCase):
    """The two ends of an SA pair."""

    def setUp(self) -> None:
        """Join a client's and a gateway's channel."""
        self.client = ControlChannel(0x1111, send_key=KEY, receive_key=OTHER_KEY)
        self.gateway = ControlChannel(0x2222, send_key=OTHER_KEY, receive_key=KEY)

    def assert_refused(self, reason: DropReason, channel: ControlChannel, datagram: bytes) -> None:
        """The channel refuses the datagram for the reason."""
        with self.assertRaises(RemoteError) as caught:
            channel.receive(datagram)
        self.assertEqual(caught.exception.reason, reason)

    def test_exchange(self) -> None:
        """A heartbeat names the receiver's session, and its answer the heartbeat (R10)."""
        heartbeat = self.client.send(Kind.HEARTBEAT)
        self.assertEqual(session_spi(heartbeat), 0x1111)
        received = self.gateway.receive(heartbeat)
        self.assertEqual(received, ControlPacket(Kind.HEARTBEAT, 0x1111, self.client.sequence))
        answer = self.gateway.send(Kind.ANSWER, Status.LAN_DOWN, in_reply_to=received.sequence)
        self.assertEqual(
            self.client.receive(answer), ControlPacket(Kind.ANSWER, 0x2222, 1, Status.LAN_DOWN, in_reply_to=1)
        )

    def test_repetition_is_a_new_packet(self) -> None:
        """A claim that is repeated for want of its ack passes the window again."""
        first, second = (self.client.send(Kind.CLAIM, generation=99) for _ in range(2))
        received = [self.gateway.receive(datagram) for datagram in (second, first)]
        self.assertEqual([(packet.sequence, packet.generation) for packet in received], [(2, 99), (1, 99)])

    def test_replay(self) -> None:
        """A packet is received once."""
        datagram = self.client.send(Kind.CLOSE)
        self.gateway.receive(datagram)
        self.assert_refused(DropReason.REPLAYED_CONTROL, self.gateway, datagram)

    def test_sequence_zero(self) -> None:
        """Sequences begin at 1: a peer's 0 is refused, so that `in_reply_to` 0 can mean none."""
        datagram = encode(ControlPacket(Kind.CLOSE, 0x1111, 0), KEY)
        self.assert_refused(DropReason.REPLAYED_CONTROL, self.gateway, datagram)

    def test_highest_sequence(self) -> None:
        """A peer that jumps to the last sequence there is costs no more than any other."""
        self.gateway.receive(encode(ControlPacket(Kind.CLOSE, 0x1111, 2**64 - 1), KEY))
        self.assert_refused(DropReason.REPLAYED_CONTROL, self.gateway, self.client.send(Kind.CLOSE))

    def test_reflection(self) -> None:
        """What a channel sent it does not take back."""
        self.assert_refused(DropReason.BAD_CONTROL_TAG, self.client, self.client.send(Kind.STATUS))

    def test_forgery_does_not_move_the_window(self) -> None:
        """A forgery with a high sequence leaves the window where it was."""
        forged = encode(ControlPacket(Kind.CLOSE, 0x1111, 2**60), OTHER_KEY)
        self.assert_refused(DropReason.BAD_CONTROL_TAG, self.gateway, forged)
        self.gateway.receive(self.client.send(Kind.CLOSE))

    def test_keys(self) -> None:
        """Keys have one size, and none is in the repr."""
        with self.assertRaises(ValueError):
            ControlChannel(1, KEY[:16], OTHER_KEY)
        with self.assertRaises(ValueError):
            ControlChannel(1, KEY, b"")
        self.assertEqual(repr(self.client), "ControlChannel(peer_session=0x00001111, sequence=0)")
