"""
The failure detector alone: when a heartbeat is due, and when a gateway has failed (R6, R7, R9, X6, X7, X8).

What a client does with the verdicts is in test_failover.
"""

from dataclasses import dataclass
from unittest import TestCase

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import (
    AUTO_DEFER_FLOOR,
    AUTO_DEFER_IDLE,
    IDLE_AFTER,
    LATE,
    OUTSTANDING_HEARTBEATS,
    RESPONSE_FLOOR,
    RESPONSE_UNMEASURED,
    ROUND_TRIP_SAMPLES,
    HeartbeatMode,
)
from rvpn.failover.heartbeat import FailureDetector, Timing, Verdict
from rvpn.failover.round_trip import RoundTrip

START = 100.0
DEFER, RESPONSE = 0.25, 0.125  # both are exact in binary, so that times can be compared for equality


@dataclass
class Gateway:
    """What a detector sees of its session."""

    received_at: float = START
    packets_out: int = 0


class Bench:
    """A detector, the gateway it watches, and a clock that stops at each of its deadlines."""

    def __init__(
        self,
        mode: HeartbeatMode = HeartbeatMode.INSTANT,
        *,
        response: float | None = RESPONSE,
        defer: float | None = DEFER,
        confirm: float = 0.0,
        shortest_defer: float = 0.0,
    ) -> None:
        self.now = START
        self.gateway = Gateway()
        self.round_trip = RoundTrip()
        timing = Timing(mode, response, defer, confirm)
        self.detector = FailureDetector(timing, self.gateway, self.round_trip, START, START, shortest_defer)
        self.heartbeats: list[float] = []
        self.failed_at: float | None = None

    def run(self, seconds: float, late: float = 0.0) -> None:
        """Let time pass; each deadline is looked at `late` seconds after it has come."""
        end = self.now + seconds
        for _ in range(10_000):
            deadline = self.detector.deadline()
            if self.failed_at is not None or deadline is None or max(self.now, deadline + late) > end:
                break
            self.now = max(self.now, deadline + late)
            self.take(self.detector.advance(self.now))
        self.now = end

    def take(self, verdict: Verdict) -> None:
        """Do what a verdict asks for; the sequence number of a heartbeat is how many went before."""
        if verdict is Verdict.HEARTBEAT:
            self.detector.asked(len(self.heartbeats), self.now)
            self.heartbeats.append(self.now)
        elif verdict is Verdict.FAILED:
            self.failed_at = self.now

    def packet(self) -> None:
        """Let an authenticated packet arrive."""
        self.gateway.received_at = self.now

    def payload(self) -> None:
        """Send a payload packet, and the heartbeat after it if one waited for it."""
        self.gateway.packets_out += 1
        if self.detector.wants_payload:
            self.take(self.detector.payload(self.now))

    def answer(self, sequence: int | None = None) -> bool:
        """Let an answer arrive, to the last heartbeat if no other is named."""
        self.packet()
        return self.detector.answered(len(self.heartbeats) - 1 if sequence is None else sequence, self.now)

    def since_start(self) -> list[float]:
        """Return when heartbeats went, in seconds since the start."""
        return [time - START for time in self.heartbeats]


class InstantTests(SynchronousTestCase):
    """`Heartbeat = INSTANT` with fractions of seconds."""

    def test_silence(self) -> None:
        """
        R6, R7: a heartbeat after the defer time, a second after the response time, failed after another.
        """
        bench = Bench()
        bench.run(10)
        self.assertEqual(bench.since_start(), [DEFER, DEFER + RESPONSE])
        self.assertEqual(bench.failed_at, START + DEFER + 2 * RESPONSE)

    def test_counted_from_the_last_sign(self) -> None:
        """R6, R7: the bound runs from the last sign of life, wherever that falls."""
        for moment in (0.015625, 0.234375, 0.265625, 0.359375, 0.390625, 0.484375):
            bench = Bench()
            bench.run(moment)
            bench.packet()
            bench.run(10)
            self.assertEqual(bench.failed_at, START + moment + DEFER + 2 * RESPONSE, moment)

    def test_long_response_time(self) -> None:
        """R7: the same bound holds where an answer may take longer than silence may last."""
        for moment in (0.015625, 0.140625, 0.515625, 0.984375, 1.109375, 2.0):
            bench = Bench(response=1.0, defer=0.125)
            bench.run(moment)
            bench.packet()
            bench.run(10)
            self.assertEqual(bench.failed_at, START + moment + 0.125 + 2.0, moment)

    def test_nothing_while_packets_arrive(self) -> None:
        """R6: as long as anything arrives before the defer time is over there is no heartbeat."""
        bench = Bench()
        for _ in range(1000):
            bench.run(DEFER - 0.001)
            bench.packet()
            bench.payload()
        self.assertEqual(bench.heartbeats, [])

    def test_one_answered_heartbeat_per_silence(self) -> None:
        """R6, R7: an idle, living gateway gets one heartbeat in each defer time, counted from its answer."""
        bench = Bench()
        for _ in range(10):
            bench.run(DEFER)
            bench.run(0.03125)
            self.assertTrue(bench.answer())
        self.assertEqual(bench.since_start(), [DEFER + n * (DEFER + 0.03125) for n in range(10)])

    def test_second_answered(self) -> None:
        """R7: an answer to the second heartbeat, or a late one to the first, saves the gateway."""
        for sequence in (0, 1):
            bench = Bench()
            bench.run(DEFER + RESPONSE + 0.0625)
            self.assertTrue(bench.answer(sequence))
            bench.run(DEFER - 0.0625)
            self.assertIsNone(bench.failed_at)
            self.assertEqual(len(bench.heartbeats), 2)

    def test_any_packet_proves_life(self) -> None:
        """R6: whatever arrives after the heartbeat proves the gateway alive, not its answer alone."""
        bench = Bench()
        bench.run(DEFER + RESPONSE + 0.0625)
        bench.packet()
        bench.run(DEFER - 0.03125)
        self.assertIsNone(bench.failed_at)
        bench.run(0.03125)
        self.assertEqual(len(bench.heartbeats), 3)

    def test_answers_count_once(self) -> None:
        """DESIGN 6: an answer counts for an outstanding sequence alone, and once."""
        bench = Bench()
        bench.run(DEFER)
        self.assertFalse(bench.answer(7))
        self.assertTrue(bench.answer(0))
        self.assertFalse(bench.answer(0))

    def test_bounded_memory(self) -> None:
        """DESIGN 6: of unanswered heartbeats the last few are remembered."""
        bench = Bench()
        for _ in range(OUTSTANDING_HEARTBEATS + 1):
            bench.run(DEFER + 0.0625)
            bench.packet()
        self.assertFalse(bench.answer(0))
        self.assertTrue(bench.answer(1))

    def test_suspicious(self) -> None:
        """X1: the gateway is under suspicion from the first unanswered heartbeat on, until a sign of life."""
        bench = Bench()
        bench.run(DEFER)
        self.assertFalse(bench.detector.suspicious)
        bench.run(RESPONSE)
        self.assertTrue(bench.detector.suspicious)
        self.assertEqual(bench.detector.suspected_at, START + DEFER)
        bench.answer()
        self.assertFalse(bench.detector.suspicious)


class LateTests(SynchronousTestCase):
    """A process that was kept from running does not blame the gateway (R7)."""

    def test_late_wake_up(self) -> None:
        """R7: a wake-up late by L extends the wait by L, but by no more than an answer takes."""
        for late, extension in ((0.0625, 0.0625), (0.75, RESPONSE), (3600.0, RESPONSE)):
            bench = Bench()
            bench.run(DEFER)
            bench.now += RESPONSE + late
            self.assertIs(bench.detector.advance(bench.now), Verdict.NOTHING)
            bench.run(10)
            self.assertEqual(bench.since_start(), [DEFER, DEFER + RESPONSE + late + extension])
            self.assertEqual(bench.failed_at, START + DEFER + 2 * RESPONSE + late + extension)

    def test_answer_in_the_extension(self) -> None:
        """R7: an answer that the kernel held meanwhile saves the gateway."""
        bench = Bench()
        bench.run(DEFER + RESPONSE)
        bench.now += RESPONSE + 5
        self.assertIs(bench.detector.advance(bench.now), Verdict.NOTHING)
        bench.run(RESPONSE / 2)
        self.assertTrue(bench.answer())
        self.assertIsNone(bench.failed_at)

    def test_never_endless(self) -> None:
        """R7: a process that is always late decides all the same: each wait is extended once."""
        bench = Bench()
        bench.run(10, late=0.5)
        self.assertIsNotNone(bench.failed_at)
        self.assertLess(bench.failed_at or 0.0, START + DEFER + 2 * RESPONSE + 4.0)

    def test_jitter_is_not_late(self) -> None:
        """R7: what a timer misses at any time costs nothing."""
        bench = Bench()
        bench.run(10, late=LATE / 2)
        self.assertIsNotNone(bench.failed_at)
        self.assertAlmostEqual(bench.failed_at or 0.0, START + DEFER + 2 * RESPONSE + 1.5 * LATE)


class DeferredTests(SynchronousTestCase):
    """`Heartbeat = DEFERRED`: no heartbeat without payload (R9)."""

    def test_idle(self) -> None:
        """R9: an idle client sends nothing, and has nothing to wake up for."""
        bench = Bench(HeartbeatMode.DEFERRED)
        bench.run(3600)
        self.assertEqual((bench.heartbeats, bench.failed_at), ([], None))
        self.assertIsNone(bench.detector.deadline())

    def test_follows_payload(self) -> None:
        """R9: the heartbeat directly follows the next payload packet, the second goes by the timer."""
        bench = Bench(HeartbeatMode.DEFERRED)
        bench.run(60)
        bench.payload()
        bench.run(10)
        self.assertEqual(bench.since_start(), [60, 60 + RESPONSE])
        self.assertEqual(bench.failed_at, START + 60 + 2 * RESPONSE)

    def test_only_if_still_silent(self) -> None:
        """R6: payload takes no heartbeat along if something has arrived in the meantime."""
        bench = Bench(HeartbeatMode.DEFERRED)
        bench.run(60)
        bench.packet()
        bench.payload()
        bench.run(DEFER - 0.0625)
        bench.payload()
        self.assertEqual(bench.heartbeats, [])
        bench.run(0.0625)
        bench.payload()
        self.assertEqual(bench.since_start(), [60 + DEFER])

    def test_payload_before_it_is_due(self) -> None:
        """R6: payload within the defer time takes no heartbeat along."""
        bench = Bench(HeartbeatMode.DEFERRED)
        bench.run(DEFER - 0.0625)
        bench.payload()
        bench.run(10)
        self.assertEqual(bench.heartbeats, [])


class NoneTests(SynchronousTestCase):
    """`Heartbeat = NONE`."""

    def test_never(self) -> None:
        """R9, X6, X8: no heartbeat, whatever happens, and nothing to wake up for."""
        bench = Bench(HeartbeatMode.NONE, confirm=1.0)
        bench.payload()
        bench.take(bench.detector.hint(bench.now))
        bench.run(3600)
        bench.payload()
        bench.take(bench.detector.advance(bench.now))
        self.assertEqual((bench.heartbeats, bench.failed_at), ([], None))
        self.assertIsNone(bench.detector.deadline())


class HintTests(SynchronousTestCase):
    """Signs that a gateway may be gone (X6)."""

    def measured(self, mode: HeartbeatMode = HeartbeatMode.INSTANT) -> Bench:
        """Return a bench whose round trip takes 20 ms: SRTT + 4 RTTVAR = 60 ms."""
        bench = Bench(mode)
        bench.round_trip.measured(0.02)
        return bench

    def test_at_once(self) -> None:
        """X6: a hint makes the heartbeat due at once, and shortens both waits to SRTT + 4 RTTVAR."""
        bench = self.measured()
        bench.take(bench.detector.hint(bench.now))
        bench.run(10)
        self.assertEqual(bench.heartbeats[0], START)
        self.assertAlmostEqual(bench.heartbeats[1], START + 0.06)
        self.assertAlmostEqual(bench.failed_at or 0.0, START + 0.12)

    def test_never_longer(self) -> None:
        """X6: the policy's response time is not made longer."""
        bench = Bench()
        bench.round_trip.measured(5.0)
        bench.take(bench.detector.hint(bench.now))
        bench.run(10)
        self.assertEqual(bench.failed_at, START + 2 * RESPONSE)

    def test_unmeasured(self) -> None:
        """X6: while no round trip is known the wait is the policy's."""
        bench = Bench()
        bench.take(bench.detector.hint(bench.now))
        bench.run(10)
        self.assertEqual(bench.failed_at, START + 2 * RESPONSE)

    def test_once_per_rto(self) -> None:
        """X6: of many hints one in each RTO counts, answered or not."""
        bench = self.measured()
        for _ in range(1000):
            bench.take(bench.detector.hint(bench.now))
            bench.run(0.001)
            if len(bench.heartbeats) % 2:
                bench.answer()
        self.assertGreater(len(bench.heartbeats), 10)
        self.assertLessEqual(len(bench.heartbeats), 1 + 1 / RESPONSE_FLOOR)
        self.assertIsNone(bench.failed_at)

    def test_never_fails_alone(self) -> None:
        """X6: however many hints there are, a gateway that answers is not given up."""
        bench = self.measured()
        for _ in range(500):
            bench.take(bench.detector.hint(bench.now))
            bench.run(0.015)
            bench.packet()
        self.assertIsNone(bench.failed_at)

    def test_while_asked(self) -> None:
        """X6: a hint while an answer is awaited shortens that wait, and sends nothing more."""
        bench = self.measured()
        bench.run(DEFER)
        bench.take(bench.detector.hint(bench.now))
        self.assertEqual(len(bench.heartbeats), 1)
        bench.run(10)
        self.assertAlmostEqual(bench.failed_at or 0.0, START + DEFER + 0.12)

    def test_forgotten(self) -> None:
        """X6: once the gateway has answered, waits are the policy's again."""
        bench = self.measured()
        bench.take(bench.detector.hint(bench.now))
        bench.answer()
        bench.run(10)
        self.assertEqual(bench.failed_at, START + DEFER + 2 * RESPONSE)

    def test_deferred_marks_due(self) -> None:
        """X6: a DEFERRED client sends nothing for a hint; its next payload takes a heartbeat along."""
        bench = self.measured(HeartbeatMode.DEFERRED)
        bench.take(bench.detector.hint(bench.now))
        bench.run(0.0625)
        self.assertEqual(bench.heartbeats, [])
        bench.packet()
        bench.payload()
        self.assertEqual(bench.since_start(), [0.0625])


class RoundTripTests(SynchronousTestCase):
    """RFC 6298 without its minimum and its doubling (X7)."""

    def test_by_hand(self) -> None:
        """
        RFC 6298 section 2: R = 20 ms gives SRTT 20, RTTVAR 10, RTO 60; R' = 30 ms then 21.25, 10, 61.25; R'
        = 10 ms then 19.84375, 10.3125, 61.09375.
        """
        round_trip = RoundTrip()
        self.assertIsNone(round_trip.timeout)
        for sample, smoothed, timeout in (
            (0.02, 0.02, 0.06),
            (0.03, 0.02125, 0.06125),
            (0.01, 0.01984375, 0.06109375),
        ):
            round_trip.measured(sample)
            self.assertAlmostEqual(round_trip.smoothed or 0.0, smoothed, 12)
            self.assertAlmostEqual(round_trip.timeout or 0.0, timeout, 12)

    def test_floor(self) -> None:
        """X6, X7: however short the round trip, a wait is 10 ms."""
        round_trip = RoundTrip()
        for _ in range(50):
            round_trip.measured(0.0001)
        self.assertEqual(round_trip.timeout, RESPONSE_FLOOR)
        self.assertEqual(RESPONSE_FLOOR, 0.01)

    def test_measured_by_answers(self) -> None:
        """X7: each answered heartbeat is a sample, the second of two for its own sequence."""
        bench = Bench()
        bench.run(DEFER + 0.0625)
        bench.answer()
        self.assertEqual(bench.round_trip.smoothed, 0.0625)
        bench = Bench()
        bench.run(DEFER + RESPONSE + 0.03125)
        bench.answer()
        self.assertEqual(bench.round_trip.smoothed, 0.03125)


class AutoTests(SynchronousTestCase):
    """`HeartbeatResponseTime = auto` and `HeartbeatDeferTime = auto` (X7)."""

    def auto(self, sample: float, shortest_defer: float = 0.0) -> Bench:
        """Return a bench with both times `auto` after a measured round trip that is taken for the truth."""
        bench = Bench(response=None, defer=None, shortest_defer=shortest_defer)
        bench.round_trip.measured(sample)
        bench.round_trip.asked = ROUND_TRIP_SAMPLES
        return bench

    def test_from_the_round_trip(self) -> None:
        """X7: after a round trip of 20 ms the response time is 60 ms and the defer time twice that."""
        bench = self.auto(0.02)
        bench.run(10)
        for time, expected in zip(bench.heartbeats, (0.12, 0.18), strict=True):
            self.assertAlmostEqual(time - START, expected)
        self.assertAlmostEqual(bench.failed_at or 0.0, START + 0.24)

    def test_floors(self) -> None:
        """X7: on the shortest round trip a heartbeat waits for 25 ms of silence, and 10 ms for its answer."""
        bench = self.auto(0.0001)
        bench.run(10)
        self.assertAlmostEqual(bench.heartbeats[0], START + 0.025)
        self.assertAlmostEqual(bench.failed_at or 0.0, START + 0.045)
        self.assertEqual(AUTO_DEFER_FLOOR, 0.025)

    def test_gateways_limit(self) -> None:
        """X7: a gateway's lower limit for the defer time holds, for `auto` and for a number."""
        bench = self.auto(0.0001, shortest_defer=0.5)
        bench.run(10)
        self.assertEqual(bench.heartbeats[0], START + 0.5)
        bench = Bench(shortest_defer=0.5)
        bench.run(10)
        self.assertEqual(bench.heartbeats[0], START + 0.5)
        bench = Bench(shortest_defer=0.125)
        bench.run(10)
        self.assertEqual(bench.heartbeats[0], START + DEFER)

    def test_idle(self) -> None:
        """X7: after 10 s without payload the defer time is 1 s, and short again soon after payload."""
        bench = self.auto(0.0001)
        for _ in range(20_000):
            bench.run(0.001)
            if bench.heartbeats and bench.gateway.received_at < bench.heartbeats[-1]:
                bench.answer()
        busy = [time for time in bench.heartbeats if time < START + IDLE_AFTER]
        idle = [time for time in bench.heartbeats if time >= START + IDLE_AFTER + 0.1]
        self.assertGreater(len(busy), IDLE_AFTER / 0.03)
        self.assertIn(len(idle), (9, 10))
        bench.payload()
        before = len(bench.heartbeats)
        for _ in range(2000):
            bench.run(0.001)
            if bench.gateway.received_at < bench.heartbeats[-1]:
                bench.answer()
        self.assertGreater(len(bench.heartbeats) - before, (2.0 - AUTO_DEFER_IDLE) / 0.03)

    def test_unmeasured(self) -> None:
        """X7: while no round trip is known an answer may take a second."""
        bench = Bench(response=None)
        bench.round_trip.asked = ROUND_TRIP_SAMPLES
        bench.run(10)
        self.assertEqual(bench.failed_at, START + DEFER + 2 * RESPONSE_UNMEASURED)

    def busy(self, bench: Bench, seconds: float, answers_after: int = 1) -> None:
        """Let packets go both ways, and answers come after so many milliseconds."""
        for _ in range(round(seconds / 0.001)):
            bench.run(0.001)
            bench.packet()
            bench.payload()
            if bench.heartbeats and abs(bench.now - bench.heartbeats[-1] - answers_after / 1000) < 1e-6:
                bench.answer()

    def test_samples(self) -> None:
        """X7: a gateway that comes into use is asked for round trips at once, and then as R6 says."""
        for defer in (None, 5.0):
            bench = Bench(response=None, defer=defer)
            bench.round_trip.guess(0.05)
            bench.round_trip.measured(0.015)
            self.busy(bench, 0.7)
            self.assertEqual(len(bench.heartbeats), ROUND_TRIP_SAMPLES)
            self.assertEqual(bench.detector.response, RESPONSE_FLOOR)
            self.busy(bench, 10)
            self.assertEqual((len(bench.heartbeats), bench.failed_at), (ROUND_TRIP_SAMPLES, None))

    def test_samples_are_counted_by_session(self) -> None:
        """X7: a gateway that comes into use again is asked only for what is still missing."""
        bench = Bench(response=None, defer=None)
        self.busy(bench, 0.3)
        timing = Timing(HeartbeatMode.INSTANT, None, None, 0.0)
        bench.detector = FailureDetector(timing, bench.gateway, bench.round_trip, bench.now, bench.now)
        self.busy(bench, 2)
        self.assertEqual(len(bench.heartbeats), ROUND_TRIP_SAMPLES)

    def test_unanswered_samples(self) -> None:
        """X7: samples that get lost while packets arrive fail nobody, and are not asked for without end."""
        for mode in (HeartbeatMode.INSTANT, HeartbeatMode.DEFERRED):
            bench = Bench(mode, response=None, defer=None)
            bench.round_trip.measured(0.001)
            self.busy(bench, 5, answers_after=-1)
            self.assertEqual((len(bench.heartbeats), bench.failed_at), (ROUND_TRIP_SAMPLES, None))

    def test_late_samples(self) -> None:
        """X7: an answer that takes longer than was thought is a sample too."""
        bench = Bench(response=None, defer=None)
        bench.round_trip.measured(0.001)
        self.busy(bench, 5, answers_after=20)
        self.assertGreater(bench.round_trip.smoothed or 0.0, 0.018)

    def test_sample_before_silence(self) -> None:
        """R6, X7: a sample fails nobody before its gateway was silent for the defer time."""
        for last in range(40):
            bench = Bench(response=None, defer=None)
            bench.round_trip.measured(0.001)
            for _ in range(last):
                bench.run(0.001)
                bench.packet()
            bench.run(10)
            silence = (bench.failed_at or 0.0) - START - last / 1000
            self.assertGreaterEqual(silence, AUTO_DEFER_FLOOR + RESPONSE_FLOOR - 1e-9)
            self.assertLessEqual(silence, AUTO_DEFER_FLOOR + 2 * RESPONSE_FLOOR + 1e-9)


class ConfirmTests(SynchronousTestCase):
    """A path that carries packets from the gateway, and none to it (X8)."""

    def receiving(self, confirm: float, payload_every: int, seconds: float) -> Bench:
        """Return a bench after a time in which packets arrived every 50 ms, and nothing got through."""
        bench = Bench(confirm=confirm)
        for step in range(round(seconds / 0.05)):
            if payload_every and step % payload_every == 0:
                bench.payload()
            bench.run(0.05)
            bench.packet()
            if bench.failed_at is not None:
                break
        return bench

    def test_one_way_loss(self) -> None:
        """X8: payload that nobody confirms fails the gateway after the confirm time though packets arrive."""
        bench = self.receiving(confirm=10.0, payload_every=1, seconds=20)
        self.assertLess(abs(bench.since_start()[0] - 10.0), 0.06)
        self.assertIsNotNone(bench.failed_at)
        self.assertLessEqual((bench.failed_at or 0.0) - START, 10.0 + DEFER + 2 * RESPONSE)

    def test_needs_payload(self) -> None:
        """X8: a client that only receives sends no heartbeat."""
        self.assertEqual(self.receiving(confirm=10.0, payload_every=0, seconds=60).heartbeats, [])

    def test_never(self) -> None:
        """X8: a confirm time of 0 is the patent's detector."""
        self.assertEqual(self.receiving(confirm=0.0, payload_every=1, seconds=60).heartbeats, [])

    def test_answered(self) -> None:
        """X8: an answer confirms what was sent before it, for another confirm time."""
        bench = Bench(confirm=1.0)
        for _ in range(200):
            bench.payload()
            bench.run(0.05)
            bench.packet()
            if len(bench.heartbeats) and bench.now - bench.heartbeats[-1] < 0.05:
                bench.answer()
        self.assertIsNone(bench.failed_at)
        self.assertIn(len(bench.heartbeats), range(8, 11))

    def test_payload_unconfirmed_since_the_answer(self) -> None:
        """X8: without payload since the last answer nothing is asked however long ago that was."""
        bench = Bench(confirm=1.0)
        bench.payload()
        bench.run(DEFER)
        bench.answer()
        heartbeats = len(bench.heartbeats)
        for _ in range(100):
            bench.run(0.05)
            bench.packet()
        self.assertEqual(len(bench.heartbeats), heartbeats)

    def test_deferred(self) -> None:
        """R9, X8: a DEFERRED client lets the confirming heartbeat follow payload too."""
        bench = Bench(HeartbeatMode.DEFERRED, confirm=1.0)
        bench.payload()
        for _ in range(40):
            bench.run(0.05)
            bench.packet()
        self.assertEqual(bench.heartbeats, [])
        bench.payload()
        self.assertEqual(len(bench.heartbeats), 1)
        bench.packet()
        bench.run(2 * RESPONSE)
        self.assertIsNotNone(bench.failed_at)

    def auto(self, answered_after: float | None) -> Bench:
        """Return an `auto` bench with an old round trip of 1 ms, after 15 s of packets both ways."""
        bench = Bench(response=None, defer=None, confirm=10.0)
        bench.round_trip.measured(0.001)
        bench.round_trip.asked = ROUND_TRIP_SAMPLES
        step, due = 0.005, list[tuple[int, float]]()
        for _ in range(3000):
            bench.payload()
            bench.run(step)
            bench.packet()
            if bench.failed_at is not None:
                break
            if answered_after is not None and len(due) < len(bench.heartbeats):
                due += [(len(due), bench.heartbeats[-1] + answered_after)]
            for sequence, when in due:
                if bench.now - step < when <= bench.now:
                    bench.answer(sequence)
        return bench

    def test_auto_among_packets(self) -> None:
        """X7, X8: an answer that queues behind what flows is waited for, however fast the quiet path was."""
        bench = self.auto(answered_after=0.8)
        self.assertIsNone(bench.failed_at)
        self.assertEqual(len(bench.heartbeats), 1)

    def test_auto_one_way_loss(self) -> None:
        """X7, X8: two tenths of the confirm time are enough."""
        bench = self.auto(answered_after=None)
        self.assertAlmostEqual((bench.failed_at or 0.0) - START, 12.0, delta=0.02)

    def test_auto_silence_meanwhile(self) -> None:
        """X7, X8: where nothing arrives any more the measured round trip counts."""
        bench = Bench(response=None, defer=None, confirm=1.0)
        bench.round_trip.measured(0.001)
        while not bench.heartbeats:
            bench.payload()
            bench.run(0.005)
            bench.packet()
        bench.run(1.0)
        self.assertLessEqual((bench.failed_at or 0.0) - bench.gateway.received_at, 0.045 + 0.001)


class AnyScheduleTests(TestCase):
    """Whatever the order of events."""

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(
        defer=st.sampled_from((0.0625, 0.25, 1.0)),
        response=st.sampled_from((0.0625, 0.125, 2.0)),
        gaps=st.lists(st.integers(1, 200), max_size=30),
    )
    def test_bound_and_economy(self, defer: float, response: float, gaps: list[int]) -> None:
        """R6, R7: heartbeats follow the defer time of silence alone; failure comes exactly at the bound."""
        bench = Bench(defer=defer, response=response)
        for gap in gaps:
            silent_since = bench.now
            before = len(bench.heartbeats)
            bench.run(gap / 64 + 1 / 256)
            for time in bench.heartbeats[before:]:
                self.assertGreaterEqual(time - silent_since, defer)
            if bench.failed_at is not None:
                self.assertEqual(bench.failed_at, silent_since + defer + 2 * response)
                return
            self.assertLess(gap / 64, defer + 2 * response)
            bench.packet()
        last = bench.now
        bench.run(10)
        self.assertEqual(bench.failed_at, last + defer + 2 * response)
