"""
How long a peer may have its session, by the policy and by certificates and revocation lists as last read.

    keys, new or of a session -> `objection`: why the peer must not have them, or nothing
    keys confirmed -> `watch`: its certificate expires -> the session ends
    files read again -> `withdraw`: whatever there is an objection to now ends

A certificate's end is a time of day, and clocks are set: so it is looked at again from time to time.
"""

import math
from collections.abc import Iterable
from typing import Protocol

from rvpn.agenda import Agenda
from rvpn.constants import CERTIFICATE_WATCH_INTERVAL, Mechanism
from rvpn.interfaces import Action, Authentication
from rvpn.keyexchange.credentials import Credentials
from rvpn.session.sessions import SAPair, Session, SessionCache


class Grantor(Protocol):
    """What it takes of a node to end what it no longer grants."""

    cache: SessionCache
    credentials: Credentials

    def grants(self, session: Session) -> bool:
        """Tell whether the policy has the peer of `session`, and all its addresses."""

    def fail(self, session: Session, reason: str, now: float, *, failed: bool = True) -> list[Action]:
        """End `session`, and look for another in its place; `failed` tells whether its peer is to blame."""

    def close_pair(self, pair: SAPair, now: float) -> Iterable[Action]:
        """Close `pair`."""

    def time_of_day(self) -> float:
        """Return seconds since 1970."""


class Validity:
    """See the module."""

    def __init__(self, grantor: Grantor, agenda: Agenda) -> None:
        self._grantor = grantor
        self._agenda = agenda

    def objection(self, session: Session, told: Authentication | None) -> str:
        """
        Return why `session` must not be, by the policy or by what it says of the peer's certificate, of which
        the peer `told`.
        """
        if not self._grantor.grants(session):
            return "the policy no longer has it"
        certificates = self._grantor.credentials.certificates
        if told is None or told.mechanism is not Mechanism.TLS or certificates is None:
            return ""
        return certificates.objection(told, session.inner_addresses)

    def watch(self, pair: SAPair, now: float) -> list[Action]:
        """End the session that sends on `pair` when the peer's certificate expires."""
        session, expires_at = pair.session, pair.authentication.expires_at
        if session is None or session.sending is not pair or expires_at == math.inf:
            return []
        left = expires_at - self._grantor.time_of_day()
        if left <= 0:
            return self._grantor.fail(session, "its certificate has expired", now, failed=False)
        then = now + min(left, CERTIFICATE_WATCH_INTERVAL)
        pair.expiry = self._agenda.at(then, lambda later: self.watch(pair, later))
        return []

    def withdraw(self, now: float) -> list[Action]:
        """
        End what files just read no longer grant: sessions, keys nobody confirmed yet, and old keys.

        Nothing passes under them from now on: a peer that is told of the end need not heed it.
        """
        actions: list[Action] = []
        cache = self._grantor.cache
        for session in cache:
            if reason := self.objection(session, session.authentication):
                actions += self._grantor.fail(session, reason, now, failed=False)
        for pair in list(cache.by_spi.values()):
            if pair.session is not None and self.objection(pair.session, pair.authentication):
                actions += self._grantor.close_pair(pair, now)
        return actions
