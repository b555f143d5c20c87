"""
What a policy file says, as frozen values (DESIGN 7). `grammar` makes them from text, `lookup` searches them.

Times are in seconds. A tunnel entry for a single gateway holds a cluster of one, named by the address.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from rvpn.constants import (
    CONFIRM_TIME,
    DEFAULT_PORT,
    EXCHANGE_TIME,
    FAILBACK_HOLD_DOWN,
    KEY_LIFETIME,
    PROBE_INTERVAL,
    HeartbeatMode,
    LanPresence,
    Mechanism,
    TransformID,
)
from rvpn.interfaces import Endpoint, IPAddress, IPNetwork, PeerIdentity


@dataclass(frozen=True, slots=True)
class Cluster:
    """Gateways for the same targets, in the order of the policy file."""

    name: str
    members: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class Tunnel:
    """`Tunnel<number>`: targets from `first` to `last` are behind `cluster` (None: AUTO, R15)."""

    number: int
    first: IPAddress
    last: IPAddress
    cluster: Cluster | None


@dataclass(frozen=True, slots=True)
class Redirect:
    """`RedirectTunnel<number>`: where AUTO finds `server`, use `cluster` instead (R15)."""

    number: int
    server: IPAddress
    cluster: Cluster


@dataclass(frozen=True, slots=True)
class Client:
    """`Client<number>`: who may come, with which inner addresses, and where it can be called (R12)."""

    number: int
    identity: PeerIdentity
    inner_addresses: tuple[IPAddress, ...]
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Authority:
    """`Authority<number>`: the file of its certificate, and the inner addresses that its clients may have."""

    number: int
    file: str
    networks: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """
    A whole policy file.

    Heartbeat times of None mean `auto` (X7), `inner_addresses` of None means `own` (R18): the client's outer
    address. `clusters` are those of [CLUSTER] in the order of the file; tunnels and redirects are in the
    order of their numbers. File names are as written: relative to the folder of the policy file.
    """

    heartbeat: HeartbeatMode = HeartbeatMode.NONE
    heartbeat_response_time: float | None = 1.0
    heartbeat_defer_time: float | None = 5.0
    heartbeat_confirm_time: float = CONFIRM_TIME
    literal_heartbeats: bool = False
    randomize_clusters: bool = True
    standby: int = 0
    failback: bool = False
    failback_hold_down: float = FAILBACK_HOLD_DOWN
    port: int = DEFAULT_PORT
    listen: tuple[IPAddress, ...] = (IPv4Address(0), IPv6Address(0))
    offload: bool = True
    transforms: tuple[TransformID, ...] | None = None
    key_lifetime: float = KEY_LIFETIME
    exchange_time: float = EXCHANGE_TIME
    mechanism: Mechanism = Mechanism.NOISE
    clusters: tuple[Cluster, ...] = ()
    tunnels: tuple[Tunnel, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    private_key: str | None = None
    preshared_key: str | None = None
    certificate: str | None = None
    certificate_key: str | None = None
    authorities: tuple[Authority, ...] = ()
    revoked: tuple[str, ...] = ()
    peers: Mapping[IPAddress, PeerIdentity] = field(default_factory=dict)
    clients: tuple[Client, ...] = ()
    device_name: str = "rvpn0"
    inner_addresses: tuple[IPAddress, ...] | None = None
    lan_interface: str | None = None
    lan_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    presence: LanPresence = LanPresence.NONE
    probe: IPAddress | None = None
    probe_interval: float = PROBE_INTERVAL
    control_socket: str | None = None
    state_directory: str | None = None

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """By which mechanisms the gateways authenticate to which this policy leads; none at a gateway."""
        clusters = [t.cluster for t in self.tunnels] + [redirect.cluster for redirect in self.redirects]
        peers = [self.peer(gateway) for c in clusters if c is not None for gateway in c.members]
        found = {self.mechanism if peer is None else peer.mechanism for peer in peers}
        return frozenset(found | {self.mechanism} if None in clusters else found)

    def peer(self, gateway: IPAddress) -> PeerIdentity | None:
        """
        Return who a gateway has to be: what [PEERS] says, else with `Mechanism = tls` who has a certificate
        for its address, else nobody.
        """
        by_default = PeerIdentity(Mechanism.TLS, str(gateway)) if self.mechanism is Mechanism.TLS else None
        return self.peers.get(gateway, by_default)
