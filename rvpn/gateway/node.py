"""
The gateway: it accepts the clients of its policy, and passes packets between their sessions and the LAN.

    first message -> a client of the policy (`clients`), which may have what it asks for (`admission`)
        -> keys, provisional until a packet opens under them (DESIGN 4) -> the client's session
    ESP from a client -> the inner source must be that client's, the destination on the LAN -> TUN device
    packet from the TUN device -> the session of the inner destination -> ESP
        -> none: the gateway calls the client (R12), or answers with ICMP host unreachable
    heartbeat -> answer, with the gateway's status (R10, X4); a change of status is told to every client
"""

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from rvpn.constants import (
    RESPONSE_UNMEASURED,
    Mechanism,
    Role,
)
from rvpn.errors import DropReason, RemoteError
from rvpn.gateway.admission import Admission
from rvpn.gateway.calls import Calls
from rvpn.gateway.clients import Clients
from rvpn.gateway.control import GatewayControl
from rvpn.gateway.presence import Presence
from rvpn.gateway.refusals import Refusals
from rvpn.gateway.roaming import Roaming
from rvpn.interfaces import (
    Action,
    Endpoint,
    Event,
    Fields,
    Initiation,
    Parameters,
    Path,
    RandomSource,
    SecurityContext,
)
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptances import Acceptances
from rvpn.keyexchange.acceptor import AcceptRequest
from rvpn.keyexchange.credentials import Authorize, Credentials
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.memo import Memo
from rvpn.node import TunnelEnd
from rvpn.policy.model import Client, Policy
from rvpn.session.lost_keys import LostKeys
from rvpn.session.session_control import Kind, Status
from rvpn.session.sessions import SAPair, Session
from rvpn.session.status import session_status

#: Addresses of which it is remembered whether they are on the LAN.
_REMEMBERED_TARGETS = 4096


class Gateway(TunnelEnd):
    """
    See the module.

    `lost_keys` makes the tokens of X3. `clock` gives the time of day in seconds since 1970.
    """

    session_control: GatewayControl

    def __init__(
        self,
        policy: Policy,
        credentials: Credentials,
        random: RandomSource,
        clock: Callable[[], float],
        now: float,
        *,
        lost_keys: LostKeys,
    ) -> None:
        super().__init__(credentials, random, clock)
        self.inbound = self.filter.open
        self.session_control = GatewayControl(self, self.agenda)
        self.clients = Clients()
        self.lost_keys = lost_keys
        self.acceptances = Acceptances(self, credentials.mechanisms, self.agenda, random, now)
        self._admission = Admission(self)
        self._refusals = Refusals()
        self._calls = Calls(self, self.agenda)
        self.roaming = Roaming(self.cache, self.agenda, random)
        self.fitness = Status.OK
        self.draining = self._lan_down = False
        self._established = 0
        self.presence = Presence(
            self.session_control.ask_owner, policy.heartbeat_response_time or RESPONSE_UNMEASURED, self.agenda
        )
        self._read(policy)

    def _read(self, policy: Policy) -> None:
        self._policy = self.terms.policy = policy
        self.clients.read(policy)
        self._on_lan = Memo(self._is_on_lan, _REMEMBERED_TARGETS)
        self._calls.read(policy)

    def reload(self, policy: Policy, now: float, credentials: Credentials | None = None) -> list[Action]:
        """Go on with a policy just read again; sessions of clients that it grants the same live on."""
        before = list(self.clients)
        self._read(policy)
        self.presence.response_time = policy.heartbeat_response_time or RESPONSE_UNMEASURED
        return self._go_on_without(before, credentials or self.credentials, now)

    def certify(self, credentials: Credentials, now: float) -> list[Action]:
        """See `TunnelEnd`."""
        return self._go_on_without(list(self.clients), credentials, now)

    def _go_on_without(self, before: Iterable[Client], credentials: Credentials, now: float) -> list[Action]:
        """End what is no longer granted of what was `before`, calls under way too, and keep nothing of it."""
        actions = super().certify(credentials, now)
        self.clients.forget(lambda session: self._validity.objection(session, session.authentication))
        for client in before:
            if not self.clients.has(client):
                actions += self._calls.give_up(client.identity, now)
        known = {client.identity for client in self.clients}
        self.acceptances.keep(known)
        for gone in self.presence.newest.keys() - known:
            del self.presence.newest[gone]
        return actions

    def grants(self, session: Session) -> bool:
        """See `TunnelEnd`."""
        return self.clients.grants(session.peer, session.inner_addresses)

    # --- packets --------------------------------------------------------------------------------------------

    def route(self, source: bytes, destination: bytes) -> Session | None:
        """See `rvpn.datapath.sealing.Router`."""
        return self.cache.by_inner.get(destination)

    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """Let through what comes from an inner address of that client to an address on the LAN."""
        if source not in session.packed_addresses:
            raise RemoteError(DropReason.WRONG_SOURCE)
        if not self._on_lan[destination]:
            raise RemoteError(DropReason.WRONG_DESTINATION)

    def _is_on_lan(self, address: bytes) -> bool:
        target = ip_address(address)
        return any(target in network for network in self._policy.lan_networks)

    def unknown_spi(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Answer ESP of nobody with the proof that its keys are lost, if they are (X3, R16)."""
        self.drop(DropReason.UNKNOWN_SPI)
        return self.session_control.notice(int.from_bytes(datagram[:4]), datagram, path, now)

    # --- key exchange: a client begins ----------------------------------------------------------------------

    def key_exchange(self, datagram: bytes, path: Path, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        try:
            message = tokens.decode(datagram)
            if not message.to_acceptor:
                return self._calls.receive(message, path, now)
            return self.acceptances.receive(message, path, now)
        except RemoteError as error:
            self.drop(error.reason)
            return ()

    def exchange_refused(self, error: RemoteError, path: Path, now: float) -> list[Action]:
        """See `rvpn.keyexchange.acceptances.Owner`."""
        self.drop(error.reason)
        return self._refusals.tell(error, path.remote, now)

    def context(self, mechanism: Mechanism, request: AcceptRequest, authorize: Authorize) -> SecurityContext:
        """See `rvpn.keyexchange.acceptances.Owner`: whoever can authenticate may begin."""
        return self.credentials.acceptor(
            mechanism, None, Role.CLIENT, request.cookie, authorize, self._random, self.time_of_day()
        )

    def authorize(self, request: AcceptRequest, initiation: Initiation) -> Parameters:
        """See `rvpn.keyexchange.acceptances.Owner`: a client of the policy may have what is its own."""
        client = self.clients.of(initiation)
        return self._admission.answer(client, initiation.parameters, request.begun_at)

    def accepted(self, context: SecurityContext, path: Path, now: float) -> SAPair:
        """See `rvpn.keyexchange.acceptances.Owner`: nothing changes before the client has proved itself."""
        peer = context.peer
        pair = SAPair(context, initiator=False, path=path, now=now)
        self.open_pair(Session(peer, peer, path, context.own_parameters.inner_addresses, now), pair, now)
        self._calls.overtaken(peer)
        return pair

    def declined(self, context: SecurityContext) -> list[Action]:
        """See `rvpn.keyexchange.acceptances.Owner`."""
        fields: Fields = {"peer": context.peer.name, "reason": context.own_parameters.refusal}
        return [Event("refused {peer}: {reason}", fields, warning=True)]

    # --- key exchange: this gateway calls (R12) -------------------------------------------------------------

    def without_session(
        self, packet: memoryview, source: bytes, destination: bytes, now: float
    ) -> Sequence[Action]:
        """See `rvpn.datapath.sealing.Router`."""
        client = self.clients.at(destination)
        if client is None or self.draining:
            return self.unreachable_client(packet)
        return self._calls.call(client, self.clients.endpoint(client), packet, now)

    def unreachable_client(self, packet: memoryview | bytes) -> list[Action]:
        """See `rvpn.gateway.calls.Caller`."""
        return self._unreachable(packet, DropReason.NO_SESSION)

    def exchange_with(self, client: Client, now: float) -> InitiatorExchange:
        """See `rvpn.gateway.calls.Caller`."""
        parameters = self._admission.offer(client)

        def new_context(cookie: bytes) -> SecurityContext:
            return self.credentials.initiator(
                client.identity, Role.GATEWAY, cookie, parameters, self._random, self.time_of_day()
            )

        exchange_id, lifetime = self._random.randbytes(8), self._policy.exchange_time
        return InitiatorExchange(exchange_id, client.identity.mechanism, new_context, now, lifetime)

    def open_called(self, context: SecurityContext, path: Path, now: float) -> SAPair:
        """See `rvpn.gateway.calls.Caller`."""
        pair = SAPair(context, initiator=True, path=path, now=now)
        inner_addresses = context.peer_parameters.inner_addresses
        self.open_pair(Session(context.peer, context.peer, path, inner_addresses, now), pair, now)
        return pair

    # --- the life of a session ------------------------------------------------------------------------------

    def close_pair(self, pair: SAPair, now: float) -> Iterable[Action]:
        """See `TunnelEnd`. A client whose keys close before it confirmed them may be called again (R12)."""
        actions = list(super().close_pair(pair, now))
        if self.acceptances.closed(pair) and pair.session is not None:
            actions += self._calls.unconfirmed(pair.session.peer, now)
        return actions

    def confirmed(self, pair: SAPair, now: float) -> list[Action]:
        """
        See `rvpn.datapath.ipfilter.Gatekeeper`. Tells of a client that is suddenly elsewhere: it may be two.

        Raises `RemoteError` if meanwhile somebody else has one of its inner addresses.
        """
        assert pair.session is not None
        if self._admission.taken(pair.session.peer, pair.session.inner_addresses):
            self._close_at(pair, now)
            raise RemoteError(DropReason.WRONG_SOURCE, "another client was faster with this inner address")
        session = self.cache.get(pair.session.peer)
        old = session.path.remote if session is not None else None
        actions = super().confirmed(pair, now)
        if session is None or session.path.remote == old:
            return actions
        fields: Fields = {"peer": session.name, "old": str(old), "new": str(session.path.remote)}
        message = "client {peer} made new keys from {new}, and was at {old}: do two machines have its key?"
        return [*actions, Event(message, fields, warning=True)]

    def _confirmed(self, pair: SAPair, now: float) -> list[Action]:
        self.acceptances.confirmed(pair)
        session = pair.session
        assert session is not None
        if session.sending is not pair:
            return []  # newer keys were confirmed first
        self._established += 1
        self.clients.came(session)
        actions: list[Action] = []
        if len(session.pairs) == 1:
            fields: Fields = {"peer": session.name, "endpoint": str(pair.path.remote)}
            actions.append(Event("session with client {peer} at {endpoint} established", fields))
        return actions + self.sealer.seal_waiting(session, self._calls.confirmed(session.peer, now), now)

    def _lost(self, session: Session, reason: str, now: float, *, failed: bool = True) -> list[Action]:
        """Give the client's addresses up; it comes again if it wants to."""
        return self.presence.released(session)

    def unreachable(self, remote: Endpoint, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`. A gateway has no other way to its client; the counter tells."""
        return ()

    def refused(self, remote: Endpoint, quote: bytes, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`. Clients come and go; their sessions end by age or close."""
        return ()

    def strayed(self, session: Session, path: Path, now: float) -> list[Action]:
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""
        return self.roaming.strayed(session, path, now)

    # --- status (X4, R14) -----------------------------------------------------------------------------------

    def drain(self, draining: bool, now: float) -> list[Action]:
        """
        Ask the clients to use other gateways, and take no new ones; or be a gateway like any other again.
        """
        self.draining = draining
        return self._set_fitness("an administrator says so", now)

    def lan_changed(self, down: bool, reason: str, now: float) -> list[Action]:
        """
        Hear whether the LAN side is of use (R14).

        Who comes back does not know what was announced there meanwhile, and doubts what it owned (DESIGN 8).
        """
        back = self._lan_down and not down
        self._lan_down = down
        actions = self._set_fitness(reason, now)
        return actions + self.presence.clock_jumped(now) if back else actions

    def _set_fitness(self, reason: str, now: float) -> list[Action]:
        before = self.fitness
        self.fitness = Status.DRAINING if self.draining else Status.OK
        if self._lan_down:
            self.fitness = Status.LAN_DOWN
        if self.fitness is before:
            return []
        fields: Fields = {"status": self.fitness.words, "reason": reason}
        told = Event("this gateway's status is now {status}: {reason}", fields, warning=True)
        actions: list[Action] = [told]
        for session in self.cache:
            actions += self.session_control.retransmission.send(session, Kind.STATUS, now, self.fitness)
        return actions

    # --- status ---------------------------------------------------------------------------------------------

    def forget_keys(self, lost_keys: LostKeys, now: float) -> list[Action]:
        """Lose all keys at once, as a restart does, and go on as the next start (X3, R16)."""
        self.lost_keys = lost_keys
        actions: list[Action] = [Event("all keys are forgotten", warning=True)]
        for session in self.cache:
            self.cache.retire(session)
            actions += self._lost(session, "its keys are forgotten", now)
        for pair in list(self.cache.by_spi.values()):
            actions += self.close_pair(pair, now)
        return actions

    def status(self, now: float) -> dict[str, Any]:
        """See `rvpn.interfaces.Node`."""
        return {
            "role": Role.GATEWAY.value,
            "status": self.fitness.label,
            "sessions": [session_status(session, now) for session in self.cache],
            "exchanges": {"running": len(self.acceptances), "established": self._established},
            "drops": self.drop_counts(),
        }
