"""The failover journal: every change of gateway, why, and what it cost."""

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import KEY_EXCHANGE_MARKER, HeartbeatMode
from rvpn.failover.journal import KEPT, Change, Journal, told
from rvpn.interfaces import Event, IPAddress
from rvpn.policy.model import Cluster, Tunnel
from tests.unit.simulation import DELAY, INNER, OUT, TARGET, Network, udp_packet

FIRST, SECOND = "198.51.100.21", "198.51.100.22"
GATEWAYS = tuple(map(ip_address, (FIRST, SECOND, "198.51.100.23")))
OTHER = ip_address("10.0.0.2")
DEFER, RESPONSE = 0.25, 0.125
BOUND = DEFER + 2 * RESPONSE
STEP = 0.01


def connected(gateways: int = 2, **policy: Any) -> Network:
    """Return a network with a session in use, through which a packet has come back."""
    chosen: dict[str, Any] = {
        "heartbeat": HeartbeatMode.INSTANT,
        "heartbeat_defer_time": DEFER,
        "heartbeat_response_time": RESPONSE,
        "randomize_clusters": False,
    }
    network = Network(gateways, **(chosen | policy))
    network.echo = True
    network.send(network.client, OUT)
    network.run(1)
    return network


def entries(name: str, gateways: tuple[IPAddress, ...]) -> tuple[Tunnel, ...]:
    """Return the tunnel entries of a policy whose targets are behind one cluster."""
    return (Tunnel(1, TARGET, OTHER, Cluster(name, gateways)),)


def changes(network: Network) -> list[Change]:
    """Return the client's journal."""
    return list(network.client.node.failover.journal.changes)


def busy(network: Network, seconds: float) -> None:
    """Let the client send a packet every STEP seconds."""
    for _ in range(round(seconds / STEP)):
        network.send(network.client, OUT)
        network.run(STEP)


class ChangeTests(SynchronousTestCase):
    """What is written of a change."""

    def near(self, value: float | None, expected: float, tolerance: float) -> None:
        """Fail unless a value is there and near what is expected."""
        assert value is not None
        self.assertLessEqual(abs(value - expected), tolerance, f"{value} is not about {expected}")

    def test_first(self) -> None:
        """The first gateway of all is entered with the time, why it was taken, and its first packet."""
        network = Network(1, randomize_clusters=False)
        network.echo = True
        time = network.clock()
        network.run(1)
        network.send(network.client, OUT)
        network.run(1)
        (change,) = changes(network)
        self.assertEqual((change.cluster, change.left, change.taken), ("Cluster 1", None, FIRST))
        self.assertEqual((change.detection, change.switch), (None, None))
        self.near(change.time, time + 1, 0.01)
        self.near(change.first_packet, 2 * DELAY, DELAY)
        self.assertEqual(change.packets_meanwhile, 1)

    def test_failure_with_standby(self) -> None:
        """A failure: detection from the last sign of life, no time to switch, the first packet after it."""
        network = connected(standby=1)
        busy(network, 1)
        (session,) = (s for s in network.client.node.cache if s.detector is not None)
        network.gateways[0].alive = False
        last, sent = session.received_at, session.packets_out
        died = network.clock() - network.now
        while network.client.node.failover.using(session):
            network.send(network.client, OUT)
            network.run(STEP)
        busy(network, 1)
        _, change = changes(network)
        self.assertEqual((change.left, change.taken), (FIRST, SECOND))
        self.assertEqual(change.reason, "two heartbeats without an answer")
        self.assertAlmostEqual(change.detection or 0.0, BOUND)
        self.assertAlmostEqual(change.time, died + last + BOUND)
        self.assertEqual(change.switch, 0.0)
        self.assertLess(change.first_packet or 9.0, STEP + 3 * DELAY)
        self.assertEqual(change.packets_meanwhile, session.packets_out - sent)
        self.near(change.packets_meanwhile, BOUND / STEP, 2)

    def test_failure_without_standby(self) -> None:
        """Without standby the switch takes an exchange, and packets that waited for it are counted too."""
        network = connected()
        slow = 0.05
        network.wire = lambda data, *_: (slow if data[:4] == KEY_EXCHANGE_MARKER else DELAY,)
        busy(network, 1)
        network.gateways[0].alive = False
        busy(network, 2)
        _, change = changes(network)
        exchange = 4 * slow  # a cookie is asked for: the second gateway has never heard of this client
        self.near(change.detection, BOUND, 2 * DELAY)
        self.near(change.switch, exchange, 2 * DELAY)
        self.near(change.first_packet, exchange + 2 * DELAY, 2 * DELAY)
        self.near(change.packets_meanwhile, (BOUND + exchange) / STEP, 2)

    def test_nobody_left(self) -> None:
        """Where no gateway is left the entry stays open, and is completed when one is found."""
        network = connected()
        for gateway in network.gateways:
            gateway.alive = False
        busy(network, 20)
        _, change = changes(network)
        self.assertEqual((change.left, change.taken, change.switch), (FIRST, None, None))
        lost_at = change.time
        network.gateways[1].alive = True
        busy(network, 20)
        self.assertEqual(len(changes(network)), 2)
        self.assertEqual((change.taken, change.time), (SECOND, lost_at))
        self.assertGreater(change.switch or 0.0, 19.0)
        self.assertGreater(change.first_packet or 0.0, change.switch or 0.0)

    def test_each_change_once(self) -> None:
        """Every change has an entry of its own."""
        network = connected(standby=1)
        for dead in (0, 1):
            network.gateways[dead].alive = False
            busy(network, 1)
            network.restart(dead)
            busy(network, 15)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        busy(network, 1)
        ways = [(change.left, change.taken) for change in changes(network)]
        self.assertEqual(ways, [(None, FIRST), (FIRST, SECOND), (SECOND, FIRST), (FIRST, SECOND)])

    def test_drain(self) -> None:
        """A move away from a gateway that lives costs nothing, and says why."""
        network = connected(standby=1)
        busy(network, 1)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        busy(network, 1)
        _, change = changes(network)
        self.assertEqual((change.left, change.taken), (FIRST, SECOND))
        self.assertEqual(change.reason, f"gateway {FIRST} says: draining")
        self.assertEqual((change.detection, change.switch, change.packets_meanwhile), (None, 0.0, 0))
        self.assertLess(change.first_packet or 9.0, STEP + 3 * DELAY)

    def test_gateway_leaves(self) -> None:
        """A gateway that says good-bye is entered as that."""
        network = connected(standby=1)
        network.act(network.gateways[0], network.gateways[0].node.close(network.now))
        network.run(0.1)
        self.assertEqual(changes(network)[-1].reason, "it has left")

    def test_answer_over_another_gateway(self) -> None:
        """R13: a packet that comes over another gateway than the new one does not complete the entry."""
        network = connected(standby=1)
        network.echo = False
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.run(0.1)
        network.send(network.client, OUT)
        back = udp_packet(TARGET, INNER, b"")
        network.send(network.gateways[0], back)
        network.run(0.1)
        self.assertIsNone(changes(network)[-1].first_packet)
        network.send(network.gateways[1], back)
        network.run(0.1)
        self.assertIsNotNone(changes(network)[-1].first_packet)

    def test_nobody_sends(self) -> None:
        """An idle client misses nothing: the first packet counts from the first one that it sends."""
        network = connected(standby=1)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.run(8)
        self.assertIsNone(changes(network)[-1].first_packet)
        network.send(network.client, OUT)
        network.run(1)
        self.near(changes(network)[-1].first_packet, 2 * DELAY, DELAY)

    def test_nothing_was_sent(self) -> None:
        """A packet that comes unasked completes the entry, and there is nothing to tell of it."""
        network = connected(standby=1)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.run(8)
        network.send(network.gateways[1], udp_packet(TARGET, INNER, b""))
        network.run(1)
        busy(network, 1)
        self.assertIsNone(changes(network)[-1].first_packet)

    def test_payload_elsewhere(self) -> None:
        """What is sent to another cluster's gateway asks nothing of this one."""
        first, second = Cluster("Cluster 1", GATEWAYS[:2]), Cluster("Cluster 2", GATEWAYS[2:])
        entries = (Tunnel(1, TARGET, TARGET, first), Tunnel(2, OTHER, OTHER, second))
        network = connected(3, standby=1, tunnels=entries)
        network.send(network.client, udp_packet(INNER, OTHER, b""))
        network.run(1)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        for _ in range(8):
            network.send(network.client, udp_packet(INNER, OTHER, b""))
            network.run(1)
        network.send(network.client, OUT)
        network.run(1)
        self.assertEqual(changes(network)[-1].cluster, "Cluster 1")
        self.near(changes(network)[-1].first_packet, 2 * DELAY, DELAY)


class ReadAgainTests(SynchronousTestCase):
    """What a policy read again does to the gateway in use: it did not fail, and nobody had to notice it."""

    def reload(self, network: Network, **changed: Any) -> None:
        """Have the client read another policy."""
        policy = replace(network.client.node._policy, **changed)
        network.act(network.client, network.client.node.reload(policy, network.now))

    def test_left_out(self) -> None:
        """A gateway that the cluster no longer has."""
        network = connected()
        network.run(7)
        self.reload(network, tunnels=entries("Cluster 1", GATEWAYS[1:2]))
        busy(network, 1)
        change = changes(network)[-1]
        self.assertEqual((change.left, change.taken), (FIRST, SECOND))
        self.assertEqual((change.reason, change.detection), ("the policy no longer has it", None))

    def test_other_key(self) -> None:
        """A gateway whose key the policy no longer has."""
        network = connected()
        network.run(7)
        peers = network.client.node._policy.peers
        self.reload(network, peers={**peers, GATEWAYS[0]: peers[GATEWAYS[1]]})
        busy(network, 1)
        change = changes(network)[-1]
        self.assertEqual((change.left, change.detection), (FIRST, None))

    def test_access_server(self) -> None:
        """R15: where AUTO stands for another access server now, that one follows the one before."""
        network = connected(tunnels=entries(FIRST, GATEWAYS[:1]))
        self.reload(network, tunnels=entries(SECOND, GATEWAYS[1:2]))
        busy(network, 1)
        change = changes(network)[-1]
        self.assertEqual((change.cluster, change.left, change.taken), (SECOND, FIRST, SECOND))
        self.assertEqual((change.reason, change.detection), ("the policy no longer has it", None))

    def test_access_server_lost(self) -> None:
        """R15: so it does where the one before was lost with its network, and packets wait."""
        network = connected(tunnels=entries(FIRST, GATEWAYS[:1]))
        network.gateways[0].alive = False
        busy(network, 1)
        waiting = network.client.node.failover.clusters[FIRST].waiting
        self.reload(network, tunnels=entries(SECOND, GATEWAYS[1:2]))
        network.run(1)
        change = changes(network)[-1]
        self.assertEqual((change.left, change.taken), (FIRST, SECOND))
        self.assertEqual(change.reason, "two heartbeats without an answer")
        self.assertGreater(waiting, 0)
        self.assertGreaterEqual(change.packets_meanwhile, waiting)

    def test_cluster_that_stays(self) -> None:
        """A cluster to which other entries lead keeps its gateway; the new one begins anew."""
        shared, other = Cluster("Cluster 1", GATEWAYS[:1]), Cluster(SECOND, GATEWAYS[1:2])
        stays = Tunnel(1, OTHER, OTHER, shared)
        network = connected(tunnels=(stays, Tunnel(2, TARGET, TARGET, shared)))
        self.reload(network, tunnels=(stays, Tunnel(2, TARGET, TARGET, other)))
        busy(network, 1)
        change = changes(network)[-1]
        self.assertEqual((change.cluster, change.left, change.taken), (SECOND, None, SECOND))


class JournalTests(SynchronousTestCase):
    """How it is kept and told."""

    def test_bounded(self) -> None:
        """The oldest entries are forgotten first."""
        journal = Journal()
        for number in range(KEPT + 5):
            journal.add(Change(float(number), "Cluster 1", None, FIRST, "a test"))
        self.assertEqual(len(journal.changes), KEPT)
        self.assertEqual(journal.status()[0]["time"], 5.0)

    def test_status(self) -> None:
        """`rvpn status --json` has every entry with every field."""
        network = connected()
        status = network.client.node.status(network.now)["failovers"]
        self.assertEqual(status, json.loads(json.dumps(status)))
        self.assertEqual(
            set(status[0]),
            {"time", "cluster", "left", "taken", "reason", "detection", "switch", "first_packet"}
            | {"packets_meanwhile"},
        )

    def test_told(self) -> None:
        """Each entry is a line in the log, with a warning if a gateway was left, and a JSON object."""
        for change, words, warning in (
            (Change(1.0, "Cluster 1", None, FIRST, "because"), f"uses gateway {FIRST}: because", False),
            (Change(1.0, "Cluster 1", FIRST, SECOND, "because"), f"{FIRST} -> {SECOND}: because", True),
            (Change(1.0, "Cluster 1", FIRST, None, "because"), f"left gateway {FIRST} without", True),
            (Change(1.0, "Cluster 1", FIRST, SECOND, "", first_packet=0.5), "a packet through", False),
        ):
            line = told(change)
            assert isinstance(line, Event)
            self.assertIn(words, line.message.format(**line.fields))
            self.assertEqual(line.warning, warning)
            self.assertEqual(line.fields["event"], "failover")
            self.assertEqual(json.loads(json.dumps(line.fields)), line.fields)

    def test_log(self) -> None:
        """A failover is told when the gateway is lost, when another is used, and at its first packet."""
        network = connected()
        network.client.events.clear()
        network.gateways[0].alive = False
        busy(network, 2)
        lines = [event for event in network.client.events if event.startswith("cluster")]
        self.assertEqual(len(lines), 3, lines)
        for words, line in zip(("without another", "->", "a packet through"), lines, strict=True):
            self.assertIn(words, line)
