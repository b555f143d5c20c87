"""Session control messages until they are acknowledged: repetitions, and round trips (DESIGN 6)."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import CONTROL_INTERVAL, CONTROL_REPEATS
from rvpn.interfaces import Action, Send
from rvpn.session.retransmission import Retransmission
from rvpn.session.session_control import Kind, Status
from rvpn.session.sessions import SAPair, Session
from tests.unit.session_ends import HERE, INNER, PEER, FakeContext, answer, offer


class RetransmissionTests(SynchronousTestCase):
    """The messages of one session."""

    def setUp(self) -> None:
        """Make the session, and what notes messages that nobody acknowledged."""
        self.agenda = Agenda()
        self.given_up: list[tuple[Kind, float]] = []
        self.retransmission = Retransmission(self.gave_up, self.agenda)
        self.session = Session(PEER, PEER, HERE, (INNER,), 0.0)
        self.pair = self.new_pair()

    def new_pair(self) -> SAPair:
        """Let the session send on new keys."""
        pair = SAPair(FakeContext(offer(1000), answer(2000)), initiator=True, path=HERE, now=0.0)
        pair.session, self.session.sending = self.session, pair
        return pair

    def gave_up(self, session: Session, kind: Kind, now: float) -> list[Action]:
        """Note it."""
        self.assertIs(session, self.session)
        self.given_up.append((kind, now))
        return []

    def test_unacknowledged(self) -> None:
        """CONTROL_REPEATS packets go, CONTROL_INTERVAL apart, and the owner hears that it was in vain."""
        sent: list[Action] = self.retransmission.send(self.session, Kind.STATUS, 0.0, Status.DRAINING)
        self.assertTrue(self.retransmission.outstanding(Kind.STATUS))
        times = []
        while (when := self.agenda.deadline()) is not None:
            times.append(when)
            sent += self.agenda.advance(when)
        self.assertEqual(len(sent), CONTROL_REPEATS)
        self.assertEqual({(type(action), len(action.datagram)) for action in sent}, {(Send, 56)})  # type: ignore[union-attr] # all are Send
        for number, when in enumerate(times, 1):
            self.assertAlmostEqual(when, number * CONTROL_INTERVAL)
        self.assertEqual(self.given_up, [(Kind.STATUS, times[-1])])
        self.assertEqual(len(self.retransmission), 0)

    def test_round_trip(self) -> None:
        """The first packet's acknowledgement tells the round trip, a later one only that it arrived."""
        for repetitions in 0, 1:
            self.retransmission.send(self.session, Kind.CLAIM, 5.0)
            for _ in range(repetitions):
                self.agenda.advance(5.0 + CONTROL_INTERVAL)
            trip = self.retransmission.acknowledged(self.pair, self.pair.control.sequence, 5.25)
            self.assertEqual(trip, None if repetitions else 0.25)
            self.assertFalse(self.retransmission.outstanding(Kind.CLAIM))
            self.assertIsNone(self.agenda.deadline())

    def test_others(self) -> None:
        """Only an acknowledgement of that packet under those keys counts."""
        self.retransmission.send(self.session, Kind.CLAIM, 0.0)
        sequence = self.pair.control.sequence
        self.assertIsNone(self.retransmission.acknowledged(self.pair, sequence + 1, 0.1))
        self.assertIsNone(self.retransmission.acknowledged(self.new_pair(), sequence, 0.1))
        self.assertEqual(len(self.retransmission), 1)

    def test_kinds_apart(self) -> None:
        """A session sends one message of each kind at a time, and one kind does not supersede another."""
        for kind in (Kind.CLAIM, Kind.CLAIM, Kind.CLOSE):
            self.retransmission.send(self.session, kind, 0.0)
        self.assertEqual(len(self.retransmission), 2)
        self.assertTrue(self.retransmission.outstanding(Kind.CLOSE))

    def test_no_keys(self) -> None:
        """A session without keys sends nothing."""
        self.session.sending = None
        self.assertEqual(self.retransmission.send(self.session, Kind.CLAIM, 0.0), [])
        self.assertEqual(len(self.retransmission), 0)
