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
    TransformID,
)
from rvpn.interfaces import Endpoint, IPAddress, PeerIdentity


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
    transforms: tuple[TransformID, ...] = (TransformID.AES_GCM_16_256, TransformID.CHACHA20_POLY1305)
    key_lifetime: float = KEY_LIFETIME
    exchange_time: float = EXCHANGE_TIME
    clusters: tuple[Cluster, ...] = ()
    tunnels: tuple[Tunnel, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    private_key: str | None = None
    preshared_key: str | None = None
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
