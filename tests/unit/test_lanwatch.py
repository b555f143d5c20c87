"""A gateway's LAN is down with its link or its silent target, and up again as its target proves (R14)."""

from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import PROBE_TRIES
from rvpn.gateway.lanwatch import LanWatch
from rvpn.interfaces import Action, Event, Probe

TARGET, OTHER = ip_address("10.0.0.1"), ip_address("fd00::1")
INTERVAL = 0.25


class LAN:
    """A `LanWatch` with a clock, and a target that answers as long as `alive`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.agenda = Agenda()
        self.watch = LanWatch(self.agenda, self.decided)
        self.alive = True
        self.decisions: list[tuple[float, bool, str]] = []
        self.probes: list[Probe] = []

    def decided(self, down: bool, reason: str, now: float) -> list[Action]:
        """Note the decision; the event shows that what follows from it is passed on."""
        self.decisions.append((now, down, reason))
        return [Event("decided")]

    def do(self, actions: list[Action]) -> list[Action]:
        """Carry out probes: a target that is alive answers at once. Return all actions."""
        done = list(actions)
        for action in actions:
            if isinstance(action, Probe):
                self.probes.append(action)
                if self.alive:
                    done += self.watch.answered(action.target, action.sequence, self.now)
        return done

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (due := self.agenda.deadline()) is not None and due <= end:
            self.now = due
            self.do(self.agenda.advance(due))
        self.now = end

    def probe(self) -> None:
        """Begin to probe the target."""
        self.do(self.watch.probe(TARGET, INTERVAL, self.now))

    def link(self, up: bool) -> list[Action]:
        """Change the link."""
        return self.do(self.watch.link(up, self.now))


class LinkTests(SynchronousTestCase):
    """Without a target the link decides."""

    def test_at_once(self) -> None:
        """R14: a link that fails or comes back changes the verdict at once, and with it the reason."""
        lan = LAN()
        self.assertEqual(lan.link(False), [Event("decided")])
        lan.now += 1
        lan.link(True)
        self.assertEqual(
            lan.decisions,
            [(100.0, True, "the LAN interface is down"), (101.0, False, "the LAN is reached again")],
        )

    def test_said_again(self) -> None:
        """What is told a second time changes nothing; at the start the link counts as up."""
        lan = LAN()
        lan.link(True)
        self.assertEqual(lan.decisions, [])
        lan.link(False)
        lan.link(False)
        self.assertEqual(len(lan.decisions), 1)
        self.assertTrue(lan.watch.down)

    def test_no_timer(self) -> None:
        """Without a target nothing is ever due."""
        lan = LAN()
        lan.do(lan.watch.probe(None, INTERVAL, lan.now))
        lan.link(False)
        lan.link(True)
        self.assertIsNone(lan.agenda.deadline())


class ProbeTests(SynchronousTestCase):
    """With a target that is probed."""

    def setUp(self) -> None:
        """Probe a target that answers."""
        self.lan = LAN()
        self.lan.probe()

    def test_regular(self) -> None:
        """A request goes at once and then one each interval, numbered; answers keep the LAN up."""
        self.lan.run(10 * INTERVAL)
        self.assertEqual(self.lan.probes, [Probe(TARGET, number) for number in range(1, 12)])
        self.assertEqual(self.lan.decisions, [])

    def test_vanishes(self) -> None:
        """R14: the LAN is down after PROBE_TRIES unanswered requests and at most one interval more."""
        for phase in 0.01, 0.5, 0.99:
            lan = LAN()
            lan.probe()
            lan.run(phase * INTERVAL)
            vanished = lan.now
            lan.alive = False
            lan.run(10 * INTERVAL)
            ((decided, down, reason),) = lan.decisions
            self.assertTrue(down)
            self.assertEqual(reason, "10.0.0.1 on the LAN does not answer")
            self.assertLessEqual(PROBE_TRIES * INTERVAL, decided - vanished)
            self.assertLessEqual(decided - vanished, (PROBE_TRIES + 1) * INTERVAL)

    def test_comes_back(self) -> None:
        """It takes as many answers in a row to be up again, which is an interval less."""
        self.lan.alive = False
        self.lan.run(10 * INTERVAL)
        back = self.lan.now
        self.lan.alive = True
        self.lan.run(10 * INTERVAL)
        _, (decided, down, _) = self.lan.decisions
        self.assertFalse(down)
        self.assertLessEqual((PROBE_TRIES - 1) * INTERVAL, decided - back)
        self.assertLessEqual(decided - back, PROBE_TRIES * INTERVAL)

    def test_some_lost(self) -> None:
        """Fewer than PROBE_TRIES in a row decide nothing, however many there are in all."""
        self.lan.run(0.5 * INTERVAL)
        for _ in range(10):
            self.lan.alive = False
            self.lan.run((PROBE_TRIES - 1) * INTERVAL)
            self.lan.alive = True
            self.lan.run(INTERVAL)
        self.assertEqual(self.lan.decisions, [])

    def test_what_counts(self) -> None:
        """No answer counts but the first one of the target to the request sent last."""
        self.lan.alive = False
        self.lan.run(INTERVAL)
        watch, last = self.lan.watch, self.lan.probes[-1].sequence
        for _ in range(PROBE_TRIES):
            watch.answered(OTHER, last, self.lan.now)
            watch.answered(TARGET, last - 1, self.lan.now)
            self.lan.run(INTERVAL)
            last = self.lan.probes[-1].sequence
        self.assertTrue(watch.down)
        for _ in range(PROBE_TRIES):
            watch.answered(TARGET, last, self.lan.now)
        self.assertTrue(watch.down)

    def test_sequence_wraps(self) -> None:
        """The numbers stay within 16 bits."""
        self.lan.watch._sequence = 0xFFFE
        self.lan.run(2 * INTERVAL)
        self.assertEqual([probe.sequence for probe in self.lan.probes], [1, 0xFFFF, 0])
        self.assertEqual(self.lan.decisions, [])


class LinkAndProbeTests(SynchronousTestCase):
    """A target is no use without the link, and a link says little if there is a target."""

    def setUp(self) -> None:
        """Probe a target that answers."""
        self.lan = LAN()
        self.lan.probe()
        self.lan.run(INTERVAL / 2)

    def test_link_down(self) -> None:
        """A link that fails counts at once; nothing is probed without it."""
        self.lan.link(False)
        self.assertEqual(self.lan.decisions, [(self.lan.now, True, "the LAN interface is down")])
        self.assertIsNone(self.lan.agenda.deadline())

    def test_late_answer(self) -> None:
        """An answer that arrives after the link has failed counts for nothing."""
        self.lan.alive = False
        self.lan.run(INTERVAL)
        last = self.lan.probes[-1]
        self.lan.link(False)
        self.assertEqual(self.lan.watch.answered(TARGET, last.sequence, self.lan.now), [])
        self.assertTrue(self.lan.watch.down)

    def test_link_up(self) -> None:
        """When the link is back the target is probed at once and must prove it PROBE_TRIES times."""
        self.lan.link(False)
        self.lan.run(1)
        sent = len(self.lan.probes)
        self.lan.link(True)
        back = self.lan.now
        self.assertEqual(len(self.lan.probes), sent + 1)
        self.lan.run(10 * INTERVAL)
        _, (decided, down, _) = self.lan.decisions
        self.assertFalse(down)
        self.assertAlmostEqual(decided - back, (PROBE_TRIES - 1) * INTERVAL)

    def test_link_without_lan(self) -> None:
        """A link that is back without the target behind it leaves the LAN down, and says nothing twice."""
        self.lan.link(False)
        self.lan.alive = False
        self.lan.link(True)
        self.lan.run(20 * INTERVAL)
        self.assertEqual(len(self.lan.decisions), 1)
        self.assertTrue(self.lan.watch.down)


class ReloadTests(SynchronousTestCase):
    """A policy that is read again."""

    def setUp(self) -> None:
        """Probe a target that does not answer, until that is known."""
        self.lan = LAN()
        self.lan.alive = False
        self.lan.probe()
        self.lan.run(10 * INTERVAL)
        self.assertTrue(self.lan.watch.down)

    def test_unchanged(self) -> None:
        """The same target and interval go on as they are."""
        sent = len(self.lan.probes)
        self.lan.probe()
        self.assertEqual((len(self.lan.probes), self.lan.watch.down), (sent, True))

    def test_other_interval(self) -> None:
        """R14: another interval heals no LAN: what is known of the target is still true."""
        self.lan.do(self.lan.watch.probe(TARGET, 100 * INTERVAL, self.lan.now))
        self.assertTrue(self.lan.watch.down)
        self.lan.run(100 * INTERVAL)
        sent, now = len(self.lan.probes), self.lan.now
        self.lan.do(self.lan.watch.probe(TARGET, INTERVAL, now))
        self.lan.alive = True
        self.lan.run(PROBE_TRIES * INTERVAL)
        self.assertEqual((len(self.lan.probes) - sent, self.lan.watch.down), (PROBE_TRIES, False))
        self.assertEqual(len(self.lan.decisions), 2)

    def test_shorter_interval(self) -> None:
        """A shorter interval brings the next request forward, a longer one holds none back."""
        for interval, after in (0.5, 0.5), (2.0, 1.0):
            lan = LAN()
            lan.do(lan.watch.probe(TARGET, 1.0, lan.now))
            lan.do(lan.watch.probe(TARGET, interval, lan.now))
            self.assertEqual(lan.agenda.deadline(), lan.now + after)

    def test_no_longer(self) -> None:
        """A target that is no longer named is no longer held against the LAN, nor probed."""
        self.lan.do(self.lan.watch.probe(None, INTERVAL, self.lan.now))
        self.assertFalse(self.lan.watch.down)
        self.assertIsNone(self.lan.agenda.deadline())

    def test_another(self) -> None:
        """Another target starts with a clean sheet, and the answer of the first counts no more."""
        self.lan.do(self.lan.watch.probe(OTHER, INTERVAL, self.lan.now))
        self.assertFalse(self.lan.watch.down)
        self.assertEqual(self.lan.probes[-1].target, OTHER)
        self.lan.run(10 * INTERVAL)
        self.assertTrue(self.lan.watch.down)
        self.lan.watch.answered(TARGET, self.lan.probes[-1].sequence, self.lan.now)
        self.assertEqual(self.lan.watch._contrary, 0)

    def test_clean_sheet(self) -> None:
        """What the first target left unanswered is not held against the second."""
        lan = LAN()
        lan.alive = False
        lan.probe()
        lan.run((PROBE_TRIES - 0.5) * INTERVAL)
        changed_at = lan.now
        lan.do(lan.watch.probe(OTHER, INTERVAL, lan.now))
        lan.run(10 * INTERVAL)
        ((decided, _, _),) = lan.decisions
        self.assertAlmostEqual(decided - changed_at, PROBE_TRIES * INTERVAL)

    def test_link_stays_down(self) -> None:
        """What the policy says of probes makes no broken link whole."""
        self.lan.link(False)
        for target in None, OTHER:
            self.lan.do(self.lan.watch.probe(target, INTERVAL, self.lan.now))
            self.assertTrue(self.lan.watch.down)
        self.assertIsNone(self.lan.agenda.deadline())


class AnyOrderTests(SynchronousTestCase):
    """Whatever happens in whatever order."""

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("link"), st.booleans()),
                st.tuples(st.just("alive"), st.booleans()),
                st.tuples(st.just("run"), st.floats(0, 2)),
                st.tuples(st.just("probe"), st.sampled_from([None, TARGET, OTHER])),
            )
        )
    )
    def test_settles(self, events: list[tuple[str, object]]) -> None:
        """After quiet time the verdict is the truth, decisions alternate, and one request is due at most."""
        lan = LAN()
        for what, value in [*events, ("run", 10 * INTERVAL)]:
            match what, value:
                case "link", bool(up):
                    lan.link(up)
                case "alive", bool(alive):
                    lan.alive = alive
                case "run", float(seconds):
                    lan.run(seconds)
                case "probe", target:
                    lan.do(lan.watch.probe(target, INTERVAL, lan.now))  # type: ignore[arg-type]  # from above
            self.assertLessEqual(len(lan.agenda), 1)
        watch = lan.watch
        silent = watch._target is not None and not lan.alive
        self.assertEqual(watch.down, not watch._link_up or silent)
        for earlier, later in zip(lan.decisions, lan.decisions[1:], strict=False):
            self.assertNotEqual(earlier[1], later[1])
