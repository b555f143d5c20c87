"""The patent's literal heartbeat, an echo with guards, and that no loop can form (R10, R14, DESIGN 6)."""

from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import LITERAL_PER_ENDPOINT, HeartbeatMode
from rvpn.interfaces import Endpoint
from rvpn.rate import Rate
from rvpn.session.literal_heartbeats import LITERAL_SIZE
from rvpn.session.session_control import Kind
from tests.unit.simulation import CONTROL, DELAY, OUT, STRANGER, TARGET, Host, Network, udp_packet

LITERAL = CONTROL + bytes(range(16))
DEFER, RESPONSE = 0.25, 0.125


def build(gateways: int = 1, clients: int = 1, **policy: Any) -> Network:
    """Return a network in which both roles have HeartbeatAuthentication = none."""
    chosen: dict[str, Any] = {
        "heartbeat": HeartbeatMode.INSTANT,
        "heartbeat_defer_time": DEFER,
        "heartbeat_response_time": RESPONSE,
        "literal_heartbeats": True,
        "randomize_clusters": False,
    }
    return Network(gateways, clients=clients, **(chosen | policy))


def connected(gateways: int = 1, **policy: Any) -> Network:
    """Return the same with a session, and nothing on record."""
    network = build(gateways, **policy)
    return network.connect()


def literal(network: Network, host: Host[Any]) -> list[tuple[float, bytes, Endpoint]]:
    """Return the literal heartbeats that a host sent."""
    return [sent for sent in network.sent_by(host) if len(sent[1]) == LITERAL_SIZE and sent[1][:4] == CONTROL]


class EchoTests(SynchronousTestCase):
    """One client and its gateways."""

    def test_equal_packet(self) -> None:
        """R10: the heartbeat is the SPI 0xFFFFFFFF and 16 random bytes; the answer is the same packet."""
        network = connected()
        network.run(10)
        asked, answered = literal(network, network.client), literal(network, network.gateways[0])
        self.assertGreater(len(asked), 30)
        self.assertEqual([data for _, data, _ in asked], [data for _, data, _ in answered])
        self.assertEqual(len({data for _, data, _ in asked}), len(asked))
        self.assertEqual(network.control(Kind.HEARTBEAT), [])
        self.assertEqual(network.in_use, 0)

    def test_bound(self) -> None:
        """R7: the bound holds for literal heartbeats too."""
        network = connected(2, standby=1)
        last = max(s.received_at for s in network.client.node.cache if s.detector is not None)
        network.gateways[0].alive = False
        network.run(1)
        times = [time for time, _, goal in literal(network, network.client) if goal.address.packed[-1] == 21]
        self.assertEqual(len(times), 2)
        self.assertAlmostEqual(times[0], last + DEFER)
        self.assertAlmostEqual(network.control(Kind.CLOSE)[0], last + DEFER + 2 * RESPONSE)
        self.assertEqual(network.in_use, 1)

    def test_without_lan(self) -> None:
        """R14: a gateway whose LAN is down stays silent, and so fails."""
        network = connected(2, standby=1)
        network.wire = lambda data, *_: () if data[:5] == CONTROL + bytes([Kind.STATUS]) else (DELAY,)
        network.lan(network.gateways[0], up=False)
        network.run(2)
        self.assertEqual(literal(network, network.gateways[0]), [])
        self.assertEqual(network.in_use, 1)

    def test_only_the_outstanding_one(self) -> None:
        """DESIGN 6: at the client nothing but the byte-equal, outstanding packet counts, and once."""
        network = connected()
        gateway = network.gateways[0]
        gateway.alive = False
        network.run(DEFER + 0.01)
        ((_, heartbeat, _),) = literal(network, network.client)
        (session,) = network.client.node.cache
        heard = session.received_at
        for wrong in (heartbeat[:-1] + bytes([heartbeat[-1] ^ 1]), LITERAL):
            network.receive(network.client, wrong, gateway.endpoint)
        network.receive(network.client, heartbeat, STRANGER)
        network.receive(network.client, heartbeat, gateway.endpoint._replace(port=4501))
        self.assertEqual(session.received_at, heard)
        network.receive(network.client, heartbeat, gateway.endpoint)
        self.assertEqual(session.received_at, network.now)
        network.run(0.01)
        network.receive(network.client, heartbeat, gateway.endpoint)
        self.assertLess(session.received_at, network.now)
        self.assertEqual(network.client.node.drop_counts(), {"malformed-control": 3, "unexpected-control": 2})

    def test_late_answer(self) -> None:
        """R8: an answer that comes after the decision brings the gateway no life."""
        network = connected()
        network.gateways[0].alive = False
        network.run(DEFER + 2 * RESPONSE + 0.01)
        (_, heartbeat, _), _ = literal(network, network.client)
        network.receive(network.client, heartbeat, network.gateways[0].endpoint)
        self.assertIsNone(network.in_use)
        self.assertEqual(network.client.node.drop_counts(), {"unexpected-control": 1})

    def test_standbys_are_asked(self) -> None:
        """X1: the switch goes to a standby that answers the literal heartbeat."""
        network = connected(3, standby=2)
        network.gateways[0].alive = network.gateways[1].alive = False
        network.run(DEFER + 2 * RESPONSE)
        self.assertEqual(network.in_use, 2)


class GuardTests(SynchronousTestCase):
    """Whom a gateway answers, and how much."""

    def test_only_clients(self) -> None:
        """DESIGN 6: a packet from anywhere but a client's endpoint draws nothing, and is counted."""
        network = connected()
        gateway = network.gateways[0]
        for source in (STRANGER, network.client.endpoint._replace(port=4501), gateway.endpoint):
            network.receive(gateway, LITERAL, source)
        self.assertEqual((network.sent, gateway.node.drop_counts()), ([], {"unknown-session": 3}))

    def test_only_if_allowed(self) -> None:
        """DESIGN 6: a gateway whose policy does not allow it answers nobody."""
        network = connected(literal_heartbeats=False)
        gateway = network.gateways[0]
        network.receive(gateway, LITERAL, network.client.endpoint)
        self.assertEqual((network.sent, gateway.node.drop_counts()), ([], {"malformed-control": 1}))

    def test_length(self) -> None:
        """DESIGN 6: a packet of any other length is no heartbeat."""
        network = connected()
        for size in (*range(4, LITERAL_SIZE), *range(LITERAL_SIZE + 1, 56)):
            network.receive(network.gateways[0], CONTROL + bytes(size - 4), network.client.endpoint)
        self.assertEqual(network.sent, [])

    def test_rate_of_one_endpoint(self) -> None:
        """DESIGN 6: one endpoint gets so many answers in a second, whoever writes in its name."""
        network = connected()
        gateway = network.gateways[0]
        for _ in range(1000):
            network.receive(gateway, LITERAL, network.client.endpoint)
        self.assertLessEqual(len(network.sent), LITERAL_PER_ENDPOINT)
        self.assertGreaterEqual(len(network.sent), LITERAL_PER_ENDPOINT - 1)
        self.assertGreater(gateway.node.drop_counts()["too-many-heartbeats"], 900)
        before = len(network.sent)
        network.run(1)
        for _ in range(1000):
            network.receive(gateway, LITERAL, network.client.endpoint)
        echoes = len(literal(network, gateway)) - before
        self.assertLessEqual(echoes, LITERAL_PER_ENDPOINT + 4)

    def test_rate_in_all(self) -> None:
        """DESIGN 6: all endpoints together get no more than the bound in all."""
        network = build(clients=3)
        for client, inner in zip(network.clients, ("10.99.0.1", "10.99.0.2", "10.99.0.3"), strict=True):
            network.send(client, udp_packet(ip_address(inner), TARGET, b""))
        network.run(0.1)
        gateway = network.gateways[0]
        self.assertEqual(len(gateway.node.cache), 3)
        network.sent.clear()
        gateway.node.session_control._literal_rate = Rate(60)
        for client in network.clients * 50:
            network.receive(gateway, LITERAL, client.endpoint)
        self.assertEqual(len(network.sent), 60)

    def test_mismatch(self) -> None:
        """DESIGN 6: where the two ends' modes differ there is no session, and both say why."""
        for client_mode in (False, True):
            network = build(literal_heartbeats=client_mode)
            policy = network.gateway_policy
            object.__setattr__(policy, "literal_heartbeats", not client_mode)
            network.gateways[0].node.reload(policy, network.now)
            network.send(network.client, OUT)
            network.run(1)
            self.assertEqual(len(network.client.node.cache), 0)
            for host in network.hosts:
                self.assertIn("HeartbeatAuthentication differs", " ".join(host.events))

    def test_reload(self) -> None:
        """DESIGN 6: a session keeps to the heartbeats that it was made with, whoever reads another policy."""
        for mode in (False, True):
            for host in range(2):
                network = connected(1, literal_heartbeats=mode)
                client, gateway = network.client, network.gateways[0]
                if host:
                    policy = replace(network.client_policy, literal_heartbeats=not mode)
                    network.act(client, client.node.reload(policy, network.now))
                else:
                    policy = replace(network.gateway_policy, literal_heartbeats=not mode)
                    network.act(gateway, gateway.node.reload(policy, network.now))
                network.run(10)
                (session,) = client.node.cache
                self.assertFalse(session.closed)
                self.assertEqual(network.control(Kind.CLOSE), [])
                self.assertEqual(len(literal(network, client)) > 10, mode)

    def test_status_of_a_standby(self) -> None:
        """X4: literal answers tell no status, so a standby that was unfit is asked for keys."""
        network = connected(2, standby=1)
        for up in (False, True):
            if up:
                network.cut(*network.hosts[::2])
            network.lan(network.gateways[1], up=up)
            network.run(1)
        network.cuts.clear()
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.run(10)
        session = network.client.node.failover.clusters["Cluster 1"].in_use
        assert session is not None
        self.assertEqual(session.gateway, network.gateways[1].endpoint.address)


class LoopTests(SynchronousTestCase):
    """Two gateways are made to write to each other (CVE-2024-2169)."""

    def fed(self, rounds: int) -> int:
        """
        Return how many datagrams two gateways send in a minute for so many rounds of spoofed ones.

        In each round each gateway gets, from the other's endpoint, literal heartbeats, authentic heartbeats
        and other control packets of its own client, ESP of the client, and bytes of no meaning.
        """
        network = build(2, standby=1, heartbeat=HeartbeatMode.NONE)
        network.send(network.client, OUT)
        network.run(1)
        pairs = [session.sending for session in network.client.node.cache]
        self.assertEqual(len(pairs), 2)
        one, other = network.gateways
        random = Random(1)
        network.client.alive = False
        network.sent.clear()
        for _ in range(rounds):
            for pair, here, there in zip(pairs, (one, other), (other, one), strict=True):
                assert pair is not None
                spoofed = [LITERAL, CONTROL + random.randbytes(16), random.randbytes(60)]
                spoofed += [pair.control.send(kind) for kind in Kind if kind is not Kind.CLOSE]
                spoofed += [pair.outbound.seal(b"", 59), pair.outbound.seal(OUT, 4)]
                spoofed += [CONTROL + bytes([kind]) + random.randbytes(51) for kind in Kind]
                for datagram in spoofed:
                    network.inject(datagram, there.endpoint, here.endpoint)
        network.run(60)
        sent = len(network.sent)
        network.run(60)
        self.assertEqual(len(network.sent), sent, "it goes on")
        return sent

    def test_bounded(self) -> None:
        """R10, DESIGN 6: what they send is bounded by what they are fed, and it comes to an end."""
        once = self.fed(1)
        self.assertGreater(once, 0)
        self.assertLessEqual(once, 2 * 26)
        self.assertLessEqual(self.fed(10), 10 * once)

    def test_echoes(self) -> None:
        """DESIGN 6: a literal heartbeat from the other gateway's endpoint draws nothing at all."""
        network = build(2)
        one, other = network.gateways
        for _ in range(100):
            network.inject(LITERAL, one.endpoint, other.endpoint)
            network.inject(LITERAL, other.endpoint, one.endpoint)
        network.run(10)
        self.assertEqual(network.sent, [])

    def test_a_client_at_the_other_gateways_endpoint(self) -> None:
        """
        R10: even where each gateway takes the other's endpoint for a client's, an echo ends within a second's
        allowance.
        """
        network = connected(2, standby=1, heartbeat=HeartbeatMode.NONE)
        one, other = network.gateways
        for host, peer in (one, other), (other, one):
            (session,) = host.node.cache
            host.node.cache.by_endpoint[peer.endpoint] = session
        network.inject(LITERAL, one.endpoint, other.endpoint)
        network.run(10)
        echoes = len(literal(network, one)) + len(literal(network, other))
        self.assertLessEqual(echoes, 10 * 2 * (LITERAL_PER_ENDPOINT + 1))
        self.assertLess(echoes, 10 / DELAY)
