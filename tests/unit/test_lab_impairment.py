"""Bad networks as calculations: what is lost, late, twice or out of order, and how often."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.impairment import MOST_WAITING, OVERTAKING_TIME, Direction, Impairment, Impairments

GATEWAY, CLIENT = bytes([198, 51, 100, 21]), bytes([192, 0, 2, 1])
OTHER = bytes([198, 51, 100, 22])


def packet(source: bytes, destination: bytes, number: int = 0) -> bytes:
    """Return as much of an IP packet as is looked at, with a number to tell it by."""
    if len(source) == 4:
        return bytes([0x45, *bytes(11), *source, *destination]) + number.to_bytes(4, "big")
    return bytes([0x60, *bytes(7), *source, *destination]) + number.to_bytes(4, "big")


class DirectionTests(SynchronousTestCase):
    """One direction of a path."""

    def departures(self, impairment: Impairment, count: int = 10_000) -> list[tuple[float, ...]]:
        """Return the fates of packets that arrive a millisecond apart."""
        direction = Direction(impairment, Random(1))
        return [direction.departures(number / 1000) for number in range(count)]

    def test_nothing(self) -> None:
        """Without an impairment each packet leaves when it arrives."""
        self.assertEqual(self.departures(Impairment(), 3), [(0.0,), (0.001,), (0.002,)])

    def test_delay(self) -> None:
        """A delay is the same for each packet."""
        self.assertEqual(self.departures(Impairment(delay=1.0), 3), [(1.0,), (1.001,), (1.002,)])

    def test_loss(self) -> None:
        """The share that is lost is the probability, and it is counted."""
        direction = Direction(Impairment(loss=0.02), Random(1))
        lost = sum(not direction.departures(0.0) for _ in range(10_000))
        self.assertEqual(lost, direction.lost)
        self.assertTrue(150 <= lost <= 250, lost)
        self.assertEqual(direction.seen, 10_000)

    def test_all_lost(self) -> None:
        """A probability of one loses everything."""
        self.assertEqual(self.departures(Impairment(loss=1.0), 100), [()] * 100)

    def test_duplicate(self) -> None:
        """A duplicate leaves right behind its original."""
        twice = [fate for fate in self.departures(Impairment(duplicate=0.1)) if len(fate) == 2]
        self.assertTrue(850 <= len(twice) <= 1150, len(twice))
        self.assertTrue(all(first == second for first, second in twice))

    def test_jitter(self) -> None:
        """Jitter delays packets that come one at a time by anything up to its value."""
        direction = Direction(Impairment(delay=0.01, jitter=0.02), Random(1))
        delays = [direction.departures(float(now))[0] - now for now in range(1000)]
        self.assertTrue(0.01 <= min(delays) < 0.011, min(delays))
        self.assertTrue(0.029 < max(delays) < 0.031, max(delays))

    def test_jitter_keeps_order(self) -> None:
        """No packet overtakes the one before it by jitter, and none is late by more than it."""
        times = [when for (when,) in self.departures(Impairment(delay=0.01, jitter=0.02))]
        self.assertEqual(times, sorted(times))
        self.assertTrue(all(when - number / 1000 < 0.031 for number, when in enumerate(times)))

    def test_reorder(self) -> None:
        """The share that is overtaken is the probability; the packets behind are not delayed by it."""
        times = [when for (when,) in self.departures(Impairment(reorder=0.05))]
        late = [number for number, when in enumerate(times) if when > number / 1000]
        self.assertTrue(400 <= len(late) <= 600, len(late))
        self.assertTrue(all(times[number] == number / 1000 + OVERTAKING_TIME for number in late))

    def test_repeatable(self) -> None:
        """The same seed gives the same fates."""
        bad = Impairment(0.01, 0.01, 0.1, 0.1, 0.1)
        self.assertEqual(self.departures(bad), self.departures(bad))

    def test_nonsense(self) -> None:
        """Negative times and improbable probabilities are refused, by name."""
        for name, value in (
            ("delay", -1),
            ("jitter", -0.1),
            ("loss", 1.1),
            ("reorder", -1),
            ("duplicate", 2),
        ):
            with self.assertRaises(ValueError) as caught:
                Impairment(**{name: value})
            self.assertIn(name, str(caught.exception))


class ImpairmentsTests(SynchronousTestCase):
    """All directions together."""

    def setUp(self) -> None:
        self.impairments = Impairments()

    def test_unknown_passes(self) -> None:
        """A packet of no impaired direction leaves at once, and before those that wait."""
        self.impairments.set(GATEWAY, False, Impairment(delay=1.0), seed=1)
        self.impairments.take(packet(CLIENT, GATEWAY), 0.0)
        self.impairments.take(packet(CLIENT, OTHER), 0.0)
        self.assertEqual(self.impairments.due(0.0), [packet(CLIENT, OTHER)])
        self.assertEqual(self.impairments.deadline(), 1.0)
        self.assertEqual(self.impairments.due(1.0), [packet(CLIENT, GATEWAY)])
        self.assertIsNone(self.impairments.deadline())

    def test_directions_differ(self) -> None:
        """Each direction of a path has its own impairment, in IPv4 and IPv6."""
        for gateway, client in ((GATEWAY, CLIENT), (GATEWAY * 4, CLIENT * 4)):
            self.impairments.set(gateway, False, Impairment(delay=1.0), seed=1)
            self.impairments.set(gateway, True, Impairment(delay=2.0), seed=1)
            self.impairments.take(packet(client, gateway), 0.0)
            self.impairments.take(packet(gateway, client), 0.0)
            self.assertEqual(self.impairments.due(1.0), [packet(client, gateway)])
            self.assertEqual(self.impairments.due(2.0), [packet(gateway, client)])

    def test_cleared(self) -> None:
        """Once cleared, new packets pass at once and old ones still leave when they are due."""
        self.impairments.set(GATEWAY, False, Impairment(delay=1.0), seed=1)
        self.impairments.take(packet(CLIENT, GATEWAY, 1), 0.0)
        self.impairments.clear()
        self.impairments.take(packet(CLIENT, GATEWAY, 2), 0.5)
        self.assertEqual(self.impairments.due(0.5), [packet(CLIENT, GATEWAY, 2)])
        self.assertEqual(self.impairments.due(1.0), [packet(CLIENT, GATEWAY, 1)])

    def test_bounded(self) -> None:
        """What does not fit into the queue is lost and counted."""
        self.impairments.set(GATEWAY, False, Impairment(delay=1.0), seed=1)
        for number in range(MOST_WAITING + 5):
            self.impairments.take(packet(CLIENT, GATEWAY, number), 0.0)
        self.assertEqual(self.impairments.overflowed, 5)
        self.assertEqual(len(self.impairments.due(1.0)), MOST_WAITING)

    @settings(derandomize=True, deadline=None)
    @given(
        st.builds(
            Impairment,
            delay=st.floats(0, 0.1),
            jitter=st.floats(0, 0.1),
            loss=st.floats(0, 1),
            reorder=st.floats(0, 1),
            duplicate=st.floats(0, 1),
        ),
        st.lists(st.floats(0, 0.05), max_size=50),
    )
    def test_conserved(self, impairment: Impairment, pauses: list[float]) -> None:
        """
        Whatever the impairment, what leaves is what came, less the lost, plus the duplicates, in time order.
        """
        impairments = Impairments()
        impairments.set(GATEWAY, True, impairment, seed=1)
        now, sent = 0.0, []
        for number, pause in enumerate(pauses):
            now += pause
            sent.append(packet(GATEWAY, CLIENT, number))
            impairments.take(sent[-1], now)
        (direction,) = impairments.directions().values()
        left = []
        while (deadline := impairments.deadline()) is not None:
            left += impairments.due(deadline)
        self.assertEqual(len(left), len(sent) - direction.lost + direction.duplicated)
        self.assertTrue(set(left) <= set(sent))
        if not direction.reordered:
            self.assertEqual(left, sorted(left))
