"""
A network in memory: a client and gateways as calculations, joined by a queue of datagrams and a clock that
the test moves. Nothing here is random but by the test's seed.
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

from rvpn.client import Client
from rvpn.constants import KEY_EXCHANGE_MARKER, Mechanism
from rvpn.gateway import Gateway
from rvpn.interfaces import (
    Action,
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
from rvpn.keyexchange.noise import public_key
from rvpn.lost_keys import LostKeys
from rvpn.node import Credentials
from rvpn.packet import checksum
from rvpn.policy.model import Client as PolicyClient
from rvpn.policy.model import Cluster, Policy, Tunnel

CLIENT_ENDPOINT = Endpoint(ip_address("192.0.2.1"), 4500)
INNER = ip_address("10.99.0.1")
TARGET = ip_address("10.0.0.1")
DELAY = 0.0005


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


NodeT = TypeVar("NodeT", Client, Gateway)


@dataclass
class Host(Generic[NodeT]):
    """A node, where it is, whether it lives, and what it delivered."""

    node: NodeT
    endpoint: Endpoint
    alive: bool = True
    delivered: list[bytes] = field(default_factory=list)
    events: list[str] = field(default_factory=list)


Wire = Callable[[bytes, Endpoint, Endpoint], Iterable[float]]


def perfect(_datagram: bytes, _source: Endpoint, _destination: Endpoint) -> Iterable[float]:
    """Carry each datagram once, in DELAY seconds."""
    return (DELAY,)


class Network:
    """
    Client and gateways of one cluster.

    `wire(datagram, source, destination)` yields a delay for each copy that arrives: none loses the datagram.
    """

    def __init__(self, gateways: int = 1, seed: int = 1, wire: Wire = perfect, **policy: Any) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.wire = wire
        self.starts: dict[bytes, int] = {}
        self.sent: list[tuple[float, bytes, Endpoint, Endpoint]] = []
        self._queue: list[tuple[float, int, bytes, Endpoint, Endpoint]] = []
        self._numbers = count()
        addresses = [ip_address(f"198.51.100.{21 + index}") for index in range(gateways)]
        keys = [self.random.randbytes(32) for _ in addresses]
        client_key = self.random.randbytes(32)
        cluster = Cluster("Cluster 1", tuple(addresses))
        self.client_policy = replace(
            Policy(
                clusters=(cluster,),
                tunnels=(Tunnel(1, TARGET, ip_address("10.0.0.3"), cluster),),
                peers={address: identity(key) for address, key in zip(addresses, keys, strict=True)},
                inner_addresses=(INNER,),
            ),
            **policy,
        )
        self.gateway_policy = replace(
            Policy(
                clients=(PolicyClient(1, identity(client_key), (INNER,)),),
                lan_networks=(ip_network("10.0.0.0/24"),),
            ),
            **{
                key: value
                for key, value in policy.items()
                if key in {"key_lifetime", "transforms", "literal_heartbeats"}
            },
        )
        self.client = Host(
            Client(
                self.client_policy,
                Credentials(client_key),
                (INNER,),
                self.random,
                self.clock,
                self.now,
            ),
            CLIENT_ENDPOINT,
        )
        self.client_key, self.keys = client_key, keys
        self.gateways = [
            Host(
                self._gateway(key),
                Endpoint(address, 4500),
            )
            for address, key in zip(addresses, keys, strict=True)
        ]
        self._datagrams, self._packets = DatagramBatch(1 << 17), PacketBatch(1 << 17)

    @property
    def hosts(self) -> list[Host[Any]]:
        """Return the client and the gateways."""
        return [self.client, *self.gateways]

    def clock(self) -> float:
        """Return the time of day."""
        return 1.7e9 + self.now

    def _gateway(self, key: bytes) -> Gateway:
        self.starts[key] = self.starts.get(key, 0) + 1
        lost_keys = LostKeys(key, self.starts[key])
        return Gateway(
            self.gateway_policy, Credentials(key), self.random, self.clock, self.now, lost_keys=lost_keys
        )

    def restart(self, index: int) -> None:
        """Replace a gateway by a new process with the same keys on disk, and nothing remembered."""
        host = self.gateways[index]
        host.node = self._gateway(self.keys[index])
        host.alive = True

    def send(self, host: Host[Any], packet: bytes) -> None:
        """Let a packet come out of the host's TUN device."""
        self._datagrams.clear()
        actions = host.node.outbound(memoryview(packet), self._datagrams, self.now)
        batch = self._datagrams
        if batch.count:
            assert batch.path is not None
            self._transmit(host, bytes(batch.view[: batch.length]), batch.path)
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

    def _transmit(self, host: Host[Any], datagram: bytes, path: Path) -> None:
        self.sent.append((self.now, datagram, host.endpoint, path.remote))
        self.inject(datagram, host.endpoint, path.remote)

    def inject(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        """Put a datagram on the wire."""
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
                if host.alive and deadline is not None and deadline <= self.now:
                    self.act(host, host.node.advance(self.now))
        self.now = end

    def _next(self) -> float | None:
        times = [host.node.deadline() for host in self.hosts if host.alive]
        times += [self._queue[0][0]] if self._queue else []
        return min((time for time in times if time is not None), default=None)

    def _arrive(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        for host in self.hosts:
            if host.endpoint == destination and host.alive:
                self.receive(host, datagram, source)

    def receive(self, host: Host[Any], datagram: bytes, source: Endpoint) -> None:
        """Let a datagram arrive now."""
        if datagram[:4] == KEY_EXCHANGE_MARKER:
            self.act(host, host.node.key_exchange(datagram, Path(source), self.now))
            return
        batch, packets = self._datagrams, self._packets
        batch.clear()
        packets.clear()
        batch.view[: len(datagram)] = datagram
        batch.path, batch.size, batch.length, batch.count = Path(source), len(datagram), len(datagram), 1
        self.act(host, host.node.inbound(batch, packets, self.now))
        host.delivered += [bytes(packets.view[start:end]) for start, end in packets.spans]
