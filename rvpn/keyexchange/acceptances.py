"""
The exchanges that others began with this node, each from its first token to the confirmation of its keys
(DESIGN 4).

    message -> rvpn.keyexchange.acceptor -> `Owner.context`: the end that answers this peer
        -> `Owner.authorize`: what it is granted; nothing, if the message may be a recording
        -> established -> `Owner.accepted`: the keys are opened, and nothing else changes
        -> a packet opens under them: `confirmed`; they close before: `closed`
    refused on the way -> `Owner.exchange_refused`

The other way round, with the exchanges that this node began, is `rvpn.keyexchange.initiations`.
"""

from collections.abc import Container, Iterable
from functools import partial
from typing import Protocol

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism
from rvpn.errors import RemoteError
from rvpn.interfaces import (
    Action,
    Initiation,
    IPAddress,
    Parameters,
    Path,
    PeerIdentity,
    RandomSource,
    SecurityContext,
    Send,
)
from rvpn.keyexchange.acceptor import Acceptor, AcceptRequest, Established
from rvpn.keyexchange.credentials import Authorize
from rvpn.keyexchange.freshness import Freshness
from rvpn.keyexchange.tokens import Message
from rvpn.session.sessions import SAPair


class Owner(Protocol):
    """Who answers exchanges: a node, or a part of one."""

    def context(self, mechanism: Mechanism, request: AcceptRequest, authorize: Authorize) -> SecurityContext:
        """
        Return the context that answers, and that asks `authorize` what. Raises `RemoteError` if nobody may
        begin an exchange from there.
        """

    def authorize(self, request: AcceptRequest, initiation: Initiation) -> Parameters:
        """Answer an authenticated first message. Raises `RemoteError` if nobody is known by that identity."""

    def accepted(self, context: SecurityContext, path: Path, now: float) -> SAPair:
        """Open the keys of an established context, provisionally. Raises `RemoteError`."""

    def declined(self, context: SecurityContext) -> list[Action]:
        """Hear that a peer is known and was told that it gets no session, and why."""

    def exchange_refused(self, error: RemoteError, path: Path, now: float) -> list[Action]:
        """Hear that an exchange was refused."""


class Acceptances:
    """See the module. `mechanisms` are those by which this node can answer."""

    def __init__(
        self,
        owner: Owner,
        mechanisms: Iterable[Mechanism],
        agenda: Agenda,
        random: RandomSource,
        now: float,
    ) -> None:
        contexts = {mechanism: partial(self._context, mechanism) for mechanism in mechanisms}
        self.acceptor = Acceptor(contexts, agenda, random, now)
        self._owner = owner
        self._freshness = Freshness()
        self._unconfirmed: dict[SAPair, Established] = {}

    def __len__(self) -> int:
        """Return how many pairs wait for the packet that confirms them."""
        return len(self._unconfirmed)

    def keep(self, peers: Container[PeerIdentity]) -> None:
        """Forget what was remembered of all but these peers."""
        self._freshness.keep(peers)

    def receive(self, message: Message, path: Path, now: float) -> list[Action]:
        """Take a message for an acceptor, and answer it. Raises `RemoteError` for what draws no answer."""
        reply = self.acceptor.receive(message, path, now)
        actions: list[Action] = []
        if reply.established is not None:
            try:
                actions = self._accept(reply.established, now)
            except RemoteError as error:
                reply = self.acceptor.refuse(reply.established, message, error)
        if reply.refused is not None:
            actions += self._owner.exchange_refused(reply.refused, path, now)
        return [*(Send(answer, path) for answer in reply.datagrams), *actions]

    def confirmed(self, pair: SAPair) -> bool:
        """Hear that a packet opened under `pair`; return whether it waited for that here."""
        established = self._unconfirmed.pop(pair, None)
        if established is not None:
            self.acceptor.confirmed(established)
        return established is not None

    def closed(self, pair: SAPair) -> bool:
        """Hear that `pair` closes; return whether it still waited to be confirmed."""
        return self._unconfirmed.pop(pair, None) is not None

    def forget(self, origin: IPAddress) -> list[SAPair]:
        """Wait no more for keys of exchanges from this address to be confirmed; return what to close."""
        pairs = [pair for pair in self._unconfirmed if pair.path.remote.address == origin]
        for pair in pairs:
            del self._unconfirmed[pair]
        return pairs

    def _context(self, mechanism: Mechanism, request: AcceptRequest) -> SecurityContext:
        return self._owner.context(mechanism, request, partial(self._authorize, request))

    def _authorize(self, request: AcceptRequest, initiation: Initiation) -> Parameters:
        """Let the owner decide; only of whom it knows is the newest timestamp kept."""
        answer = self._owner.authorize(request, initiation)
        if initiation.timestamp is not None:
            self._freshness.check(initiation.identity, initiation.timestamp, request.cookie)
        return answer

    def _accept(self, established: Established, now: float) -> list[Action]:
        context = established.context
        if context.own_parameters.refusal:
            return self._owner.declined(context)
        self._unconfirmed[self._owner.accepted(context, established.path, now)] = established
        return []
