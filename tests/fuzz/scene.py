"""
Where the fuzzing takes place: a client and a gateway joined in memory, IPv4 and IPv6 inside, and the ways to
record true datagrams, to feed mutants, and to measure what they leave behind.

    record(scene) -> Mutator -> Scene.feed(host, mutant, origin) -> node
                                    -> Misbehaviour if a reply or an inner packet goes where it must not
"""

import gc
import sys
import tracemalloc
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any
from unittest import TestCase

from rvpn.client.node import Client
from rvpn.constants import KEY_EXCHANGE_MARKER, Mechanism
from rvpn.datapath.packet import addresses
from rvpn.gateway.node import Gateway
from rvpn.interfaces import Action, Endpoint, IPAddress, PacketBatch, Path, Send
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptances import Acceptances
from rvpn.keyexchange.credentials import Credentials
from rvpn.keyexchange.initiations import Initiations
from rvpn.policy.model import Client as PolicyClient
from rvpn.policy.model import Tunnel
from rvpn.session.literal_heartbeats import LITERAL_SIZE
from rvpn.session.session_control import CONTROL_SIZE, ControlPacket, Kind, Status, encode
from rvpn.session.sessions import SAPair
from tests.fuzz.mutation import Exchange, Family, Live
from tests.unit.keyexchange_ends import chatty
from tests.unit.simulation import CONTROL, DELAY, INNER, TARGET, Host, Network, delivered_in, identity

INNER_6, TARGET_6 = ip_address("2001:db8:99::1"), ip_address("2001:db8::1")
Ends = tuple[IPAddress, IPAddress]
THERE: Ends = INNER, TARGET
THERE_6: Ends = INNER_6, TARGET_6
BACK, BACK_6 = (TARGET, INNER), (TARGET_6, INNER_6)
LAN = (ip_network("10.0.0.0/24"), ip_network("2001:db8::/64"))
#: Bytes by which what is allocated may grow while mutants come (issue 2).
GROWTH = 1 << 20


#: Control packets that nothing but another one draws (DESIGN 6).
ANSWERS = (Kind.ANSWER, Kind.RESPONSE, Kind.ACK)


class Misbehaviour(AssertionError):
    """A node did what nobody may make it do."""


def is_control(datagram: bytes, kind: Kind) -> bool:
    """Tell whether this is a session control packet of a kind."""
    return len(datagram) == CONTROL_SIZE and datagram[:5] == CONTROL + bytes([kind])


def ipv4(ends: Ends, protocol: int, payload: bytes) -> bytes:
    """Return an IPv4 packet that must not be fragmented; its checksum is not filled in."""
    head = bytes((0x45, 0)) + (20 + len(payload)).to_bytes(2) + bytes((0, 0, 0x40, 0, 64, protocol, 0, 0))
    return head + ends[0].packed + ends[1].packed + payload


def ipv6(ends: Ends, protocol: int, payload: bytes) -> bytes:
    """Return an IPv6 packet."""
    head = bytes((0x60, 0, 0, 0)) + len(payload).to_bytes(2) + bytes((protocol, 64))
    return head + ends[0].packed + ends[1].packed + payload


def inner_packets(*, to_target: bool) -> list[bytes]:
    """Return packets from the client to its targets, or back, as hosts send them."""
    udp, ping = bytes((4, 0, 0, 9, 0, 12, 0, 0)) + b"data", bytes((8, 0)) + bytes(30)
    extensions = bytes.fromhex("2b00050200000000 3c00000000000000 2c00010400000000 1100000100000001")
    ends, ends_6 = (THERE, THERE_6) if to_target else (BACK, BACK_6)
    return [
        *(ipv4(ends, protocol, data) for protocol, data in ((17, udp), (1, ping), (1, b"\3\4" + bytes(30)))),
        *(ipv4(ends, 6, bytes(length)) for length in (20, 1200, 1480)),
        *(ipv6(ends_6, protocol, data) for protocol, data in ((17, udp), (0, extensions + udp))),
        *(ipv6(ends_6, 58, kind + bytes(30)) for kind in (b"\x80\0", b"\2\0")),
        *(ipv6(ends_6, 6, bytes(length)) for length in (20, 1200, 1460)),
    ]


class Scene(Network):
    """
    One client and one gateway. The gateway's policy may have another client: its private key, its address.
    """

    def __init__(self, seed: int = 1, other: tuple[bytes, IPAddress] | None = None, **policy: Any) -> None:
        super().__init__(seed=seed, **policy)
        (cluster,) = self.client_policy.clusters
        tunnels = tuple(Tunnel(number, lan[0], lan[-1], cluster) for number, lan in enumerate(LAN))
        self.client_policy = replace(self.client_policy, tunnels=tunnels, inner_addresses=(INNER, INNER_6))
        clients = [PolicyClient(1, identity(self.client_keys[0]), (INNER, INNER_6))]
        if other is not None:
            clients.append(PolicyClient(2, identity(other[0]), other[1:]))
        exchange_time = self.client_policy.exchange_time
        self.gateway_policy = replace(
            self.gateway_policy, clients=tuple(clients), lan_networks=LAN, exchange_time=exchange_time
        )
        own, credentials = (INNER, INNER_6), Credentials(self.client_keys[0])
        self.client.node = Client(self.client_policy, credentials, own, self.random, self.clock, self.now)
        self.restart(0)
        for host in self.hosts:
            host.node.offload(checksums=True, tcp=True, udp=True)
        #: From which endpoints inner packets are expected, and with which of the clients' addresses.
        self.expected: dict[Endpoint, tuple[IPAddress, ...]] = {}
        self._opened = PacketBatch(1 << 17)

    @property
    def gateway(self) -> Host[Gateway]:
        """Return the gateway."""
        return self.gateways[0]

    def sending(self) -> tuple[SAPair, SAPair]:
        """Return the pairs that the client and the gateway send on to each other."""
        client = self.client.node.cache.get(self.gateway.endpoint.address)
        gateway = self.gateway.node.cache.get(identity(self.client_keys[0]))
        assert client is not None
        assert client.sending is not None
        assert gateway is not None
        assert gateway.sending is not None
        return client.sending, gateway.sending

    def ends(self) -> list[tuple[SAPair, Host[Any], Host[Any]]]:
        """Return for either end the pair that it sends on, itself, and the other end."""
        client, gateway = self.sending()
        return [(client, self.client, self.gateway), (gateway, self.gateway, self.client)]

    def live(self, host: Host[Any]) -> Live:
        """Return what selects a session or an exchange at this host."""
        pairs, half_open = host.node.cache.by_spi, self.acceptances(host).acceptor._half_open
        exchanges = [
            Exchange(running.exchange.exchange_id, attempt.cookie)
            for running in self.initiations(host)._running.values()
            for attempt in running.exchange._attempts
        ]
        return Live(
            list(pairs),
            exchanges + [Exchange(*key[1:]) for key in half_open],
            [pair.outbound.spi for pair in pairs.values()],
            list(self.client.node.session_control._literal._outstanding) if host is self.client else (),
        )

    def initiations(self, host: Host[Any]) -> Initiations:
        """Return the exchanges that this host began."""
        if host is self.client:
            return self.client.node.exchanges.begun
        return self.gateway.node._calls._initiations

    def acceptances(self, host: Host[Any]) -> Acceptances:
        """Return the exchanges that others began with this host."""
        return self.client.node.exchanges.calls if host is self.client else self.gateway.node.acceptances

    def appointments(self, host: Host[Any]) -> int:
        """
        Return how many appointments a node may have at most, for all that waits at it.

        A pair closes once and is renewed at a client; exchanges are repeated, and so are claims, closes and
        status. A gateway decides on moves and announces addresses, a client watches gateways, and comes back
        to its clusters and standbys.
        """
        node = host.node
        half_open = len(self.acceptances(host).acceptor)
        expected = (
            len(node.cache.by_spi)
            + half_open
            + len(node.session_control.retransmission)
            + len(self.initiations(host))
        )
        if host is not self.client:
            return expected + len(node.roaming._moves) + len(node.presence._by_client)
        failover = self.client.node.failover
        later = len(failover._asking) + len(failover._retries) + len(failover._seeking._planned)
        return expected + len(node.cache.by_spi) + len(failover.liveness._watched) + later

    def waiting(self, host: Host[Any]) -> int:
        """Return how many inner packets wait for a session."""
        if host is self.client:
            return sum(cluster.waiting for cluster in self.client.node.failover.clusters.values())
        return sum(map(len, self.gateway.node._calls._waiting.values()))

    def feed(self, host: Host[Any], mutant: bytes, origin: Endpoint, size: int = 0) -> list[Send]:
        """
        Let a mutant arrive, `size` bytes of it in each datagram (0: all of it), do what it draws, and return
        the replies.

        Raises `Misbehaviour` if the replies go to somebody else, or together are longer than the mutant. The
        exceptions: addresses that have proved themselves, by the MAC of a cookie, those that the node itself
        began an exchange with, and gateways of the policy.
        Inner packets that waited are no replies, nor are the two challenges of a move: at most two, and one
        of them to where the mutant came from.
        """
        waiting = self.waiting(host)
        asked = [running.path.remote for running in self.initiations(host)._running.values()]
        actions = self.take(host, mutant, origin, size)
        sent = [action for action in actions if isinstance(action, Send)]
        challenges = [send for send in sent if is_control(send.datagram, Kind.CHALLENGE)]
        if challenges and [send.path.remote == origin for send in challenges] != [True, False]:
            raise Misbehaviour(f"{len(mutant)} bytes from {origin} drew {len(challenges)} challenges")
        replies = [send for send in sent if send not in challenges]
        payload = [send for send in replies if send.datagram[:4] not in (CONTROL, KEY_EXCHANGE_MARKER)]
        payload.sort(key=lambda send: len(send.datagram), reverse=True)
        waited = payload[: max(0, waiting - self.waiting(host))]
        replies = [send for send in replies if send not in waited]
        if any(reply.path.remote.address != origin.address for reply in replies):
            raise Misbehaviour(f"{len(mutant)} bytes from {origin} were answered to somebody else")
        proven = mutant[:4] == KEY_EXCHANGE_MARKER and (any(mutant[16:32]) or origin in asked)
        trusted = host is self.client and origin == self.gateway.endpoint
        if sum(len(reply.datagram) for reply in replies) > len(mutant) and not proven and not trusted:
            raise Misbehaviour(f"{len(mutant)} bytes from {origin} drew more than came")
        if sum(any(is_control(reply.datagram, kind) for kind in ANSWERS) for reply in replies) > 1:
            raise Misbehaviour(f"{len(mutant)} bytes from {origin} drew several answers")
        return replies

    def take(self, host: Host[Any], datagram: bytes, origin: Endpoint, size: int = 0) -> list[Action]:
        """Give a datagram to a node as a service does; do what it draws, and return it."""
        if datagram[:4] == KEY_EXCHANGE_MARKER:
            actions = host.node.key_exchange(datagram, Path(origin), self.now)
        else:
            batch, packets = self._datagrams, self._opened
            batch.clear()
            packets.clear()
            batch.view[: len(datagram)] = datagram
            if datagram:
                batch.add(Path(origin), len(datagram), size or len(datagram))
            actions = host.node.inbound(batch, packets, self.now)
            for packet in delivered_in(packets):
                self._deliver(host, packet, origin)
        self.act(host, actions)
        return list(actions)

    def _deliver(self, host: Host[Any], packet: bytes, origin: Endpoint) -> None:
        """Raise `Misbehaviour` unless this inner packet may come from there."""
        _, source, destination = addresses(memoryview(packet))
        inner, target = (destination, source) if host is self.client else (source, destination)
        known = ip_address(inner) in self.expected.get(origin, ())
        if not known or not any(ip_address(target) in lan for lan in LAN):
            raise Misbehaviour(f"a packet from {source.hex()} to {destination.hex()} came by {origin}")
        host.delivered.append(packet)

    def ping(self) -> bool:
        """Return whether a packet of either version goes through to the target and its answer back."""
        there = [ipv4(THERE, 17, b"ping"), ipv6(THERE_6, 17, b"ping")]
        back = [ipv4(BACK, 17, b"pong"), ipv6(BACK_6, 17, b"pong")]
        self.run(10 * DELAY)  # until what is under way has arrived
        self.forget()
        for packet in there:
            self.send(self.client, packet)
        self.run(10 * DELAY)
        for packet in back:
            self.send(self.gateway, packet)
        self.run(10 * DELAY)
        return self.gateway.delivered == there and self.client.delivered == back

    def call(self) -> None:
        """Let the gateway begin an exchange with the client, as for a packet without a session (R12)."""
        (client, *_), packet = self.gateway_policy.clients, memoryview(ipv4(BACK, 17, b"call"))
        calls = self.gateway.node._calls
        self.act(self.gateway, calls.call(client, self.client.endpoint, packet, self.now))

    def forget(self) -> None:
        """Drop what the simulation, not the nodes, keeps of the past."""
        self.sent.clear()
        for host in self.hosts:
            host.delivered.clear()
            host.events.clear()


def check_agenda(scene: Scene, host: Host[Any]) -> None:
    """Raise `Misbehaviour` if a node has more appointments than what waits at it accounts for."""
    appointments, expected = len(host.node.agenda), scene.appointments(host)
    if appointments > expected:
        raise Misbehaviour(f"{appointments} appointments where at most {expected} are expected")


Recordings = dict[Family, list[bytes]]


def record(scene: Scene) -> Recordings:
    """
    Return true datagrams of every kind, both ways: what the nodes of a scene with a session say.

    All have been delivered, so that none is worth anything if it comes again. Therefore the closes among the
    control packets, which would end the session, have the sequence number of another. The lost-key notices
    are true too, but of the start before the session's.
    """
    scene.sent.clear()
    for length in (0, 1, 2, 3, 64, 1300):
        scene.send(scene.client, ipv4(THERE, 17, bytes(length)))
        scene.send(scene.gateway, ipv6(BACK_6, 17, bytes(length)))
    scene.act(scene.client, scene.client.node.authenticate(scene.gateway.endpoint.address, scene.now))
    scene.run(0.1)
    scene.call()
    scene.run(0.1)
    for length in (0, 100, 1000):
        scene.send(scene.gateway, ipv4(BACK, 6, bytes(length)))
        scene.send(scene.client, ipv6(THERE_6, 6, bytes(length)))
    scene.run(0.1)
    datagrams = [datagram for _, datagram, _, _ in scene.sent]
    exchanged = [datagram for datagram in datagrams if datagram[:4] == KEY_EXCHANGE_MARKER]
    marks = (KEY_EXCHANGE_MARKER, CONTROL)
    return {
        Family.ESP: [datagram for datagram in datagrams if datagram[:4] not in marks],
        Family.CONTROL: _control_packets(scene),
        Family.KEY_EXCHANGE: exchanged + _other_messages(exchanged[0]),
        Family.LITERAL: [CONTROL + bytes([number]) * (LITERAL_SIZE - len(CONTROL)) for number in range(16)],
        Family.LOST_KEYS: [
            scene.gateway.node.lost_keys.notice(spi) for spi in scene.gateway.node.cache.by_spi
        ],
    }


def _control_packets(scene: Scene) -> list[bytes]:
    """Return a delivered control packet of each kind and status from either end."""
    sent: list[bytes] = []
    for pair, sender, receiver in scene.ends():
        for status in Status:
            packets = [pair.control.send(kind, status, 7, 1 << 90) for kind in Kind if kind is not Kind.CLOSE]
            for packet in packets:
                scene.take(receiver, packet, sender.endpoint)
            close = ControlPacket(Kind.CLOSE, pair.control.peer_session, pair.control.sequence, status)
            sent += [*packets, encode(close, pair.control._send_key)]
    return sent


def _other_messages(first: bytes) -> list[bytes]:
    """Return key exchange messages that `first` did not draw, and those of an exchange of long tokens."""
    message = tokens.decode(first)
    envelope = tokens.Envelope(Mechanism.NOISE, message.exchange_id)
    several = chatty((4096,) * 4)
    several.run(5.0)
    return [
        *(tokens.reject(message, reason) for reason in tokens.Rejected),
        *(envelope.acknowledgement(token, bitmap) for token in (0, 1, 2) for bitmap in (0, 1, 0xFFFFFFFF)),
        tokens.demand(message, bytes(16)),
        *several.to_acceptor,
        *several.to_initiator,
    ]


class Memory:
    """How many bytes more are allocated than at the last call of `begin`; counts as long as it is entered."""

    def __enter__(self) -> "Memory":
        tracemalloc.start()
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()

    def begin(self) -> None:
        """Count from here."""
        gc.collect()
        self._before = tracemalloc.get_traced_memory()[0]

    def growth(self) -> int:
        """Return how many bytes more there are now."""
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before


def report(test: TestCase, figures: str, growth: int) -> None:
    """Print what a test did among trial's lines."""
    name = test.id().removeprefix("tests.fuzz.")
    sys.stderr.write(f"\n    {name}: {figures}; growth {growth / 1024:.0f} KiB\n")
