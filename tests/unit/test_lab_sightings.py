"""Control traffic seen on the client's link, and what is made of it."""

from ipaddress import IPv4Address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.keyexchange.tokens import Envelope
from rvpn.lab.records import Sighting
from rvpn.lab.sightings import KEY_EXCHANGE, Judgement, judge, read
from rvpn.session.session_control import CONTROL_KEY_SIZE, ControlPacket, Kind, encode

CLIENT, GATEWAY = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.21")
OTHER = int(GATEWAY) + 1


def frame(source: IPv4Address, destination: IPv4Address, payload: bytes) -> bytes:
    """Return an Ethernet frame with a datagram."""
    header = b"\x45" + bytes(8) + b"\x11" + bytes(2) + source.packed + destination.packed
    return bytes(12) + b"\x08\0" + header + bytes(8) + payload


def control(kind: Kind, sequence: int, in_reply_to: int = 0) -> bytes:
    """Return a session control packet."""
    packet = ControlPacket(kind, 0x1234, sequence, in_reply_to=in_reply_to)
    return encode(packet, bytes(CONTROL_KEY_SIZE))


class ReadTests(SynchronousTestCase):
    """`read` reads what the codecs write."""

    def test_control(self) -> None:
        """A heartbeat has its own sequence, an answer that of the heartbeat; a gateway its address."""
        seen = read(frame(CLIENT, GATEWAY, control(Kind.HEARTBEAT, 7)), 1.5, CLIENT.packed)
        self.assertEqual(seen, Sighting(1.5, int(GATEWAY), Kind.HEARTBEAT, True, 7))
        seen = read(frame(GATEWAY, CLIENT, control(Kind.ANSWER, 3, 7)), 1.6, CLIENT.packed)
        self.assertEqual(seen, Sighting(1.6, int(GATEWAY), Kind.ANSWER, False, 7))

    def test_exchange(self) -> None:
        """A key exchange has its id."""
        (datagram,) = Envelope(1, b"\0\0\0\0\0\0\1\2").fragments(0, b"token")
        seen = read(frame(CLIENT, GATEWAY, datagram), 2.0, CLIENT.packed)
        self.assertEqual(seen, Sighting(2.0, int(GATEWAY), KEY_EXCHANGE, True, 258))

    def test_short(self) -> None:
        """What is too short is left out."""
        self.assertIsNone(read(frame(CLIENT, GATEWAY, b"\xff\xff\xff\xff\1"), 0, CLIENT.packed))


class JudgeTests(SynchronousTestCase):
    """`judge`."""

    def test_answers(self) -> None:
        """Late is what comes late, never, or from another gateway; a sequence may come again."""
        heartbeats = [
            Sighting(0.0, 1, Kind.HEARTBEAT, True, 1),
            Sighting(1.0, 1, Kind.HEARTBEAT, True, 2),
            Sighting(2.0, 1, Kind.HEARTBEAT, True, 3),
            Sighting(3.0, 1, Kind.HEARTBEAT, True, 4),
            Sighting(9.0, 1, Kind.HEARTBEAT, True, 1),
        ]
        answers = [
            Sighting(0.01, 1, Kind.ANSWER, False, 1),
            Sighting(1.07, 1, Kind.ANSWER, False, 2),
            Sighting(2.01, OTHER, Kind.ANSWER, False, 3),
            Sighting(9.02, 1, Kind.ANSWER, False, 1),
        ]
        found = judge([*answers, *heartbeats], response=0.05)
        self.assertEqual((found.heartbeats, found.late), (5, 3))
        self.assertAlmostEqual(found.longest_answer, 0.07)

    def test_exchanges(self) -> None:
        """An exchange lasts from its first datagram to its last, whoever sent them."""
        seen = [Sighting(when, 1, KEY_EXCHANGE, when < 2, 5 + (when > 3)) for when in (1.0, 1.5, 2.25, 4.0)]
        self.assertEqual(judge(seen, 0.05), Judgement(0, 0, 0.0, 2, 1.25))
