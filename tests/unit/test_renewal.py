"""When a client renews the keys of a session, by itself (DESIGN 3)."""

from collections.abc import Hashable
from random import Random
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Act, Agenda
from rvpn.client.renewal import Renewal
from rvpn.constants import BACKOFF_LAST, REKEY_JITTER, REKEY_PACKETS, REKEY_WATCH_INTERVAL
from rvpn.interfaces import Action, IPAddress
from rvpn.session.sessions import SAPair, Session
from tests.unit.session_ends import HERE, INNER, PEER, FakeContext, answer, offer

LIFETIME = 7200.0


class Failover:
    """What renewal needs of `rvpn.failover.failover.Failover`, and of its liveness."""

    def __init__(self) -> None:
        self.liveness = self
        self.wanted, self.idle = True, False
        self.postponed: list[Act] = []

    def is_wanted(self, session: Session) -> bool:
        """Tell what the test says."""
        return self.wanted

    def when_active(self, key: Hashable, act: Act, now: float) -> list[Action]:
        """Do it, or note it if the client is idle."""
        if self.idle:
            self.postponed.append(act)
            return []
        return list(act(now))


class RenewalTests(SynchronousTestCase):
    """Keys that were confirmed at 0 and live for two hours."""

    def setUp(self) -> None:
        """Let a session send on them."""
        self.agenda = Agenda()
        self.asked: list[tuple[IPAddress, float]] = []
        self.failover = Failover()
        self.renewal = Renewal(self.authenticate, cast(Any, self.failover), self.agenda, Random(1))
        self.session = Session(PEER, PEER, HERE, (INNER,), 0.0)
        self.pair = SAPair(FakeContext(offer(1000), answer(2000)), initiator=True, path=HERE, now=0.0)
        self.pair.lifetime = LIFETIME
        self.pair.session, self.session.sending = self.session, self.pair

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Note who is asked for keys, and when."""
        self.asked.append((gateway, now))
        return []

    def until(self, end: float) -> None:
        """Let time pass."""
        while (when := self.agenda.deadline()) is not None and when <= end and not self.asked:
            self.agenda.advance(when)

    def test_in_time(self) -> None:
        """They are renewed in the last tenth of their life, at a moment that differs from pair to pair."""
        moments = set()
        for _ in range(5):
            self.asked.clear()
            self.renewal.plan(self.pair, 0.0)
            self.until(LIFETIME)
            ((gateway, when),) = self.asked
            self.assertEqual(gateway, HERE.remote.address)
            self.assertTrue(REKEY_JITTER * LIFETIME <= when <= LIFETIME)
            moments.add(when)
        self.assertEqual(len(moments), 5)

    def test_worn(self) -> None:
        """They are renewed within REKEY_WATCH_INTERVAL of too many packets."""
        self.renewal.plan(self.pair, 0.0)
        self.until(1000.0)
        self.pair.inbound.window.commit(REKEY_PACKETS)
        self.until(1000.0 + REKEY_WATCH_INTERVAL)
        self.assertEqual(len(self.asked), 1)

    def test_unwanted(self) -> None:
        """Keys that nobody wants are renewed once somebody does."""
        self.failover.wanted = False
        self.renewal.plan(self.pair, 0.0)
        self.until(LIFETIME)
        self.assertEqual(self.asked, [])
        self.failover.wanted = True
        self.until(LIFETIME + REKEY_WATCH_INTERVAL)
        self.assertEqual(len(self.asked), 1)

    def test_superseded(self) -> None:
        """Keys that the session sends on no more are not renewed."""
        self.renewal.plan(self.pair, 0.0)
        self.session.sending = None
        self.until(2 * LIFETIME)
        self.assertEqual(self.asked, [])

    def test_again(self) -> None:
        """After an exchange that came to nothing, another is begun within BACKOFF_LAST."""
        self.renewal.plan(self.pair, 0.0)
        self.renewal.again(self.pair, 6900.0)
        self.until(6900.0 + BACKOFF_LAST)
        self.assertEqual(len(self.asked), 1)

    def test_idle(self) -> None:
        """R9: an idle DEFERRED client renews with its next payload, and only if the keys still serve."""
        for still, asked in (True, 1), (False, 0):
            self.setUp()
            self.failover.idle = True
            self.renewal.plan(self.pair, 0.0)
            self.until(LIFETIME)
            self.assertEqual(self.asked, [])
            if not still:
                self.session.sending = None
            for act in self.failover.postponed:
                act(9000.0)
            self.assertEqual(len(self.asked), asked)
