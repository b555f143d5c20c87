"""A gateway with packets for a client that it has no session with calls it (R12, R5, DESIGN 3, 4)."""

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import (
    CALL_QUEUE_LENGTH,
    CALLS_PER_SECOND,
    CONFIRMATION_TIME,
    KEY_EXCHANGE_MARKER,
    OLD_SA_LINGER,
    HeartbeatMode,
    Mechanism,
    NextHeader,
)
from rvpn.datapath.packet import inspect
from rvpn.interfaces import Endpoint, PeerIdentity
from rvpn.keyexchange.noise import public_key
from rvpn.policy.model import Client as PolicyClient
from tests.unit.simulation import (
    BACK,
    CLIENT_ENDPOINT,
    DELAY,
    INNER,
    OUT,
    STRANGER,
    TARGET,
    Host,
    Network,
    identity,
    perfect,
    udp_packet,
)

ICMP, UNREACHABLE, HOST_UNREACHABLE = 1, 3, 1


def build(gateways: int = 2, *, listed: bool = True, **policy: Any) -> Network:
    """Return a network whose gateways know where to call the client, if it is `listed`."""
    chosen: dict[str, Any] = {
        "heartbeat": HeartbeatMode.INSTANT,
        "heartbeat_defer_time": 0.2,
        "heartbeat_response_time": 0.1,
        "failback_hold_down": 10.0,
        "randomize_clusters": False,
    }
    network = Network(gateways, **(chosen | policy))
    if listed:
        clients = tuple(replace(c, endpoint=CLIENT_ENDPOINT) for c in network.gateway_policy.clients)
        network.gateway_policy = replace(network.gateway_policy, clients=clients)
        for host in network.gateways:
            host.node.reload(network.gateway_policy, network.now)
    return network


def first_messages(network: Network, host: Host[Any]) -> list[tuple[float, bytes]]:
    """Return the first datagram of each exchange that a host began, and when it went."""
    begun: dict[bytes, tuple[float, bytes]] = {}
    for time, data, _ in network.sent_by(host):
        if data[:4] == KEY_EXCHANGE_MARKER and data[7] == 0:
            begun.setdefault(data[8:16], (time, data))
    return list(begun.values())


class CallTests(SynchronousTestCase):
    """What the gateway does."""

    def test_packet_arrives(self) -> None:
        """R12: a packet for a client without a session waits for one; the answer takes it too."""
        network = build()
        network.send(network.gateways[1], BACK)
        network.run(0.1)
        self.assertEqual(network.client.delivered, [BACK])
        self.assertEqual(network.in_use, 1)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(network.gateways[1].delivered, [OUT])

    def test_last_endpoint(self) -> None:
        """R12: without an Endpoint in the policy the client is called where it authenticated last."""
        network = build(listed=False)
        network.client.endpoint = Endpoint(ip_address("192.0.2.99"), 1234)
        network.send(network.client, OUT)
        network.run(0.1)
        network.act(network.gateways[0], network.gateways[0].node.close(network.now))
        network.run(0.5)
        self.assertEqual(network.in_use, 1)
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        self.assertEqual(network.client.delivered, [BACK])

    def test_last_endpoint_moves_along(self) -> None:
        """R12, DESIGN 3: the last endpoint is the one that the session moved to."""
        network = build(1, listed=False)
        network.send(network.client, OUT)
        network.run(0.1)
        network.client.endpoint = Endpoint(ip_address("192.0.2.99"), 1234)
        network.send(network.client, OUT)
        network.run(1)
        network.act(network.gateways[0], network.gateways[0].node.close(network.now))
        network.client.alive = False
        network.run(1)
        network.sent.clear()
        network.send(network.gateways[0], BACK)
        self.assertEqual([goal for *_, goal in network.sent], [network.client.endpoint])

    def test_policy_comes_first(self) -> None:
        """R12: the policy's Endpoint is called, not the last one."""
        network = build(1)
        network.client.endpoint = STRANGER
        network.send(network.client, OUT)
        network.run(0.1)
        network.act(network.gateways[0], network.gateways[0].node.close(network.now))
        network.client.alive = False
        network.run(1)
        network.sent.clear()
        network.send(network.gateways[0], BACK)
        self.assertEqual([goal for *_, goal in network.sent], [CLIENT_ENDPOINT])

    def test_unknown_place(self) -> None:
        """R12: a client that never came and has no Endpoint is unreachable: the sender hears so."""
        network = build(listed=False)
        network.send(network.gateways[0], BACK)
        (error,) = network.gateways[0].delivered
        self.assertEqual((error[9], error[20], error[21]), (ICMP, UNREACHABLE, HOST_UNREACHABLE))
        self.assertEqual(inspect(memoryview(error)).destination, TARGET.packed)
        self.assertEqual(network.sent, [])

    def test_no_answer(self) -> None:
        """R12: if the client does not answer in time, every packet that waited is answered with ICMP."""
        network = build()
        network.client.alive = False
        for _ in range(3):
            network.send(network.gateways[0], BACK)
        network.run(2.1)
        errors = network.gateways[0].delivered
        self.assertEqual([error[21] for error in errors], [HOST_UNREACHABLE] * 3)

    def test_queue(self) -> None:
        """R12: of too many packets that wait the oldest are dropped and counted."""
        network = build()
        packets = [udp_packet(TARGET, INNER, b"%d" % n) for n in range(CALL_QUEUE_LENGTH + 3)]
        for packet in packets:
            network.send(network.gateways[0], packet)
        network.run(0.1)
        self.assertEqual(network.client.delivered, packets[3:])
        self.assertEqual(network.drops(network.gateways[0]), {"queue-full": 3})

    def test_one_attempt_in_a_second(self) -> None:
        """R12: however short an exchange is, a client is called once in a second."""
        network = build(1)
        policy = replace(network.gateway_policy, exchange_time=0.1)
        host = network.gateways[0]
        host.node.reload(policy, network.now)
        network.client.alive = False
        for _ in range(1000):
            network.send(host, BACK)
            network.run(0.01)
        self.assertIn(len(first_messages(network, host)), (9, 10))

    def test_bounded_in_all(self) -> None:
        """R12: a sweep of the LAN through all clients' addresses starts a bounded number of calls."""
        network = build(1)
        clients = tuple(
            PolicyClient(
                number,
                PeerIdentity(Mechanism.NOISE, b64encode(public_key(bytes([number]) * 32)).decode()),
                (ip_address("10.98.0.0") + number,),
                Endpoint(ip_address("203.0.113.1"), 4500),
            )
            for number in range(1, 200)
        )
        host = network.gateways[0]
        host.node.reload(replace(network.gateway_policy, clients=clients), network.now)
        for client in clients:
            network.send(host, udp_packet(TARGET, client.inner_addresses[0], b""))
        self.assertEqual(len(first_messages(network, host)), CALLS_PER_SECOND)
        self.assertEqual(len(host.delivered), 199 - CALLS_PER_SECOND)

    def test_draining(self) -> None:
        """X4: a draining gateway calls nobody."""
        network = build()
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.send(network.gateways[0], BACK)
        self.assertEqual((network.sent, len(network.gateways[0].delivered)), ([], 1))

    def test_nothing_before_confirmation(self) -> None:
        """DESIGN 4: what waits goes out once the client has proved its keys, never before."""
        network = build(1)
        host = network.gateways[0]
        network.wire = lambda data, *_: (DELAY,) if data[:4] == KEY_EXCHANGE_MARKER else ()
        network.send(host, BACK)
        network.run(1)
        inner = [data for _, data, _ in network.sent_by(host) if len(data) > 60 and data[:4] != bytes(4)]
        self.assertEqual((inner, len(host.node.cache)), ([], 0))
        network.run(2)
        self.assertEqual(host.delivered[0][21], HOST_UNREACHABLE)
        network.run(OLD_SA_LINGER)
        self.assertEqual((network.client.node.cache.by_spi, host.node.cache.by_spi), ({}, {}))


class AcceptTests(SynchronousTestCase):
    """Whom the client believes."""

    def call(self, network: Network, source: Endpoint) -> bytes:
        """Let the first message of the first gateway arrive from `source`."""
        network.send(network.gateways[0], BACK)
        (_, first) = first_messages(network, network.gateways[0])[0]
        network.client.alive, network.sent = True, []
        network.receive(network.client, first, source)
        return first

    def test_only_from_its_place(self) -> None:
        """R12, DESIGN 4: a gateway's first message counts from its address and port in the policy alone."""
        at_home = Endpoint(ip_address("198.51.100.21"), 4500)
        for source in (STRANGER, at_home._replace(port=4501)):
            network = build()
            self.call(network, source)
            self.assertEqual(network.sent, [])
            self.assertEqual(network.drops(network.client), {"wrong-origin": 1})
        network = build()
        self.call(network, at_home)
        self.assertEqual(len(network.sent), 1)

    def test_gateway_of_no_cluster(self) -> None:
        """R12: a gateway that the policy has a key for, but no tunnel, is not accepted."""
        network = build()
        kept = replace(network.client_policy.clusters[0], members=(network.gateways[1].endpoint.address,))
        tunnel = replace(network.client_policy.tunnels[0], cluster=kept)
        policy = replace(network.client_policy, clusters=(kept,), tunnels=(tunnel,))
        network.client.node.reload(policy, network.now)
        network.send(network.gateways[0], BACK)
        network.run(1)
        self.assertEqual(network.client.delivered, [])
        self.assertEqual(network.drops(network.client).keys(), {"wrong-origin"})

    def test_another_gateways_key(self) -> None:
        """DESIGN 4: a gateway cannot call in the place of another."""
        network = build()
        network.keys[0] = network.keys[1]
        network.restart(0)
        network.send(network.gateways[0], BACK)
        network.run(0.09)
        self.assertEqual((network.client.delivered, len(network.client.node.cache.by_spi)), ([], 0))
        self.assertEqual(network.drops(network.client), {"authentication-failed": 1})

    def test_foreign_inner_address(self) -> None:
        """DESIGN 4: a call for an inner address that is not the client's is refused."""
        network = build(1)
        clients = tuple(
            replace(client, inner_addresses=(ip_address("10.99.0.9"),))
            for client in network.gateway_policy.clients
        )
        network.gateways[0].node.reload(replace(network.gateway_policy, clients=clients), network.now)
        network.send(network.gateways[0], udp_packet(TARGET, ip_address("10.99.0.9"), b""))
        network.run(1)
        self.assertEqual((network.client.delivered, network.client.node.cache.by_spi), ([], {}))
        self.assertEqual(network.gateways[0].delivered[0][21], HOST_UNREACHABLE)

    def test_answers_to_no_offer(self) -> None:
        """DESIGN 4, 6: a client that answers what it was not offered gets no session."""
        for change in (
            {"inner_addresses": (ip_address("10.99.0.9"),)},
            {"inner_addresses": ()},
            {"lifetime": 1e6},
            {"literal_heartbeats": True},
        ):
            network = build(1)
            terms = network.client.node.terms
            answer = terms.answer

            def lie(*what: Any, answer: Any = answer, change: Any = change) -> Any:
                return replace(answer(*what), **change)

            self.patch(terms, "answer", lie)
            network.send(network.gateways[0], BACK)
            network.run(1)
            self.assertEqual((network.client.delivered, len(network.gateways[0].node.cache)), ([], 0), change)
            self.assertEqual(network.gateways[0].delivered[0][21], HOST_UNREACHABLE)

    def test_another_kind_of_heartbeat(self) -> None:
        """DESIGN 6: a call by a gateway with another HeartbeatAuthentication is refused."""
        network = build(1)
        policy = replace(network.gateway_policy, literal_heartbeats=True)
        network.gateways[0].node.reload(policy, network.now)
        network.send(network.gateways[0], BACK)
        network.run(1)
        self.assertEqual((network.client.delivered, len(network.client.node.cache)), ([], 0))

    def test_recorded_call(self) -> None:
        """DESIGN 4: a recorded call, played again from the gateway's address, leads to nothing."""
        network = build(1, heartbeat=HeartbeatMode.NONE)
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        recorded = [d for _, d, _ in network.sent_by(network.gateways[0]) if d[:4] == KEY_EXCHANGE_MARKER]
        network.gateways[0].alive = False
        network.run(OLD_SA_LINGER)
        before = set(network.client.node.cache.by_spi)
        for datagram in recorded:
            network.inject(datagram, network.gateways[0].endpoint, network.client.endpoint)
        network.run(1)
        self.assertEqual(set(network.client.node.cache.by_spi) - before, set())


class OrderTests(SynchronousTestCase):
    """Which gateway the client uses after a call (R5, R12)."""

    def connected(self, dead: int | None = None) -> Network:
        """Return a network whose client has a session with the first living gateway."""
        network = build()
        if dead is not None:
            network.gateways[dead].alive = False
        network.send(network.client, OUT)
        network.run(2.5)
        return network

    def test_later_gateway(self) -> None:
        """R12: a gateway that stands later in the order brings its packet, and is not moved to."""
        network = self.connected()
        network.send(network.gateways[1], BACK)
        network.run(0.1)
        self.assertEqual((network.client.delivered, network.in_use), ([BACK], 0))

    def test_earlier_gateway(self) -> None:
        """R12: the client moves to a gateway that stands earlier in the order."""
        network = self.connected(dead=0)
        self.assertEqual(network.in_use, 1)
        network.restart(0)
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        self.assertEqual((network.client.delivered, network.in_use), ([BACK], 0))

    def test_hold_down(self) -> None:
        """R12: it does not if that gateway failed within the hold-down, but takes the packet."""
        network = self.connected()
        network.gateways[0].alive = False
        network.run(1)
        self.assertEqual(network.in_use, 1)
        network.restart(0)
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        self.assertEqual((network.client.delivered, network.in_use), ([BACK], 1))
        network.run(10)
        network.act(network.gateways[0], network.gateways[0].node.close(network.now))
        network.run(11)
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        self.assertEqual(network.in_use, 0)

    def test_worse_gateway(self) -> None:
        """R12, X4: it does not move to one that is worse than the one in use."""
        network = self.connected(dead=0)
        network.restart(0)
        network.lan(network.gateways[0], up=False)
        changes = len(network.client.node.failover.journal.changes)
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        self.assertEqual((network.client.delivered, network.in_use), ([BACK], 1))
        self.assertEqual(len(network.client.node.failover.journal.changes), changes)

    def test_gateway_starts_a_session(self) -> None:
        """R11: a gateway that came back is used at once if it starts a session and the client has none."""
        network = build()
        network.gateways[0].alive = False
        network.gateways[1].alive = False
        network.send(network.client, OUT)
        network.run(10)
        network.restart(1)
        network.client.delivered.clear()
        network.sent.clear()
        while first_messages(network, network.client):
            network.sent.clear()
            network.run(0.2)
        network.send(network.gateways[1], BACK)
        network.run(0.1)
        self.assertIn(BACK, network.client.delivered)
        self.assertEqual(network.in_use, 1)
        self.assertEqual(network.client.node.kms.barred_until("Cluster 1"), 0.0)


class CollisionTests(SynchronousTestCase):
    """Both begin an exchange at the same time (DESIGN 3)."""

    def collide(self, offset: float, delays: Random | None = None, *, met: bool = False) -> Network:
        """
        Let the client ask for a session `offset` seconds after the gateway calls (negative: before), and
        return the network when all is over. Those who have `met` before need no cookies.
        """
        network = build(1, heartbeat=HeartbeatMode.NONE)
        if met:
            self.meet(network)
        if delays is not None:
            network.wire = lambda *_: (DELAY * (0.5 + 3 * delays.random()),)
        acts: list[tuple[float, Host[Any], bytes]] = [
            (0.0, network.gateways[0], BACK),
            (offset, network.client, OUT),
        ]
        start = network.now + 0.01
        for when, host, packet in sorted(acts, key=lambda act: act[0]):
            network.run(start + when - network.now)
            network.send(host, packet)
        network.run(0.3)
        return network

    def meet(self, network: Network) -> None:
        """Let each end call the other once, and end both sessions."""
        gateway = network.gateways[0]
        for host, packet in (gateway, BACK), (network.client, OUT):
            network.send(host, packet)
            network.run(0.1)
            network.act(gateway, gateway.node.close(network.now))
            network.run(OLD_SA_LINGER + 1)
        network.client.delivered.clear()
        gateway.delivered.clear()

    def check(self, network: Network, note: object) -> None:
        """There is one session, whose ends agree, and every packet arrived once."""
        gateway = network.gateways[0]
        self.assertEqual(network.client.delivered, [BACK], note)
        self.assertEqual(gateway.delivered, [OUT], note)
        (ours,), (theirs,) = network.client.node.cache, gateway.node.cache
        assert ours.sending is not None
        assert theirs.sending is not None
        self.assertEqual(ours.sending.outbound.spi, theirs.sending.inbound.spi, note)
        self.assertEqual(theirs.sending.outbound.spi, ours.sending.inbound.spi, note)
        network.run(CONFIRMATION_TIME + OLD_SA_LINGER)
        self.assertEqual(len(network.client.node.cache.by_spi), 1, note)
        self.assertEqual(len(gateway.node.cache.by_spi), 1, note)

    def test_every_order(self) -> None:
        """DESIGN 3: whoever begins first, and however the messages cross, one session comes of it."""
        for met in (False, True):
            for step in range(-24, 33):
                offset = step * DELAY / 4
                self.check(self.collide(offset, met=met), (offset, met))

    def test_random_orders(self) -> None:
        """DESIGN 3: the same where datagrams take different times and overtake each other."""
        for seed in range(60):
            delays = Random(seed)
            offset = 12 * DELAY * (delays.random() - 0.5)
            self.check(self.collide(offset, delays, met=seed % 2 == 0), seed)

    def test_the_clients_wins(self) -> None:
        """DESIGN 3: the client ignores the gateway's first message while its own exchange runs."""
        network = self.collide(-DELAY / 2)
        self.assertEqual(network.client.node.kms.established, 1)
        (session,) = network.client.node.cache
        assert session.sending is not None
        self.assertTrue(session.sending.initiator)
        self.assertEqual(network.drops(network.client).get("unknown-exchange"), 1)

    def test_client_disappears(self) -> None:
        """
        R12: what waited when the client's own exchange overtook the call is answered if the client then falls
        silent, and the client can be called again.
        """
        network = build(1)
        host = network.gateways[0]
        network.wire = lambda data, *_: (DELAY,) if data[:4] == KEY_EXCHANGE_MARKER else ()
        network.send(host, BACK)
        network.send(network.client, OUT)
        network.run(0.05)
        network.client.alive = False
        network.run(CONFIRMATION_TIME)
        self.assertEqual(host.delivered[-1][21], HOST_UNREACHABLE)
        network.sent.clear()
        network.send(host, BACK)
        self.assertEqual(len(first_messages(network, host)), 1)

    def test_late_confirmation(self) -> None:
        """DESIGN 3: keys of a call that are confirmed after those of a later call change nothing."""
        network = build(2, heartbeat=HeartbeatMode.NONE)
        called, other = network.gateways
        called.alive = False
        network.send(network.client, OUT)
        network.run(2.5)
        network.restart(0)
        held: list[tuple[bytes, Endpoint, Endpoint]] = []

        def hold_esp(datagram: bytes, source: Endpoint, destination: Endpoint) -> Iterable[float]:
            if source != called.endpoint or datagram[:4] == KEY_EXCHANGE_MARKER:
                return (DELAY,)
            held.append((datagram, source, destination))
            return ()

        network.wire = hold_esp
        network.send(called, BACK)
        network.run(2.1)
        network.wire = perfect
        network.send(called, BACK)
        network.run(0.1)
        self.assertEqual(network.in_use, 0)
        network.lan(called, up=False)
        network.run(0.1)
        self.assertEqual(network.in_use, 1)
        for datagram in held:
            network.inject(*datagram)
        network.run(0.1)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual((network.in_use, other.delivered), (1, [OUT, OUT]))

    def test_overtaken_keys(self) -> None:
        """R12: a client that confirms old keys late is called where it was with the newest."""
        network = build(1, listed=False, heartbeat=HeartbeatMode.NONE)
        host = network.gateways[0]
        network.wire = lambda data, *_: (DELAY,) if data[:4] == KEY_EXCHANGE_MARKER else ()
        network.send(network.client, OUT)
        network.run(0.01)
        (session,) = network.client.node.cache
        late = session.pairs[0].outbound.seal(OUT, NextHeader.IPV4)
        network.client.endpoint = moved = Endpoint(ip_address("192.0.2.99"), 1234)
        network.run(3)
        network.wire = perfect
        network.send(network.client, OUT)
        network.run(0.1)
        network.receive(host, late, CLIENT_ENDPOINT)
        self.assertEqual(host.delivered, [OUT, OUT])
        network.act(host, host.node.close(network.now))
        network.run(0.1)
        network.sent.clear()
        network.send(host, BACK)
        self.assertEqual([goal for *_, goal in network.sent], [moved])


class IdentityTests(SynchronousTestCase):
    """The simulation's keys are those of the policies."""

    def test_identities(self) -> None:
        """Each gateway has the key that the client's policy names for its address."""
        network = build(3)
        for host, key in zip(network.gateways, network.keys, strict=True):
            self.assertEqual(network.client_policy.peers[host.endpoint.address], identity(key))
