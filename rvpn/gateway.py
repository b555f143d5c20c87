"""
The gateway: it accepts the clients of its policy, and passes packets between their sessions and the LAN.

    first message -> `_authorize`: a client of the policy, not a recording, asking for its own inner addresses
        -> keys, provisional until a packet opens under them (DESIGN 4) -> the client's session
    ESP from a client -> the inner source must be that client's, the destination on the LAN -> TUN device
    packet from the TUN device -> the session of the inner destination -> ESP; none: ICMP host unreachable
    (R12)
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any

from rvpn.constants import LINK_MTU, Mechanism, Role
from rvpn.errors import CookieRequired, DropReason, RemoteError
from rvpn.interfaces import (
    Action,
    DatagramBatch,
    Endpoint,
    Event,
    Parameters,
    Path,
    PeerIdentity,
    RandomSource,
    Send,
)
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import Acceptor, AcceptRequest, Established
from rvpn.keyexchange.keys import binding
from rvpn.keyexchange.noise import Initiation, NoiseAcceptor
from rvpn.node import Credentials, TunnelEnd
from rvpn.packet import addresses
from rvpn.policy.model import Client, Policy
from rvpn.sessions import SAPair, Session

#: Seconds between two lines in the log about refused key exchanges.
REFUSAL_INTERVAL = 1.0
#: LAN addresses whose check is remembered; when there are more, all are forgotten.
_REMEMBERED_TARGETS = 4096


class Gateway(TunnelEnd):
    """See the module."""

    def __init__(
        self,
        policy: Policy,
        credentials: Credentials,
        random: RandomSource,
        now: float,
        link_mtu: int = LINK_MTU,
    ) -> None:
        super().__init__(credentials, random, link_mtu)
        self._newest: dict[PeerIdentity, bytes] = {}
        self._unconfirmed: dict[SAPair, Established] = {}
        self._acceptor = Acceptor({Mechanism.NOISE: self._new_context}, self.agenda, random, now)
        self._established = 0
        self._refusals, self._refusals_told_at = 0, -math.inf
        self._read(policy)

    def _read(self, policy: Policy) -> None:
        self._policy = policy
        self._clients: dict[PeerIdentity, Client] = {client.identity: client for client in policy.clients}
        self._on_lan: dict[bytes, bool] = {}

    def reload(self, policy: Policy, now: float) -> list[Action]:
        """Go on with a policy just read again; sessions of clients that it grants the same live on."""
        self._read(policy)
        actions: list[Action] = []
        for session in self.cache:
            client = self._clients.get(session.peer)
            if client is None or not session.packed_addresses <= {a.packed for a in client.inner_addresses}:
                actions += self.end(session, "the policy no longer has it", now)
        self._newest = {
            identity: newest for identity, newest in self._newest.items() if identity in self._clients
        }
        return actions

    # --- packets -------------------------------------------------------------------------------------------

    def outbound(self, packet: memoryview, datagrams: DatagramBatch, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        try:
            next_header, _, destination = addresses(packet)
            session = self.cache.by_inner.get(destination)
            if session is None:
                return self._unreachable(packet, destination, DropReason.NO_SESSION)
            return self._seal(session, packet, next_header, datagrams, now)
        except RemoteError as error:
            self.drop(error.reason)
            return ()

    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """Let through what comes from an inner address of that client to an address on the LAN."""
        if source not in session.packed_addresses:
            raise RemoteError(DropReason.WRONG_SOURCE)
        if not self._is_on_lan(destination):
            raise RemoteError(DropReason.WRONG_DESTINATION)

    def _is_on_lan(self, address: bytes) -> bool:
        try:
            return self._on_lan[address]
        except KeyError:
            pass
        if len(self._on_lan) >= _REMEMBERED_TARGETS:
            self._on_lan.clear()
        target = ip_address(address)
        self._on_lan[address] = found = any(target in network for network in self._policy.lan_networks)
        return found

    # --- key exchange
    # ----------------------------------------------------------------------------------------

    def key_exchange(self, datagram: bytes, path: Path, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        actions: list[Action] = []
        try:
            reply = self._acceptor.receive(tokens.decode(datagram), path, now)
            actions += [Send(answer, path) for answer in reply.datagrams]
            if reply.refused is not None:
                actions += self._refused(reply.refused, path, now)
            if reply.established is not None:
                actions += self._accept(reply.established, now)
        except RemoteError as error:
            self.drop(error.reason)
        return actions

    def _refused(self, error: RemoteError, path: Path, now: float) -> list[Action]:
        """Count a refusal, and tell of it unless the last such line is fresh: strangers can cause many."""
        self.drop(error.reason)
        self._refusals += 1
        if now < self._refusals_told_at + REFUSAL_INTERVAL:
            return []
        more, self._refusals, self._refusals_told_at = self._refusals - 1, 0, now
        message = "refused a key exchange from {endpoint}: {reason}"
        fields: dict[str, str | int | float | bool] = {"endpoint": str(path.remote), "reason": str(error)}
        if more:
            message, fields = message + " ({more} more before it)", {**fields, "more": more}
        return [Event(message, fields)]

    def _new_context(self, request: AcceptRequest) -> NoiseAcceptor:
        return NoiseAcceptor(
            private_key=self._credentials.private_key,
            ephemeral=self._random.randbytes(32),
            preshared_key=self._credentials.preshared_key,
            prologue=binding(Mechanism.NOISE, Role.CLIENT, request.cookie),
            authorize=partial(self._authorize, request),
        )

    def _authorize(self, request: AcceptRequest, initiation: Initiation) -> Parameters:
        """
        Decide about an authenticated first message, and answer it.

        A timestamp that is not newer than the last from that key, or the first since this gateway started,
        may come from a recording: it draws a cookie, and a message made for that cookie is taken whatever its
        timestamp. The newest timestamp known never falls.
        """
        client = self._clients.get(initiation.identity)
        if client is None:
            raise RemoteError(
                DropReason.AUTHENTICATION_FAILED, f"no client has the key {initiation.identity.name}"
            )
        newest, timestamp = self._newest.get(client.identity), initiation.timestamp or b""
        if not request.cookie and (newest is None or timestamp <= newest):
            raise CookieRequired
        self._newest[client.identity] = max(newest or b"", timestamp)
        return self._answer(client, initiation.parameters)

    def _answer(self, client: Client, offer: Parameters) -> Parameters:
        transforms = [transform for transform in offer.transforms if transform in self._policy.transforms]
        refusal = ""
        if not transforms:
            refusal = "no transform in common"
        elif not offer.inner_addresses or not set(offer.inner_addresses) <= set(client.inner_addresses):
            refusal = "the policy grants this client other inner addresses"
        return Parameters(
            spi=self.cache.new_spi(),
            transforms=tuple(transforms[:1]),
            inner_addresses=offer.inner_addresses if not refusal else (),
            lifetime=min(offer.lifetime, self._policy.key_lifetime),
            refusal=refusal,
        )

    def _accept(self, established: Established, now: float) -> list[Action]:
        """
        Cache the keys of an exchange; nothing else changes before the client proves that it has them (DESIGN
        4).
        """
        context = established.context
        answer, peer = context.own_parameters, context.peer
        if answer.refusal:
            return [
                Event("refused {peer}: {reason}", {"peer": peer.name, "reason": answer.refusal}, warning=True)
            ]
        pair = SAPair(context, initiator=False, path=established.path, now=now)
        session = Session(peer, peer, established.path, answer.inner_addresses, now)
        self._open_pair(session, pair, now)
        self._unconfirmed[pair] = established
        return []

    # --- the life of a session
    # -------------------------------------------------------------------------------

    def _confirmed(self, pair: SAPair, now: float) -> list[Action]:
        established = self._unconfirmed.pop(pair, None)
        if established is not None:
            self._acceptor.confirmed(established)
        self._established += 1
        session = pair.session
        assert session is not None
        if session.sending is not pair or len(session.pairs) > 1:
            return []
        fields: dict[str, str | int | float | bool] = {
            "peer": session.peer.name,
            "endpoint": str(pair.path.remote),
        }
        return [Event("session with client {peer} at {endpoint} established", fields)]

    def _close_pair(self, pair: SAPair, now: float) -> Iterable[Action]:
        self._unconfirmed.pop(pair, None)
        return super()._close_pair(pair, now)

    def _lost(self, session: Session, now: float) -> list[Action]:
        """Nothing more to do: the client comes again if it wants to."""
        return []

    def unreachable(self, remote: Endpoint, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`. A gateway has no other way to its client; the counter tells."""
        return ()

    def status(self, now: float) -> dict[str, Any]:
        """See `rvpn.interfaces.Node`."""
        return {
            "role": Role.GATEWAY.value,
            "sessions": [self.session_status(session, now) for session in self.cache],
            "exchanges": {"running": len(self._unconfirmed), "established": self._established},
            "drops": self.drop_counts(),
        }
