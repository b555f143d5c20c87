"""How long a peer may have its session, by itself: certificates that expire, files that are read again."""

import math
from dataclasses import dataclass, field, replace

from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import CERTIFICATE_WATCH_INTERVAL
from rvpn.interfaces import Action
from rvpn.keyexchange.credentials import Credentials
from rvpn.session.sessions import SAPair, Session, SessionCache
from rvpn.session.validity import Validity
from tests.unit.session_ends import HERE, INNER, PEER, FakeContext, Numbers, answer, offer


@dataclass
class Node:
    """A `Grantor` that notes what it ends."""

    cache: SessionCache = field(default_factory=lambda: SessionCache(Numbers()))
    credentials: Credentials = field(default_factory=Credentials)
    granted: bool = True
    clock: float = 0.0
    failed: list[tuple[Session, str, bool]] = field(default_factory=list)
    closed: list[SAPair] = field(default_factory=list)

    def grants(self, session: Session) -> bool:
        """Tell what the test says."""
        return self.granted

    def fail(self, session: Session, reason: str, now: float, *, failed: bool = True) -> list[Action]:
        """Note it."""
        self.failed.append((session, reason, failed))
        return []

    def close_pair(self, pair: SAPair, now: float) -> list[Action]:
        """Note it."""
        self.closed.append(pair)
        return []

    def time_of_day(self) -> float:
        """Return what the clock shows."""
        return self.clock


class ValidityTests(SynchronousTestCase):
    """One session of a node."""

    def setUp(self) -> None:
        """Establish the session."""
        self.agenda, self.node = Agenda(), Node()
        self.validity = Validity(self.node, self.agenda)
        self.session = Session(PEER, PEER, HERE, (INNER,), 0.0)
        self.pair = SAPair(FakeContext(offer(1000), answer(2000)), initiator=True, path=HERE, now=0.0)
        self.node.cache.add_pair(self.session, self.pair)
        self.node.cache.establish(self.session)

    def until(self, seconds: float) -> None:
        """Let the peer's certificate end so many seconds from now."""
        self.pair.authentication = replace(self.pair.authentication, expires_at=self.node.clock + seconds)

    def test_no_end(self) -> None:
        """What never expires is not watched."""
        self.until(math.inf)
        self.validity.watch(self.pair, 0.0)
        self.assertIsNone(self.agenda.deadline())

    def test_expires(self) -> None:
        """The session ends with its peer's certificate, and nobody is to blame."""
        self.until(60.0)
        self.validity.watch(self.pair, 7.0)
        self.assertEqual(self.agenda.deadline(), 67.0)
        self.node.clock += 60.0
        self.agenda.advance(67.0)
        self.assertEqual(self.node.failed, [(self.session, "its certificate has expired", False)])

    def test_clock_is_set(self) -> None:
        """The time of day is looked at again: a clock set forward ends the session in an hour."""
        self.until(10 * CERTIFICATE_WATCH_INTERVAL)
        self.validity.watch(self.pair, 0.0)
        self.assertEqual(self.agenda.deadline(), CERTIFICATE_WATCH_INTERVAL)
        self.node.clock += 20 * CERTIFICATE_WATCH_INTERVAL
        self.agenda.advance(CERTIFICATE_WATCH_INTERVAL)
        self.assertEqual(len(self.node.failed), 1)

    def test_superseded(self) -> None:
        """Keys that the session no longer sends on end nothing."""
        self.until(60.0)
        self.validity.watch(self.pair, 0.0)
        self.session.sending = None
        self.node.clock += 60.0
        self.agenda.advance(60.0)
        self.assertEqual(self.node.failed, [])

    def test_withdrawn(self) -> None:
        """What the policy no longer grants ends: the session, and keys that are still open."""
        self.validity.withdraw(0.0)
        self.assertEqual((self.node.failed, self.node.closed), ([], []))
        self.node.granted = False
        self.validity.withdraw(0.0)
        self.assertEqual(self.node.failed, [(self.session, "the policy no longer has it", False)])
        self.assertEqual(self.node.closed, [self.pair])
