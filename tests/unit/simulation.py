"""
A network in memory: clients and gateways as calculations, joined by a queue of datagrams and a clock that the
test moves. Nothing here is random but by the test's seed.

    packet -> `send` -> node -> `inject` -> cuts, `wire` -> `run` -> node -> `delivered`
    a gateway delivers on the LAN -> `echo`: the target answers, by the gateway that announced the client last
"""

import heapq
import random
import struct
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import count
from typing import Any, Generic, TypeVar

from rvpn.client.node import Client
from rvpn.constants import KEY_EXCHANGE_MARKER, VNET_HEADER, Mechanism
from rvpn.datapath.offload import COMPLETE
from rvpn.datapath.packet import checksum
from rvpn.gateway.node import Gateway
from rvpn.interfaces import (
    Action,
    Announce,
    DatagramBatch,
    Deliver,
    Endpoint,
    Event,
    IPAddress,
    PacketBatch,
    Path,
    PeerIdentity,
    Send,
)
from rvpn.keyexchange.credentials import Credentials
from rvpn.keyexchange.noise import public_key
from rvpn.policy.model import Client as PolicyClient
from rvpn.policy.model import Cluster, Policy, Tunnel
from rvpn.session.lost_keys import LostKeys
from rvpn.session.session_control import CONTROL_SIZE, Kind

CLIENT_ENDPOINT = Endpoint(ip_address("192.0.2.1"), 4500)
INNER = ip_address("10.99.0.1")
INNERS = [INNER, ip_address("10.99.0.2"), ip_address("10.99.0.3")]
TARGET = ip_address("10.0.0.1")
DELAY = 0.0005
#: Somebody who has no keys.
STRANGER = Endpoint(ip_address("203.0.113.66"), 4500)
#: The first bytes of session control.
CONTROL = b"\xff" * 4
#: Datagrams that the socket of a frozen process holds.
SOCKET = 200
#: What a policy of a client says that the gateways' must say too.
_SHARED = {"key_lifetime", "transforms", "literal_heartbeats", "heartbeat_response_time"}


def identity(private_key: bytes) -> PeerIdentity:
    """Return the identity that a private key proves."""
    return PeerIdentity(Mechanism.NOISE, b64encode(public_key(private_key)).decode())


def udp_packet(
    source: IPAddress, destination: IPAddress, payload: bytes, *, dont_fragment: bool = True
) -> bytes:
    """Return an IPv4 packet with a UDP datagram (no UDP checksum)."""
    length = 28 + len(payload)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        length,
        0,
        0x4000 if dont_fragment else 0,
        64,
        17,
        0,
        source.packed,
        destination.packed,
    )
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return head + struct.pack("!HHHH", 1024, 9, length - 20, 0) + payload


#: A packet of the client for a target, and one for the client.
OUT = udp_packet(INNER, TARGET, b"to the LAN")
BACK = udp_packet(TARGET, INNER, b"to the client")


def batch_of(*packets: bytes) -> PacketBatch:
    """Return a batch as the TUN device fills it: each packet behind its virtio_net_hdr."""
    batch = PacketBatch(sum(map(len, packets)))
    for packet in packets:
        batch.view[batch.length : batch.length + len(packet)] = packet
        batch.add(len(packet))
    return batch


def delivered_in(packets: PacketBatch) -> list[bytes]:
    """Return the packets of a batch for the TUN device, without their virtio_net_hdr."""
    return [bytes(packets.view[start + VNET_HEADER : end]) for start, end in packets.spans]


NodeT = TypeVar("NodeT", Client, Gateway)


@dataclass
class Host(Generic[NodeT]):
    """
    A node, where it is, whether it lives, and what it delivered.

    A dead one's kernel answers with ICMP if it `refuses`; a frozen one's `socket` and `lan_events` hold what
    it has not heard of yet.
    """

    node: NodeT
    endpoint: Endpoint
    alive: bool = True
    frozen: bool = False
    refuses: bool = False
    lan_up: bool = True
    lan_events: list[bool] = field(default_factory=list)
    delivered: list[bytes] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    socket: list[tuple[bytes, Endpoint]] = field(default_factory=list)

    @property
    def works(self) -> bool:
        """Whether the process runs."""
        return self.alive and not self.frozen


Wire = Callable[[bytes, Endpoint, Endpoint], Iterable[float]]


def perfect(_datagram: bytes, _source: Endpoint, _destination: Endpoint) -> Iterable[float]:
    """Carry each datagram once, in DELAY seconds."""
    return (DELAY,)


def key_exchange_only(datagram: bytes, _source: Endpoint, _destination: Endpoint) -> Iterable[float]:
    """Carry what makes keys, and nothing that proves that somebody has them."""
    return (DELAY,) if datagram[:4] == KEY_EXCHANGE_MARKER else ()


class Network:
    """
    Clients, and the gateways of one cluster on one LAN.

    `wire(datagram, source, destination)` yields a delay for each copy that arrives: none loses the datagram.
    `cuts` holds the pairs of endpoints between which nothing passes, in that direction.
    """

    def __init__(
        self, gateways: int = 1, seed: int = 1, wire: Wire = perfect, clients: int = 1, **policy: Any
    ) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.wire = wire
        self.cuts: set[tuple[Endpoint, Endpoint]] = set()
        self.echo = False
        self.owner: dict[IPAddress, Host[Gateway]] = {}
        self.starts: dict[bytes, int] = {}
        self.sent: list[tuple[float, bytes, Endpoint, Endpoint]] = []
        self._queue: list[tuple[float, int, bytes, Endpoint, Endpoint]] = []
        self._numbers = count()
        self._datagrams, self._packets = DatagramBatch(1 << 17), PacketBatch(1 << 17)
        addresses = [ip_address(f"198.51.100.{21 + index}") for index in range(gateways)]
        self.keys = [self.random.randbytes(32) for _ in addresses]
        self.client_keys = client_keys = [self.random.randbytes(32) for _ in range(clients)]
        cluster = Cluster("Cluster 1", tuple(addresses))
        self.client_policy = replace(
            Policy(
                clusters=(cluster,),
                tunnels=(Tunnel(1, TARGET, ip_address("10.0.0.3"), cluster),),
                peers={address: identity(key) for address, key in zip(addresses, self.keys, strict=True)},
                inner_addresses=(INNER,),
            ),
            **policy,
        )
        self.gateway_policy = replace(
            Policy(
                clients=tuple(
                    PolicyClient(number, identity(key), (INNERS[number - 1],))
                    for number, key in enumerate(client_keys, 1)
                ),
                lan_networks=(ip_network("10.0.0.0/24"),),
            ),
            **{key: value for key, value in policy.items() if key in _SHARED},
        )
        self.clients = [
            Host(
                self._client(key, inner),
                Endpoint(CLIENT_ENDPOINT.address + index, CLIENT_ENDPOINT.port),
            )
            for index, (key, inner) in enumerate(zip(client_keys, INNERS, strict=False))
        ]
        self.gateways = [
            Host(self._gateway(key), Endpoint(address, 4500))
            for address, key in zip(addresses, self.keys, strict=True)
        ]

    @property
    def client(self) -> Host[Client]:
        """Return the first client."""
        return self.clients[0]

    @property
    def hosts(self) -> list[Host[Any]]:
        """Return the clients and the gateways."""
        return [*self.clients, *self.gateways]

    def clock(self) -> float:
        """Return the time of day."""
        return 1.7e9 + self.now

    def _client(self, key: bytes, inner: IPAddress) -> Client:
        policy = replace(self.client_policy, inner_addresses=(inner,))
        return Client(policy, Credentials(key), (inner,), self.random, self.clock, self.now)

    def _gateway(self, key: bytes) -> Gateway:
        self.starts[key] = self.starts.get(key, 0) + 1
        lost_keys = LostKeys(key, self.starts[key])
        return Gateway(
            self.gateway_policy, Credentials(key), self.random, self.clock, self.now, lost_keys=lost_keys
        )

    def control(
        self, kind: Kind, source: Host[Any] | None = None, destination: Host[Any] | None = None
    ) -> list[float]:
        """Return when control packets of a kind were sent, of one host or to one host if they are named."""
        return [
            time
            for time, datagram, origin, goal in self.sent
            if datagram[:4] == CONTROL and len(datagram) == CONTROL_SIZE and datagram[4] == kind
            if (source is None or origin == source.endpoint)
            and (destination is None or goal == destination.endpoint)
        ]

    def sent_by(self, host: Host[Any]) -> list[tuple[float, bytes, Endpoint]]:
        """Return what a host sent: when, what, and where to."""
        return [(time, data, goal) for time, data, origin, goal in self.sent if origin == host.endpoint]

    @property
    def in_use(self) -> int | None:
        """Return the number of the gateway that the first client uses."""
        session = self.client.node.failover.clusters["Cluster 1"].in_use
        addresses = [host.endpoint.address for host in self.gateways]
        return None if session is None else addresses.index(session.gateway)

    def drops(self, host: Host[Any]) -> dict[str, int]:
        """Return the drop counters of a host."""
        counts: dict[str, int] = host.node.status(self.now)["drops"]
        return counts

    def connect(self, seconds: float = 0.1) -> "Network":
        """Let the first client send a packet, so that it has a session; forget what was sent for it."""
        self.send(self.client, OUT)
        self.run(seconds)
        self.sent.clear()
        return self

    # --- faults -------------------------------------------------------------------------------------------

    def restart(self, index: int) -> None:
        """Replace a gateway by a new process with the same keys on disk, and nothing remembered."""
        host = self.gateways[index]
        host.node = self._gateway(self.keys[index])
        host.alive, host.frozen = True, False
        host.socket.clear()
        host.lan_events.clear()
        if not host.lan_up:
            self._tell_of_lan(host, up=False)

    def thaw(self, host: Host[Any]) -> None:
        """Let a frozen process run again: it takes what its socket holds, and does what is overdue."""
        host.frozen = False
        held, host.socket = host.socket, []
        for datagram, source in held:
            self.receive(host, datagram, source)
        self.act(host, host.node.advance(self.now))
        if isinstance(host.node, Gateway):
            self.act(host, host.node.presence.clock_jumped(self.now))
        while host.lan_events:
            self._tell_of_lan(host, up=host.lan_events.pop(0))

    def cut(self, *hosts: Host[Any]) -> None:
        """Let nothing pass from the first host to the second, nor back."""
        one, other = (host.endpoint for host in hosts)
        self.cuts |= {(one, other), (other, one)}

    def lan(self, host: Host[Gateway], *, up: bool) -> None:
        """Take the LAN side of a gateway down or up, which it notices as soon as it runs (R14)."""
        host.lan_up = up
        if host.works:
            self._tell_of_lan(host, up=up)
        elif host.alive:
            host.lan_events.append(up)

    def _tell_of_lan(self, host: Host[Any], *, up: bool) -> None:
        reason = "its link is up" if up else "its link is down"
        self.act(host, host.node.lan_changed(not up, reason, self.now))

    # --- packets ------------------------------------------------------------------------------------------

    def send(self, host: Host[Any], packet: bytes) -> None:
        """Let a packet come out of the host's TUN device."""
        batch = batch_of(COMPLETE + packet)
        while batch.taken < len(batch.spans):
            actions = host.node.outbound(batch, self._datagrams, self.now)
            for path, datagram in self._datagrams.datagrams():
                self._transmit(host, bytes(datagram), path)
            self.act(host, actions)

    def act(self, host: Host[Any], actions: Sequence[Action]) -> None:
        """Do what a node asks for."""
        for action in actions:
            if isinstance(action, Send):
                self._transmit(host, action.datagram, action.path)
            elif isinstance(action, Deliver):
                host.delivered.append(action.packet)
            elif isinstance(action, Event):
                host.events.append(action.message.format(**action.fields))
            elif isinstance(action, Announce) and host.lan_up:
                self._announce(host, action.address)

    def _announce(self, host: Host[Gateway], address: IPAddress) -> None:
        """Let the LAN hear whose a client's address is; the other gateways hear it too."""
        self.owner[address] = host
        for other in self.gateways:
            if other is not host and other.works and other.lan_up:
                self.act(other, other.node.presence.contradicted(address, self.now))

    def _transmit(self, host: Host[Any], datagram: bytes, path: Path) -> None:
        self.sent.append((self.now, datagram, host.endpoint, path.remote))
        self.inject(datagram, host.endpoint, path.remote)

    def inject(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        """Put a datagram on the wire."""
        if (source, destination) in self.cuts:
            return
        for delay in self.wire(datagram, source, destination):
            heapq.heappush(
                self._queue, (self.now + delay, next(self._numbers), datagram, source, destination)
            )

    def run(self, seconds: float) -> None:
        """Let time pass: datagrams arrive, deadlines are met."""
        end = self.now + seconds
        while (when := self._next()) is not None and when <= end:
            self.now = max(self.now, when)
            while self._queue and self._queue[0][0] <= self.now:
                self._arrive(*heapq.heappop(self._queue)[2:])
            for host in self.hosts:
                deadline = host.node.deadline()
                if host.works and deadline is not None and deadline <= self.now:
                    self.act(host, host.node.advance(self.now))
        self.now = end

    def _next(self) -> float | None:
        times = [host.node.deadline() for host in self.hosts if host.works]
        times += [self._queue[0][0]] if self._queue else []
        return min((time for time in times if time is not None), default=None)

    def _arrive(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        for host in self.hosts:
            if host.endpoint != destination:
                continue
            if host.works:
                self.receive(host, datagram, source)
            elif host.frozen and len(host.socket) < SOCKET:
                host.socket.append((datagram, source))
            elif host.refuses:
                self._refuse(datagram, source, destination)

    def _refuse(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        """Tell the sender by ICMP that nobody listens there."""
        for host in self.hosts:
            if host.endpoint == source and host.works:
                self.act(host, host.node.refused(destination, datagram, self.now))

    def receive(self, host: Host[Any], datagram: bytes, source: Endpoint) -> None:
        """Let a datagram arrive now."""
        if datagram[:4] == KEY_EXCHANGE_MARKER:
            self.act(host, host.node.key_exchange(datagram, Path(source), self.now))
            return
        batch, packets = self._datagrams, self._packets
        batch.clear()
        packets.clear()
        batch.view[: len(datagram)] = datagram
        batch.add(Path(source), len(datagram), len(datagram))
        actions = host.node.inbound(batch, packets, self.now)
        delivered = delivered_in(packets)
        host.delivered += delivered
        self.act(host, actions)
        if self.echo and isinstance(host.node, Gateway) and host.lan_up:
            for packet in delivered:
                self._echo(packet)

    def _echo(self, packet: bytes) -> None:
        """Let the target answer, by the gateway that the LAN knows for the client."""
        source, destination = ip_address(packet[12:16]), ip_address(packet[16:20])
        gateway = self.owner.get(source)
        if gateway is not None and gateway.works and gateway.lan_up:
            self.send(gateway, udp_packet(destination, source, packet[28:]))
