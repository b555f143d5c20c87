"""
A gateway calls a client that it has packets for but no session with (R12).

    packet -> `call`: an exchange towards the client's endpoint, the packet waits
        -> keys confirmed: `confirmed`, the packets that waited go out
        -> none: they are answered with ICMP host unreachable

One attempt per client in a second, and a bounded number in all. If the client begins an exchange meanwhile,
ours is dropped for it (DESIGN 3).
"""

from collections.abc import Collection, Hashable, Sequence
from typing import Protocol

from rvpn.agenda import Agenda
from rvpn.constants import CALL_QUEUE_BYTES, CALL_QUEUE_LENGTH, CALLS_PER_SECOND
from rvpn.datapath.ipfilter import dummy
from rvpn.datapath.waiting import WaitingPackets
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.interfaces import Action, Endpoint, Path, PeerIdentity, SecurityContext
from rvpn.keyexchange.initiations import Initiations
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.terms import complaint
from rvpn.keyexchange.tokens import Message
from rvpn.policy.model import Client, Policy
from rvpn.rate import Rate
from rvpn.session.sessions import SAPair, SessionCache


class Caller(Protocol):
    """What calls need of the gateway."""

    cache: SessionCache

    def exchange_with(self, client: Client, now: float) -> InitiatorExchange:
        """Return a new exchange with `client`. Raises `LocalError` if its key is none."""

    def open_called(self, context: SecurityContext, path: Path, now: float) -> SAPair:
        """Open the keys of an established exchange, provisionally."""

    def unreachable_client(self, packet: memoryview | bytes) -> list[Action]:
        """Answer a packet that cannot be delivered."""

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count packets."""


class Calls:
    """See the module."""

    def __init__(self, caller: Caller, agenda: Agenda) -> None:
        self._caller = caller
        self._initiations = Initiations(self, agenda)
        self._waiting: dict[Hashable, WaitingPackets] = {}
        self._pairs: dict[Hashable, SAPair] = {}
        self._called_at: dict[PeerIdentity, float] = {}
        self._rate = Rate(CALLS_PER_SECOND)

    def read(self, policy: Policy) -> None:
        """Go on by a policy just read."""
        self._initiations.lifetime = policy.exchange_time

    def call(
        self, client: Client, endpoint: Endpoint | None, packet: memoryview, now: float
    ) -> Sequence[Action]:
        """Let `packet` wait for a session with `client`, and begin one if none is under way."""
        peer = client.identity
        if peer in self._waiting:
            self._caller.drop(DropReason.QUEUE_FULL, self._waiting[peer].add(bytes(packet)))
            return ()
        early = now < self._called_at.get(peer, float("-inf")) + 1
        if endpoint is None or early or not self._rate.allows(now):
            return self._caller.unreachable_client(packet)
        self._called_at[peer] = now
        waiting = self._waiting[peer] = WaitingPackets(CALL_QUEUE_LENGTH, CALL_QUEUE_BYTES)
        waiting.add(bytes(packet))
        try:
            exchange = self._caller.exchange_with(client, now)
            return self._initiations.begin(peer, exchange, Path(endpoint), now)
        except LocalError as error:
            return self.given_up(peer, str(error), now)

    def receive(self, message: Message, path: Path, now: float) -> list[Action]:
        """Take a message for an initiator. Raises `RemoteError`."""
        return self._initiations.receive(message, path, now)

    def overtaken(self, peer: PeerIdentity) -> None:
        """Hear that the client itself has authenticated: drop our exchange, and wait for its confirmation."""
        if peer in self._initiations:
            self._initiations.forget(peer)
            self._close(peer)

    def unconfirmed(self, peer: PeerIdentity, now: float) -> list[Action]:
        """Hear that the client authenticated but never proved its keys: nothing more will come of it."""
        return [] if peer in self._initiations else self.given_up(peer, "", now)

    def give_up(self, peer: PeerIdentity, now: float) -> list[Action]:
        """Hear that the policy no longer grants what `peer` was offered."""
        return self._initiations.give_up(peer, "the policy no longer has it", now)

    def confirmed(self, peer: PeerIdentity, now: float) -> Collection[bytes]:
        """Hear that there is a session with the client; return what waited for it."""
        self._initiations.confirmed(peer, now)
        self._pairs.pop(peer, None)
        return self._take(peer)

    def granted(self, peer: Hashable, exchange: InitiatorExchange, path: Path, now: float) -> list[Action]:
        """See `rvpn.keyexchange.initiations.Owner`."""
        context = exchange.context
        assert context is not None
        if problem := complaint(context.own_parameters, context.peer_parameters):
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, problem)
        self._pairs[peer] = self._caller.open_called(context, path, now)
        return []

    def confirm(self, peer: Hashable) -> list[Action]:
        """See `rvpn.keyexchange.initiations.Owner`."""
        return [dummy(self._pairs[peer])]

    def given_up(self, peer: Hashable, reason: str, now: float) -> list[Action]:
        """See `rvpn.keyexchange.initiations.Owner`: what waited for the client cannot reach it."""
        self._close(peer)
        return [action for packet in self._take(peer) for action in self._caller.unreachable_client(packet)]

    def _take(self, peer: Hashable) -> list[bytes]:
        waiting = self._waiting.pop(peer, None)
        return waiting.take() if waiting is not None else []

    def _close(self, peer: Hashable) -> None:
        pair = self._pairs.pop(peer, None)
        if pair is not None:
            self._caller.cache.remove_pair(pair)
