"""
The exchanges that this node began, each from its first token to the confirmation of its keys (DESIGN 4).

    begin -> tokens, repeated until answered -> granted: the owner caches the keys
        -> a packet under the new keys, repeated until one comes back -> confirmed: forgotten
    no answer, a refusal, unusable keys, no confirmation in time -> given up, with the reason

There is at most one exchange with a peer at a time. A client begins them for its KMS, a gateway to call a
client that it has packets for (R12).
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import EXCHANGE_TIME, RETRANSMIT_CONSTANT, RETRANSMIT_INTERVAL
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import Action, Path, Send
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.tokens import Message


class Owner(Protocol):
    """Who began the exchanges. `peer` is what it called the peer in `begin`."""

    def granted(self, peer: Hashable, exchange: InitiatorExchange, path: Path, now: float) -> list[Action]:
        """
        Cache the keys of an established exchange. Raises `RemoteError` if what the peer says is unusable.
        """

    def confirm(self, peer: Hashable) -> list[Action]:
        """Send a packet under the new keys, so that the peer sees that we have them."""

    def given_up(self, peer: Hashable, reason: str, now: float) -> list[Action]:
        """Forget keys of `peer` that were granted but not confirmed, and go on without."""


@dataclass(slots=True)
class _Initiation:
    peer: Hashable
    exchange: InitiatorExchange
    path: Path
    expires_at: float
    timer: Appointment | None = None
    granted: bool = False
    confirmations: int = 0
    asked_at: float = 0.0


class Initiations:
    """See the module. `lifetime` is the policy's ExchangeTime in seconds."""

    lifetime = EXCHANGE_TIME

    def __init__(self, owner: Owner, agenda: Agenda) -> None:
        self._owner = owner
        self._agenda = agenda
        self._running: dict[Hashable, _Initiation] = {}
        self._by_id: dict[bytes, _Initiation] = {}

    def __contains__(self, peer: Hashable) -> bool:
        return peer in self._running

    def __len__(self) -> int:
        return len(self._running)

    @property
    def peers(self) -> set[Hashable]:
        """With whom exchanges are under way."""
        return set(self._running)

    def begin(self, peer: Hashable, exchange: InitiatorExchange, path: Path, now: float) -> list[Action]:
        """Send the first token of `exchange` along `path`. Raises `LocalError` if it cannot be made."""
        initiation = _Initiation(peer, exchange, path, now + self.lifetime)
        actions = _sends(initiation, exchange.start(now))
        self._running[peer] = self._by_id[exchange.exchange_id] = initiation
        self._rearm(initiation)
        return actions

    def receive(self, message: Message, path: Path, now: float) -> list[Action]:
        """
        Take a message for an initiator.

        Raises `RemoteError` unless it comes from where its exchange goes to: one exchange runs wholly with
        one peer (R3).
        """
        initiation = self._by_id.get(message.exchange_id)
        if initiation is None:
            raise RemoteError(DropReason.UNKNOWN_EXCHANGE)
        if path.remote != initiation.path.remote:
            raise RemoteError(DropReason.WRONG_ORIGIN)
        actions = _sends(initiation, initiation.exchange.receive(message, now))
        if initiation.exchange.context is not None and not initiation.granted:
            actions += self._grant(initiation, now)
        if self._running.get(initiation.peer) is initiation:
            self._rearm(initiation)
        return actions

    def confirmed(self, peer: Hashable, now: float) -> float | None:
        """
        Hear that a packet opened under the new keys of `peer`, and forget the exchange.

        Returns the seconds since the packet that drew it, if only one can have; None if there is no exchange.
        """
        initiation = self._running.get(peer)
        if initiation is None:
            return None
        self.forget(peer)
        return now - initiation.asked_at if initiation.confirmations == 1 else None

    def give_up(self, peer: Hashable, reason: str, now: float) -> list[Action]:
        """End the exchange with `peer`, if there is one."""
        if peer not in self._running:
            return []
        self.forget(peer)
        return self._owner.given_up(peer, reason, now)

    def forget(self, peer: Hashable) -> None:
        """Drop what is under way with `peer` without a word."""
        initiation = self._running.pop(peer, None)
        if initiation is None:
            return
        del self._by_id[initiation.exchange.exchange_id]
        if initiation.timer is not None:
            initiation.timer.cancel()

    # --- one exchange ---------------------------------------------------------------------------------------

    def _grant(self, initiation: _Initiation, now: float) -> list[Action]:
        context = initiation.exchange.context
        assert context is not None
        if context.peer_parameters.refusal:
            return self.give_up(initiation.peer, f"it refuses: {context.peer_parameters.refusal}", now)
        initiation.granted = True
        try:
            actions = self._owner.granted(initiation.peer, initiation.exchange, initiation.path, now)
        except RemoteError as error:
            return self.give_up(initiation.peer, str(error), now)
        return actions + self._confirm(initiation, now)

    def _confirm(self, initiation: _Initiation, now: float) -> list[Action]:
        """Send a packet under the new keys, and again as tokens are sent again, until one comes back."""
        doublings = max(0, initiation.confirmations - RETRANSMIT_CONSTANT)
        initiation.confirmations += 1
        initiation.asked_at = now
        self._set_timer(initiation, now + RETRANSMIT_INTERVAL * 2**doublings)
        return self._owner.confirm(initiation.peer)

    def _due(self, initiation: _Initiation, now: float) -> list[Action]:
        initiation.timer = None
        peer, exchange, over = initiation.peer, initiation.exchange, now >= initiation.expires_at
        if initiation.granted:
            if over:
                return self.give_up(peer, "its keys were never confirmed", now)
            return self._confirm(initiation, now)
        actions = _sends(initiation, exchange.advance(now))
        if over or exchange.failed:
            return actions + self.give_up(peer, exchange.failed or "no answer", now)
        self._rearm(initiation)
        return actions

    def _rearm(self, initiation: _Initiation) -> None:
        if not initiation.granted:
            self._set_timer(initiation, initiation.exchange.deadline())

    def _set_timer(self, initiation: _Initiation, when: float) -> None:
        if initiation.timer is not None:
            initiation.timer.cancel()
        initiation.timer = self._agenda.at(
            min(when, initiation.expires_at), lambda now: self._due(initiation, now)
        )


def _sends(initiation: _Initiation, datagrams: Iterable[bytes]) -> list[Action]:
    return [Send(datagram, initiation.path) for datagram in datagrams]
