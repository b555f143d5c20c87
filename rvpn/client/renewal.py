"""
When a client renews the keys of a session (DESIGN 3): in time, each client at a moment of its own.

    keys confirmed -> `plan` -> old, or worn by packets -> a new exchange, if anybody wants the session
    an exchange came to nothing -> `again`: another try, soon

Keys that nobody wants are not renewed until somebody does, and an idle DEFERRED client waits for payload
(R9).
"""

from collections.abc import Callable

from rvpn.agenda import Agenda
from rvpn.constants import BACKOFF_LAST, REKEY_JITTER, REKEY_WATCH_INTERVAL
from rvpn.failover.failover import Failover
from rvpn.interfaces import Action, IPAddress, RandomSource
from rvpn.session.sessions import SAPair

#: Begins an exchange with a gateway, unless one is under way.
Authenticate = Callable[[IPAddress, float], list[Action]]


class Renewal:
    """See the module."""

    def __init__(
        self, authenticate: Authenticate, failover: Failover, agenda: Agenda, random: RandomSource
    ) -> None:
        self._authenticate = authenticate
        self._failover = failover
        self._agenda = agenda
        self._random = random

    def plan(self, pair: SAPair, now: float) -> None:
        """Renew keys just confirmed when their time comes."""
        jitter = REKEY_JITTER + (1 - REKEY_JITTER) * self._random.random()
        self._watch(pair, now + pair.lifetime * jitter)

    def again(self, pair: SAPair, now: float) -> None:
        """Try again to renew keys that are still in use, after an exchange that gave no others."""
        delay = BACKOFF_LAST * (0.5 + 0.5 * self._random.random())
        self._watch(pair, now + min(delay, pair.lifetime / 4))

    def _watch(self, pair: SAPair, renew_at: float) -> None:
        """Renew at `renew_at`, or earlier if the pair has carried too many packets: look now and then."""
        if pair.renewal is not None:
            pair.renewal.cancel()
        when = min(renew_at, pair.made_at + REKEY_WATCH_INTERVAL)
        pair.renewal = self._agenda.at(when, lambda now: self._look(pair, renew_at, now))

    def _look(self, pair: SAPair, renew_at: float, now: float) -> list[Action]:
        session = pair.session
        if session is None or session.sending is not pair:
            return []
        if (pair.worn or now >= renew_at) and self._failover.is_wanted(session):
            return self._failover.liveness.when_active(pair, lambda later: self._renew(pair, later), now)
        then = renew_at if renew_at > now else now + pair.lifetime / 10
        when = min(then, now + REKEY_WATCH_INTERVAL)
        pair.renewal = self._agenda.at(when, lambda later: self._look(pair, renew_at, later))
        return []

    def _renew(self, pair: SAPair, now: float) -> list[Action]:
        session = pair.session
        if session is None or session.sending is not pair:
            return []
        return self._authenticate(session.gateway, now)
