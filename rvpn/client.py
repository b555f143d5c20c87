"""
The client: it finds the cluster for a packet, a gateway of that cluster with a session, or asks the KMS for
one.

    packet from the TUN device -> policy lookup (no entry: dropped) -> the cluster's session in use (R5)
        -> ESP to its gateway
        -> no session: the packet waits and the KMS is asked, once per cluster (R2)
            -> granted: the packets that waited go out
            -> rejected: they are answered with ICMP unreachable (R3)
    ESP from a gateway -> the inner source must map to an entry naming that gateway (R13), the destination be
    ours

Sessions are per gateway, shared by all clusters and tunnel entries that name it (R4).
"""

from collections.abc import Callable, Sequence
from typing import Any

from rvpn.cluster import ClusterInUse
from rvpn.constants import (
    BACKOFF_LAST,
    LINK_MTU,
    MIN_KEY_LIFETIME,
    REKEY_JITTER,
    REKEY_PACKETS,
    REKEY_WATCH_INTERVAL,
    Mechanism,
    Role,
)
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.interfaces import (
    Action,
    DatagramBatch,
    Endpoint,
    Event,
    IPAddress,
    Parameters,
    Path,
    RandomSource,
    Send,
)
from rvpn.ipfilter import dummy
from rvpn.keyexchange import tokens
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.keys import binding
from rvpn.keyexchange.noise import NoiseInitiator, tai64n
from rvpn.kms import KeyManagementService
from rvpn.node import Credentials, TunnelEnd
from rvpn.packet import addresses
from rvpn.policy.lookup import TunnelIndex
from rvpn.policy.model import Policy
from rvpn.sessions import SAPair, Session

#: Addresses whose policy lookup is remembered; when there are more, all are forgotten.
_REMEMBERED_LOOKUPS = 4096


class Client(TunnelEnd):
    """
    See the module.

    `inner_addresses` are those of this client inside the tunnel; `clock` gives the time of day in seconds
    since 1970, for the timestamp of first messages.
    """

    def __init__(
        self,
        policy: Policy,
        credentials: Credentials,
        inner_addresses: Sequence[IPAddress],
        random: RandomSource,
        clock: Callable[[], float],
        link_mtu: int = LINK_MTU,
    ) -> None:
        super().__init__(credentials, random, link_mtu)
        self._inner_addresses = tuple(inner_addresses)
        self._packed_addresses = frozenset(address.packed for address in inner_addresses)
        self._clock = clock
        self.kms = KeyManagementService(
            self, self.agenda, random, port=policy.port, exchange_time=policy.exchange_time
        )
        self._clusters: dict[str, ClusterInUse] = {}
        self._read(policy)

    def _read(self, policy: Policy) -> None:
        self._policy = policy
        self._index = TunnelIndex(policy.tunnels)
        self._lookups: dict[bytes, ClusterInUse | None] = {}
        clusters = {t.cluster.name: t.cluster for t in policy.tunnels if t.cluster is not None}
        self.kms.read(clusters.values(), randomize=policy.randomize_clusters)
        before, self._clusters = self._clusters, {}
        for name, cluster in clusters.items():
            self._clusters[name] = state = ClusterInUse(cluster, self.kms.order(name))
            if name in before and set(before[name].cluster.members) == set(cluster.members):
                state.take_over(before[name])

    def reload(self, policy: Policy, now: float) -> list[Action]:
        """
        Go on with a policy just read again; sessions with gateways that it still names live on.

        The gateway in use stays while its cluster's members are unchanged (R1).
        """
        self._read(policy)
        actions: list[Action] = []
        named = {gateway for state in self._clusters.values() for gateway in state.cluster.members}
        for session in self.cache:
            if session.key not in named or policy.peers.get(session.path.remote.address) != session.peer:
                actions += self.end(session, "the policy no longer has it", now)
        for gateway in self.kms.running - named:
            actions += self.kms.leave(gateway, now)
        return actions

    # --- packets -----------------------------------------------------------------------------------------

    def outbound(self, packet: memoryview, datagrams: DatagramBatch, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        try:
            next_header, source, destination = addresses(packet)
            cluster = self._cluster_of(destination)
            if cluster is None:
                self.drop(DropReason.NO_TUNNEL)
                return ()
            if source not in self._packed_addresses:
                self.drop(DropReason.WRONG_SOURCE)
                return ()
            session = cluster.choose(self.cache.get)
            if session is None:
                return self._wait(cluster, packet, now)
            return self._seal(session, packet, next_header, datagrams, now)
        except RemoteError as error:
            self.drop(error.reason)
            return ()

    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """Let through what comes from a target behind that gateway (R13) to one of our inner addresses."""
        if destination not in self._packed_addresses:
            raise RemoteError(DropReason.WRONG_DESTINATION)
        cluster = self._cluster_of(source)
        if cluster is None or session.key not in cluster.cluster.members:
            raise RemoteError(DropReason.WRONG_SOURCE)

    def _cluster_of(self, address: bytes) -> ClusterInUse | None:
        """Return the cluster of the first tunnel entry that covers `address` (packed)."""
        try:
            return self._lookups[address]
        except KeyError:
            pass
        if len(self._lookups) >= _REMEMBERED_LOOKUPS:
            self._lookups.clear()
        tunnel = self._index.find_packed(address)
        cluster = (
            self._clusters[tunnel.cluster.name] if tunnel is not None and tunnel.cluster is not None else None
        )
        self._lookups[address] = cluster
        return cluster

    def _wait(self, cluster: ClusterInUse, packet: memoryview, now: float) -> list[Action]:
        if not cluster.wait(bytes(packet)):
            self.drop(DropReason.QUEUE_FULL)
        return self.kms.request(cluster.cluster.name, now)

    def _send_waiting(self, cluster: ClusterInUse, session: Session, now: float) -> list[Action]:
        """Seal what waited for `session`, one datagram each."""
        actions: list[Action] = []
        datagram = DatagramBatch(1 << 16)
        for packet in cluster.take_waiting():
            datagram.clear()
            next_header, _, _ = addresses(memoryview(packet))
            try:
                actions += self._seal(session, packet, next_header, datagram, now)
            except RemoteError as error:
                self.drop(error.reason)
            if datagram.count:
                actions.append(Send(bytes(datagram.view[: datagram.length]), session.path))
        return actions

    # --- key exchange --------------------------------------------------------------------------------------

    def key_exchange(self, datagram: bytes, path: Path, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        try:
            return self.kms.receive(tokens.decode(datagram), path, now)
        except RemoteError as error:
            self.drop(error.reason)
            return ()

    def unreachable(self, remote: Endpoint, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self.kms.unreachable(remote.address, now)

    def authenticate(self, gateway: IPAddress, now: float) -> InitiatorExchange:
        """See `rvpn.kms.Requester`."""
        peer = self._policy.peers.get(gateway)
        if peer is None:
            raise LocalError("the policy has no key for it in [PEERS]")
        parameters = Parameters(
            spi=self.cache.new_spi(),
            transforms=self._policy.transforms,
            inner_addresses=self._inner_addresses,
            lifetime=self._policy.key_lifetime,
        )

        def new_context(cookie: bytes) -> NoiseInitiator:
            return NoiseInitiator(
                private_key=self._credentials.private_key,
                peer=peer,
                ephemeral=self._random.randbytes(32),
                preshared_key=self._credentials.preshared_key,
                prologue=binding(Mechanism.NOISE, Role.CLIENT, cookie),
                timestamp=tai64n(self._clock()),
                parameters=parameters,
            )

        exchange_id = self._random.randbytes(8)
        return InitiatorExchange(exchange_id, Mechanism.NOISE, new_context, now, self._policy.exchange_time)

    def granted(
        self, gateway: IPAddress, exchange: InitiatorExchange, path: Path, now: float
    ) -> list[Action]:
        """See `rvpn.kms.Requester`."""
        context = exchange.context
        assert context is not None
        self._check_answer(context.own_parameters, context.peer_parameters)
        pair = SAPair(context, initiator=True, path=path, now=now)
        session = self.cache.get(gateway)
        if session is not None:
            self._open_pair(session, pair, now)
            return []
        session = Session(gateway, context.peer, path, self._inner_addresses, now)
        self._open_pair(session, pair, now)
        self.cache.establish(session)
        actions: list[Action] = [
            Event("session with gateway {gateway} established", {"gateway": str(gateway)})
        ]
        for cluster in self._clusters.values():
            if cluster.choose(self.cache.get) is session:
                actions += self._send_waiting(cluster, session, now)
        return actions

    def _check_answer(self, offer: Parameters, answer: Parameters) -> None:
        """Take from a gateway only what we offered (DESIGN 4)."""
        if len(answer.transforms) != 1 or answer.transforms[0] not in offer.transforms:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "it chose a transform that was not offered")
        if set(answer.inner_addresses) != set(offer.inner_addresses):
            raise RemoteError(
                DropReason.AUTHENTICATION_FAILED, "it grants other inner addresses than the policy has"
            )
        if not MIN_KEY_LIFETIME <= answer.lifetime <= offer.lifetime:
            raise RemoteError(
                DropReason.AUTHENTICATION_FAILED, "it grants another key lifetime than the policy allows"
            )

    def confirm(self, gateway: IPAddress) -> list[Action]:
        """See `rvpn.kms.Requester`."""
        session = self.cache.get(gateway)
        return [dummy(pair) for pair in session.pairs[-1:] if not pair.confirmed] if session else []

    def failed(self, gateway: IPAddress, now: float) -> list[Action]:
        """See `rvpn.kms.Requester`. Keys that were in use before stay so, and a rekey is tried again."""
        session = self.cache.get(gateway)
        if session is None:
            return []
        for pair in [pair for pair in session.pairs if not pair.confirmed]:
            if session.sending is pair:
                return self._fail(session, "its keys were never confirmed", now)
            self.cache.remove_pair(pair)
        if session.sending is not None:
            delay = BACKOFF_LAST * (0.5 + 0.5 * self._random.random())
            self._watch_age(session.sending, now + min(delay, session.sending.lifetime / 4))
        return []

    def rejected(self, cluster: str, now: float) -> list[Action]:
        """See `rvpn.kms.Requester`."""
        state = self._clusters.get(cluster)
        waiting = state.take_waiting() if state else []
        return [
            action
            for packet in waiting
            for action in self._unreachable(
                packet, addresses(memoryview(packet))[2], DropReason.REQUEST_REJECTED
            )
        ]

    # --- the life of a session -----------------------------------------------------------------------------

    def _confirmed(self, pair: SAPair, now: float) -> list[Action]:
        assert pair.session is not None
        gateway = pair.session.path.remote.address
        self.kms.confirmed(gateway, now)
        jitter = REKEY_JITTER + (1 - REKEY_JITTER) * self._random.random()
        self._watch_age(pair, now + pair.lifetime * jitter)
        return []

    def _watch_age(self, pair: SAPair, renew_at: float) -> None:
        """
        Renew the keys of `pair` at `renew_at`, or earlier if it has carried too many packets (DESIGN 3).
        """

        def look(now: float) -> list[Action]:
            session = pair.session
            if session is None or session.sending is not pair:
                return []
            worn = max(pair.outbound.packets, pair.inbound.window.highest) >= REKEY_PACKETS
            if worn or now >= renew_at:
                return self.kms.renew(session.path.remote.address, now)
            self.agenda.at(min(renew_at, now + REKEY_WATCH_INTERVAL), look)
            return []

        self.agenda.at(min(renew_at, pair.made_at + REKEY_WATCH_INTERVAL), look)

    def _lost(self, session: Session, now: float) -> list[Action]:
        """
        Take the gateway last from now on; the next packet finds another session or asks the KMS (R3, R5).
        """
        self.kms.put_last(session.path.remote.address, now)
        return []

    def status(self, now: float) -> dict[str, Any]:
        """See `rvpn.interfaces.Node`."""
        in_use = {
            state.in_use for state in self._clusters.values() if state.in_use and not state.in_use.closed
        }
        return {
            "role": Role.CLIENT.value,
            "sessions": [
                {
                    "gateway": str(session.key),
                    "in_use": session in in_use,
                    **self.session_status(session, now),
                }
                for session in self.cache
            ],
            "clusters": [self._cluster_status(state) for state in self._clusters.values()],
            "exchanges": {
                "running": len(self.kms.running),
                "established": self.kms.established,
                "failed": self.kms.failures,
            },
            "drops": self.drop_counts(),
        }

    def _cluster_status(self, state: ClusterInUse) -> dict[str, Any]:
        alive = state.in_use is not None and not state.in_use.closed
        return {
            "name": state.cluster.name,
            "order": [str(gateway) for gateway in state.order],
            "in_use": str(state.in_use.key) if alive and state.in_use else None,
            "waiting": state.waiting,
        }
