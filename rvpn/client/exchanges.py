"""
A client's key exchanges with its gateways, those it begins and those that a gateway begins.

    the KMS, a standby, old keys -> `authenticate` -> `initiations` -> granted: the keys are opened
        -> a new session: `Keyholder.came`
        -> none: `Keyholder.without_keys`
    a gateway calls (R12) -> `acceptances` -> the keys are opened, too, for it to prove that it has them

One of the two is enough (DESIGN 3): while our own exchange with a gateway runs, the gateway's is ignored, and
ours drops the keys of a call that nothing confirmed yet.
"""

from collections.abc import Collection, Hashable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from rvpn.agenda import Agenda
from rvpn.constants import MIN_KEY_LIFETIME, Mechanism, Role
from rvpn.datapath.ipfilter import dummy
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.interfaces import (
    Action,
    Endpoint,
    Initiation,
    IPAddress,
    Parameters,
    Path,
    RandomSource,
    SecurityContext,
)
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptances import Acceptances
from rvpn.keyexchange.acceptor import AcceptRequest
from rvpn.keyexchange.credentials import Authorize, Credentials
from rvpn.keyexchange.initiations import Initiations
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.terms import Terms, complaint
from rvpn.keyexchange.tokens import Message
from rvpn.policy.model import Policy
from rvpn.session.session_control import Status
from rvpn.session.sessions import SAPair, Session, SessionCache


class Keyholder(Protocol):
    """What the exchanges need of the client."""

    cache: SessionCache
    credentials: Credentials
    terms: Terms

    def time_of_day(self) -> float:
        """Return seconds since 1970."""

    def open_pair(self, session: Session, pair: SAPair, now: float) -> None:
        """Open `pair` for `session`. Raises `RemoteError` if its peer may not have it."""

    def came(self, session: Session, now: float) -> list[Action]:
        """Hear that there are keys with a gateway with which there was no session."""

    def without_keys(self, gateway: IPAddress, reason: str, now: float) -> list[Action]:
        """Hear that an exchange gave no keys."""

    def fail(self, session: Session, reason: str, now: float) -> list[Action]:
        """End a session that is of no more use, and look for another (R8)."""

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count datagrams."""


class Exchanges:
    """See the module. `inner_addresses` are what the client asks each gateway for."""

    _policy: Policy
    _gateways: Collection[IPAddress]

    def __init__(
        self,
        keyholder: Keyholder,
        inner_addresses: Sequence[IPAddress],
        agenda: Agenda,
        random: RandomSource,
        now: float,
    ) -> None:
        self._keyholder = keyholder
        self._cache = keyholder.cache
        self.inner_addresses = tuple(inner_addresses)
        self._random = random
        self.begun = Initiations(self, agenda)
        self.calls = Acceptances(self, keyholder.credentials.mechanisms, agenda, random, now)

    def read(self, policy: Policy, gateways: Collection[IPAddress], now: float) -> list[Action]:
        """Go on by a policy just read, which names these gateways."""
        self._policy, self._gateways = policy, gateways
        self.begun.lifetime = policy.exchange_time
        self.calls.keep(set(policy.peers.values()))
        return [
            action
            for gateway in self.begun.peers - set(gateways)
            for action in self.begun.give_up(gateway, "the policy no longer names it", now)
        ]

    def begin_anew(self, before: Policy, now: float) -> list[Action]:
        """Begin exchanges anew that are under way with gateways which have another key than `before`."""
        actions: list[Action] = []
        for gateway in self._gateways:
            if gateway in self.begun and self._policy.peer(gateway) != before.peer(gateway):
                self.begun.forget(gateway)
                actions += self.authenticate(gateway, now)
        return actions

    def receive(self, datagram: bytes, path: Path, now: float) -> list[Action]:
        """Take a key exchange datagram. Raises `RemoteError`."""
        message = tokens.decode(datagram)
        if message.to_acceptor:
            return self._called(message, path, now)
        return self.begun.receive(message, path, now)

    # --- ours -----------------------------------------------------------------------------------------------

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Begin an exchange with `gateway`, unless one is under way."""
        if gateway in self.begun:
            return []
        for pair in self.calls.forget(gateway):
            self._cache.remove_pair(pair)
        peer = self._policy.peer(gateway)
        if peer is None:
            return self.given_up(gateway, "the policy has no key for it in [PEERS]", now)
        holder = self._keyholder
        parameters = holder.terms.offer(self._cache.new_spi(), self.inner_addresses)

        def new_context(cookie: bytes) -> SecurityContext:
            return holder.credentials.initiator(
                peer, Role.CLIENT, cookie, parameters, self._random, holder.time_of_day()
            )

        exchange_id, lifetime = self._random.randbytes(8), self._policy.exchange_time
        exchange = InitiatorExchange(exchange_id, peer.mechanism, new_context, now, lifetime)
        try:
            return self.begun.begin(gateway, exchange, Path(Endpoint(gateway, self._policy.port)), now)
        except LocalError as error:
            return self.given_up(gateway, str(error), now)

    def granted(self, peer: Hashable, exchange: InitiatorExchange, path: Path, now: float) -> list[Action]:
        """See `rvpn.keyexchange.initiations.Owner`."""
        context = exchange.context
        assert context is not None
        gateway = path.remote.address
        if problem := complaint(context.own_parameters, context.peer_parameters):
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, problem)
        pair = SAPair(context, initiator=True, path=path, now=now)
        session = self._cache.get(gateway)
        known = session is not None
        if session is None:
            session = Session(gateway, context.peer, path, self.inner_addresses, now)
        self._keyholder.open_pair(session, pair, now)
        _learn(session, context.peer_parameters)
        if known:
            return []
        self._cache.establish(session)
        return self._keyholder.came(session, now)

    def confirm(self, peer: Hashable) -> list[Action]:
        """See `rvpn.keyexchange.initiations.Owner`."""
        session = self._cache.get(peer)
        return [dummy(pair) for pair in session.pairs[-1:] if not pair.confirmed] if session else []

    def given_up(self, peer: Hashable, reason: str, now: float) -> list[Action]:
        """See `rvpn.keyexchange.initiations.Owner`. Keys that were in use before stay so."""
        session = self._cache.get(peer)
        actions: list[Action] = []
        if session is not None:
            for pair in [pair for pair in session.pairs if not pair.confirmed]:
                if session.sending is pair:
                    actions += self._keyholder.fail(session, reason, now)
                else:
                    self._cache.remove_pair(pair)
        assert isinstance(peer, IPv4Address | IPv6Address)
        return actions + self._keyholder.without_keys(peer, reason, now)

    # --- a gateway's (R12) ----------------------------------------------------------------------------------

    def _called(self, message: Message, path: Path, now: float) -> list[Action]:
        """
        Take a first message of a gateway, from its own address and port only (DESIGN 4).

        While our own exchange with it runs, the gateway's is ignored: one of the two is enough.
        """
        gateway = path.remote.address
        if gateway not in self._gateways or path.remote.port != self._policy.port:
            raise RemoteError(DropReason.WRONG_ORIGIN)
        if gateway in self.begun:
            raise RemoteError(DropReason.UNKNOWN_EXCHANGE, "our own exchange with it is under way")
        return self.calls.receive(message, path, now)

    def context(self, mechanism: Mechanism, request: AcceptRequest, authorize: Authorize) -> SecurityContext:
        """See `rvpn.keyexchange.acceptances.Owner`."""
        peer, holder = self._policy.peer(request.path.remote.address), self._keyholder
        if peer is None or peer.mechanism is not mechanism:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "not the mechanism of that gateway")
        return holder.credentials.acceptor(
            mechanism, peer, Role.GATEWAY, request.cookie, authorize, self._random, holder.time_of_day()
        )

    def authorize(self, request: AcceptRequest, initiation: Initiation) -> Parameters:
        """Decide about a gateway that calls: it must have the key that the policy has for its address."""
        if self._policy.peer(request.path.remote.address) != initiation.identity:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "not the key of that gateway")
        offer = initiation.parameters
        return self._keyholder.terms.answer(self._cache.new_spi(), offer, self._refusal(offer))

    def _refusal(self, offer: Parameters) -> str:
        """Say why a gateway's offer is refused; empty if it is not."""
        if not self._keyholder.terms.in_common(offer):
            return "no transform in common"
        if not set(offer.inner_addresses) <= set(self.inner_addresses) or not offer.inner_addresses:
            return "these are not this client's inner addresses"
        if offer.lifetime < MIN_KEY_LIFETIME:
            return "its key lifetime is too short"
        if offer.literal_heartbeats != self._policy.literal_heartbeats:
            return "HeartbeatAuthentication differs"
        return ""

    def accepted(self, context: SecurityContext, path: Path, now: float) -> SAPair:
        """See `rvpn.keyexchange.acceptances.Owner`. The kernel chooses the address that ESP leaves from."""
        path = Path(path.remote)
        pair = SAPair(context, initiator=False, path=path, now=now)
        inner_addresses = context.own_parameters.inner_addresses
        session = Session(path.remote.address, context.peer, path, inner_addresses, now)
        _learn(session, context.peer_parameters)
        self._keyholder.open_pair(session, pair, now)
        return pair

    def declined(self, context: SecurityContext) -> list[Action]:
        """See `rvpn.keyexchange.acceptances.Owner`: the gateway tells its own log."""
        return []

    def exchange_refused(self, error: RemoteError, path: Path, now: float) -> list[Action]:
        """See `rvpn.keyexchange.acceptances.Owner`."""
        self._keyholder.drop(error.reason)
        return []


def _learn(session: Session, told: Parameters) -> None:
    """Take what a gateway says of itself during a key exchange."""
    session.status = Status(told.status)
    session.shortest_defer = told.shortest_defer
