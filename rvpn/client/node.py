"""
The client: it finds the cluster for a packet, a gateway of that cluster with a session, or asks the KMS for
one.

    packet from the TUN device -> policy lookup (no entry: dropped) -> the cluster's session in use (R5)
        -> ESP to its gateway
        -> no session: the packet waits and the KMS is asked, once per cluster (R2)
            -> keys: the packets that waited go out
            -> rejected: they are answered with ICMP unreachable (R3)
    ESP from a gateway -> the inner source must map to an entry naming that gateway (R13), the destination be
    ours

Sessions are per gateway, shared by all clusters and tunnel entries that name it (R4). Which of them a cluster
uses, and for how long, is up to `rvpn.failover.failover`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rvpn.client.control import ClientControl
from rvpn.client.exchanges import Exchanges
from rvpn.client.renewal import Renewal
from rvpn.constants import HeartbeatMode, Role
from rvpn.errors import DropReason, RemoteError
from rvpn.failover.cluster import ClusterInUse
from rvpn.failover.failover import Failover
from rvpn.failover.kms import KeyManagementService
from rvpn.interfaces import (
    Action,
    DatagramBatch,
    Endpoint,
    Event,
    IPAddress,
    PacketBatch,
    Path,
    RandomSource,
)
from rvpn.keyexchange.credentials import Credentials
from rvpn.memo import Memo
from rvpn.node import EXPIRED, TunnelEnd, ended
from rvpn.policy.lookup import TunnelIndex
from rvpn.policy.model import Policy
from rvpn.session.sessions import SAPair, Session
from rvpn.session.status import cluster_status, gateway_status

#: Addresses whose policy lookup is remembered.
_REMEMBERED_LOOKUPS = 4096


class Client(TunnelEnd):
    """
    See the module.

    `inner_addresses` are those of this client inside the tunnel; `clock` gives the time of day in seconds
    since 1970, for timestamps and generations; `generation` is the highest ownership generation used before
    (DESIGN 6).
    """

    session_control: ClientControl

    def __init__(
        self,
        policy: Policy,
        credentials: Credentials,
        inner_addresses: Sequence[IPAddress],
        random: RandomSource,
        clock: Callable[[], float],
        now: float,
        generation: int = 0,
    ) -> None:
        super().__init__(credentials, random, clock)
        self._packed_addresses = frozenset(address.packed for address in inner_addresses)
        self.kms = KeyManagementService(self, random)
        self.exchanges = Exchanges(self, inner_addresses, self.agenda, random, now)
        self.failover = Failover(self, self.cache, self.kms, self.agenda, random)
        self.session_control = ClientControl(self, self.failover, self.agenda, random, generation)
        self._renewal = Renewal(self.authenticate, self.failover, self.agenda, random)
        self._read(policy, now)

    def _read(self, policy: Policy, now: float) -> list[Action]:
        self._policy = self.terms.policy = policy
        self._index = TunnelIndex(policy.tunnels)
        self._cluster_of = Memo(self._find_cluster, _REMEMBERED_LOOKUPS)
        named = {t.cluster.name: t.cluster for t in policy.tunnels if t.cluster is not None}
        before = self.failover.clusters.items()
        in_use = {name: cluster.in_use.gateway for name, cluster in before if cluster.in_use is not None}
        self.kms.read(named.values(), randomize=policy.randomize_clusters, in_use=in_use)
        clusters = [ClusterInUse(cluster, self.kms.order(name)) for name, cluster in named.items()]
        self.failover.read(policy, clusters, now)
        return self.exchanges.read(policy, self._gateways(), now)

    def reload(self, policy: Policy, now: float, credentials: Credentials | None = None) -> list[Action]:
        """
        Go on with a policy just read again; sessions with gateways that it still names live on.

        The gateway in use stays while its cluster's members are unchanged (R1). An exchange with one whose
        key has changed begins anew.
        """
        before = self._policy
        self.credentials = credentials or self.credentials
        actions = self._read(policy, now)
        actions += self._validity.withdraw(now)
        actions += self.exchanges.begin_anew(before, now)
        return actions + self.failover.resume(now)

    def certify(self, credentials: Credentials, now: float) -> list[Action]:
        """See `TunnelEnd`."""
        return super().certify(credentials, now) + self.failover.resume(now)

    def grants(self, session: Session) -> bool:
        """See `TunnelEnd`."""
        return session.gateway in self._gateways() and self._policy.peer(session.gateway) == session.peer

    # --- packets --------------------------------------------------------------------------------------------

    def route(self, source: bytes, destination: bytes) -> Session | None:
        """See `rvpn.datapath.sealing.Router`."""
        cluster = self._cluster_of[destination]
        if cluster is None:
            raise RemoteError(DropReason.NO_TUNNEL)
        if source not in self._packed_addresses:
            raise RemoteError(DropReason.WRONG_SOURCE)
        return cluster.in_use

    def payload_sent(self, session: Session, now: float) -> Sequence[Action]:
        """See `rvpn.datapath.sealing.Router`."""
        self.failover.first_packets.sent(session, now)
        return self.failover.liveness.payload(session, now)

    def inbound(self, datagrams: DatagramBatch, packets: PacketBatch, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        actions = self.filter.open(datagrams, packets, now)
        if self.failover.first_packets.expected:
            for session in self.filter.heard:
                actions += self.failover.first_packets.received(session, now)
        return actions

    def close(self, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        for cluster in self.failover.clusters.values():
            cluster.in_use = None
        return super().close(now)

    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """Let through what comes from a target behind that gateway (R13) to one of our inner addresses."""
        if destination not in self._packed_addresses:
            raise RemoteError(DropReason.WRONG_DESTINATION)
        cluster = self._cluster_of[source]
        if cluster is None or session.key not in cluster:
            raise RemoteError(DropReason.WRONG_SOURCE)

    def strayed(self, session: Session, path: Path, now: float) -> list[Action]:
        """Take no notice: a client never changes a gateway's address (DESIGN 3)."""
        return []

    def unknown_spi(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""
        raise RemoteError(DropReason.UNKNOWN_SPI)

    def refused(self, remote: Endpoint, quote: bytes, now: float) -> list[Action]:
        """
        Hear an ICMP error about a datagram of ours, of which it quotes the beginning: a hint (X6).

        It must quote our SPI and a recent sequence: who is not on the path cannot make that up.
        """
        session = self.cache.by_endpoint.get(remote)
        pair = session.sending if session is not None else None
        if session is None or pair is None or not pair.sent_lately(quote):
            return []
        return self.failover.liveness.hint(session, now)

    def host_changed(self, now: float) -> list[Action]:
        """Hear that links or addresses of this host changed, or that it slept: probe at once (X6)."""
        return self.failover.network_changed(now)

    def _find_cluster(self, address: bytes) -> ClusterInUse | None:
        """Return the cluster of the first tunnel entry that covers `address` (packed)."""
        tunnel = self._index.find_packed(address)
        if tunnel is None or tunnel.cluster is None:
            return None
        return self.failover.clusters[tunnel.cluster.name]

    def without_session(
        self, packet: memoryview, source: bytes, destination: bytes, now: float
    ) -> Sequence[Action]:
        """See `rvpn.datapath.sealing.Router`."""
        cluster = self._cluster_of[destination]
        assert cluster is not None
        self.drop(DropReason.QUEUE_FULL, cluster.packets.add(bytes(packet)))
        actions = self.failover.choose(cluster, now)
        return actions if cluster.in_use else actions + self.kms.request(cluster.cluster.name, now)

    def send_waiting(self, cluster: ClusterInUse, session: Session, now: float) -> list[Action]:
        """See `rvpn.failover.failover.Mover`."""
        return self.sealer.seal_waiting(session, cluster.packets.take(), now)

    # --- keys -----------------------------------------------------------------------------------------------

    def key_exchange(self, datagram: bytes, path: Path, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        try:
            return self.exchanges.receive(datagram, path, now)
        except RemoteError as error:
            self.drop(error.reason)
            return ()

    def unreachable(self, remote: Endpoint, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`: a gateway being asked is given up (R3), one in use is asked (X6)."""
        actions = self.exchanges.begun.give_up(remote.address, "the network is unreachable", now)
        session = self.cache.get(remote.address)
        return actions + (self.failover.liveness.hint(session, now) if session is not None else [])

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """See `rvpn.failover.kms.Requester`."""
        return self.exchanges.authenticate(gateway, now)

    def came(self, session: Session, now: float) -> list[Action]:
        """See `rvpn.client.exchanges.Keyholder`: clusters that wait for a gateway take it."""
        told = Event("session with gateway {gateway} established", {"gateway": session.name})
        return [told] + [
            action
            for cluster in self.failover.of(session.gateway)
            if cluster.in_use is None and (cluster.waiting or cluster.vacancy)
            for action in self.failover.choose(cluster, now)
        ]

    def without_keys(self, gateway: IPAddress, reason: str, now: float) -> list[Action]:
        """See `rvpn.client.exchanges.Keyholder`. Keys in use stay so, to be renewed a little later."""
        session = self.cache.get(gateway)
        if session is not None and session.sending is not None:
            self._renewal.again(session.sending, now)
        actions = self.failover.no_keys(gateway, now)
        return actions + self.kms.given_up(gateway, reason, now)

    def _gateways(self) -> set[IPAddress]:
        return {gateway for cluster in self.failover.clusters.values() for gateway in cluster.cluster.members}

    def rejected(self, cluster: str, now: float) -> list[Action]:
        """See `rvpn.failover.kms.Requester`."""
        state = self.failover.clusters.get(cluster)
        self.failover.rejected(cluster)
        waiting = state.packets.take() if state else []
        return [
            action for packet in waiting for action in self._unreachable(packet, DropReason.REQUEST_REJECTED)
        ]

    # --- the life of a session ------------------------------------------------------------------------------

    def close_pair(self, pair: SAPair, now: float) -> Iterable[Action]:
        """See `TunnelEnd`. Keys of a call that close unconfirmed are waited for no more (R12)."""
        self.exchanges.calls.closed(pair)
        return super().close_pair(pair, now)

    def _expired(self, session: Session, now: float) -> list[Action]:
        """
        See `TunnelEnd`. It is no failure where nobody wants the session any more (X1), nor where this client
        is DEFERRED and idle, and so renewed no keys (R9).
        """
        if self.failover.is_wanted(session) and self._policy.heartbeat is not HeartbeatMode.DEFERRED:
            return super()._expired(session, now)
        self._retire(session, now)
        return [ended(session, EXPIRED), *self.failover.expired(session, now)]

    def _confirmed(self, pair: SAPair, now: float) -> list[Action]:
        session = pair.session
        assert session is not None
        called = self.exchanges.calls.confirmed(pair)
        if session.sending is not pair:
            return []  # newer keys were confirmed first
        round_trip = self.exchanges.begun.confirmed(session.gateway, now)
        if round_trip is not None:
            # The gateway derived keys meanwhile: the first control packet will tell better.
            session.round_trip.guess(round_trip)
            self.failover.liveness.rearm(session)
        self.kms.confirmed(session.gateway)
        session.heard(now)
        renewed = len(session.pairs) > 1
        self._renewal.plan(pair, now)
        return self.failover.established(session, now, called=called, renewed=renewed)

    def _lost(self, session: Session, reason: str, now: float, *, failed: bool = True) -> list[Action]:
        """Take the gateway last from now on, and go on with another (R3, R5, R8)."""
        self.kms.put_last(session.gateway, now)
        return self.failover.lost(session, reason, now, failed=failed)

    # --- session control (rvpn.failover.failover.Mover) ----------------------------------------------------

    def heartbeat(self, session: Session) -> tuple[list[Action], int]:
        """See `rvpn.failover.liveness.Asker`."""
        return self.session_control.heartbeat(session)

    def claim(self, session: Session, now: float) -> list[Action]:
        """See `rvpn.failover.failover.Mover`."""
        return self.session_control.claim(session, now)

    # --- status ---------------------------------------------------------------------------------------------

    def status(self, now: float) -> dict[str, Any]:
        """See `rvpn.interfaces.Node`."""
        return {
            "role": Role.CLIENT.value,
            "sessions": [
                gateway_status(session, in_use=bool(self.failover.using(session)), now=now)
                for session in self.cache
            ],
            "clusters": [cluster_status(cluster) for cluster in self.failover.clusters.values()],
            "exchanges": {
                "running": len(self.exchanges.begun),
                "established": self.kms.established,
                "failed": self.kms.failures,
            },
            "drops": self.drop_counts(),
            "failovers": self.failover.journal.status(),
            "promise": self.failover.promise(now),
        }
