"""How clients spread over a cluster (R1, R3), and what a policy that is read again does to it."""

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.client.node import Client
from rvpn.constants import LONGEST_HOLD_DOWN, HeartbeatMode, Mechanism
from rvpn.datapath.offload import COMPLETE
from rvpn.failover.cluster import ClusterInUse, HoldDowns
from rvpn.interfaces import Action, DatagramBatch, Endpoint, IPAddress, Path, PeerIdentity, Send
from rvpn.keyexchange.credentials import Credentials
from rvpn.policy.model import Cluster, Policy, Tunnel
from rvpn.session.session_control import Kind, Status
from rvpn.session.sessions import Session
from tests.unit.simulation import INNER, OUT, Network, batch_of, udp_packet

NOTHING: list[Any] = []


class SpreadTests(SynchronousTestCase):
    """1,000 clients with one policy and three gateways."""

    CLIENTS = 1000

    def first_asked(self, actions: list[Action]) -> IPAddress:
        """Return the gateway of the one exchange that begins."""
        (send,) = (action for action in actions if isinstance(action, Send))
        return send.path.remote.address

    def spread(self, *, randomize: bool) -> tuple[Counter[IPAddress], Counter[IPAddress], IPAddress]:
        """
        Let each client send its first packet, and one gateway be dead.

        Returns how many clients ask each gateway first, how many of those that asked the dead one ask each of
        the others then, and which one is dead.
        """
        network = Network(3, randomize_clusters=randomize)
        dead = network.gateways[0].endpoint
        firsts, seconds = Counter[IPAddress](), Counter[IPAddress]()
        for number in range(self.CLIENTS):
            random = Random(number)
            client = Client(
                network.client_policy, Credentials(random.randbytes(32)), (INNER,), random, lambda: 1.7e9, 0.0
            )
            first = self.first_asked(
                list(client.outbound(batch_of(COMPLETE + OUT), DatagramBatch(2048), 1.0))
            )
            firsts[first] += 1
            if first == dead.address:
                seconds[self.first_asked(list(client.unreachable(dead, 1.0)))] += 1
        return firsts, seconds, dead.address

    def test_shuffled(self) -> None:
        """
        R1, R3: no gateway gets more than 40 % of the clients, and those of a dead one go to both others, 40
        to 60 % to each.
        """
        firsts, seconds, dead = self.spread(randomize=True)
        self.assertEqual(sum(firsts.values()), self.CLIENTS)
        self.assertLessEqual(max(firsts.values()), 0.4 * self.CLIENTS)
        self.assertEqual(len(firsts), 3)
        self.assertEqual((len(seconds), seconds[dead]), (2, 0))
        for count in (seconds[address] for address in firsts if address != dead):
            self.assertTrue(0.4 * firsts[dead] <= count <= 0.6 * firsts[dead], seconds)

    def test_in_order(self) -> None:
        """R1: with `RandomizeClusters = no` all go to the first, and if that is dead to the second."""
        firsts, seconds, dead = self.spread(randomize=False)
        self.assertEqual(firsts, {dead: self.CLIENTS})
        self.assertEqual(seconds, {dead + 1: self.CLIENTS})


class OrderTests(SynchronousTestCase):
    """Questions to a cluster."""

    ADDRESSES = tuple(ip_address(f"198.51.100.{number}") for number in range(1, 6))

    def setUp(self) -> None:
        """Start with five gateways, with all of which there are sessions."""
        self.cluster = ClusterInUse(Cluster("Cluster 1", self.ADDRESSES), self.ADDRESSES)
        peer = PeerIdentity(Mechanism.NOISE, "a gateway")
        self.sessions = {
            address: Session(address, peer, Path(Endpoint(address, 4500)), (), 0.0)
            for address in self.ADDRESSES
        }

    def successor(self, asked_at: float = 0.0) -> int | None:
        """Return the place of the successor."""
        session = self.cluster.successor(self.sessions.get, asked_at)
        return None if session is None else self.cluster.rank(session)

    def test_standbys(self) -> None:
        """X1: the standbys are those that come after the one in use, cyclically."""
        self.assertEqual(self.cluster.standbys(2), NOTHING)
        for place in range(5):
            self.cluster.in_use = self.sessions[self.ADDRESSES[place]]
            for count in range(8):
                expected = [self.ADDRESSES[(place + 1 + n) % 5] for n in range(min(count, 4))]
                self.assertEqual(self.cluster.standbys(count), expected)

    def test_successor(self) -> None:
        """R5, X1, X4: of the live ones first who proved alive, then who is fit, then the order."""
        sessions = list(self.sessions.values())
        self.assertEqual(self.successor(), 0)
        sessions[0].status = Status.DRAINING
        self.assertEqual(self.successor(), 1)
        sessions[1].status = Status.LAN_DOWN
        sessions[2].status = Status.DRAINING
        self.assertEqual(self.successor(), 3)
        sessions[2].received_at = sessions[1].received_at = 5.0
        self.assertEqual(self.successor(asked_at=4.0), 2)
        for session in sessions:
            del self.sessions[session.gateway]
        self.assertIsNone(self.successor())

    def test_hold_down(self) -> None:
        """X2: each failure soon after a return doubles the hold-down up to an hour; a long use ends that."""
        hold_downs, session, now = HoldDowns(), self.sessions[self.ADDRESSES[0]], 1000.0
        self.assertTrue(hold_downs.over(session.gateway, 60.0, now))
        held = []
        for used_for in (1e6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e6, 1.0):
            session.used_since, now = now, now + used_for
            hold_downs.failed(session, 60.0, now)
            start = now
            while not hold_downs.over(session.gateway, 60.0, now):
                now += 1.0
            held.append(now - start)
        self.assertEqual(
            held,
            [60, 120, 240, 480, 960, 1920, *[LONGEST_HOLD_DOWN] * 3, 60, 120],
        )

    def test_other_hold_down(self) -> None:
        """X2: a hold-down that the policy changes holds for past failures too, doubled as often as before."""
        hold_downs, session = HoldDowns(), self.sessions[self.ADDRESSES[0]]
        for now in (1000.0, 1001.0):
            session.used_since = now
            hold_downs.failed(session, 60.0, now)
        for hold_down, held in ((60.0, 120.0), (5.0, 10.0), (7200.0, 7200.0), (0.0, 0.0)):
            self.assertTrue(hold_downs.over(session.gateway, hold_down, 1001.0 + held))
            self.assertFalse(hold_downs.over(session.gateway, hold_down, 1000.9 + held))

    def test_standby_lost(self) -> None:
        """X2: the failures of a session that was never used do not add up."""
        hold_downs, session = HoldDowns(), self.sessions[self.ADDRESSES[0]]
        for _ in range(5):
            hold_downs.failed(session, 60.0, 1000.0)
        self.assertFalse(hold_downs.over(session.gateway, 60.0, 1059.0))
        self.assertTrue(hold_downs.over(session.gateway, 60.0, 1060.0))


class ReloadTests(SynchronousTestCase):
    """A policy that is read again."""

    def connected(self, gateways: int = 3, **policy: Any) -> Network:
        """Return a network whose client watches the gateway in use, in the order of its policy."""
        chosen: dict[str, Any] = {
            "heartbeat": HeartbeatMode.INSTANT,
            "heartbeat_defer_time": 0.2,
            "heartbeat_response_time": 0.1,
            "randomize_clusters": False,
        }
        network = Network(gateways, **(chosen | policy))
        return network.connect()

    def reload(self, network: Network, *members: int, **changes: Any) -> None:
        """Read a policy with these gateways in the cluster."""
        policy = replace(network.client_policy, **changes)
        if members:
            addresses = tuple(network.gateways[member].endpoint.address for member in members)
            cluster = Cluster("Cluster 1", addresses)
            tunnels = tuple(replace(tunnel, cluster=cluster) for tunnel in policy.tunnels)
            policy = replace(policy, clusters=(cluster,), tunnels=tunnels)
        self.policy: Policy = policy
        network.act(network.client, network.client.node.reload(policy, network.now))

    def test_stays(self) -> None:
        """R1: the gateway in use stays though the order changes or others come and go."""
        for members in ((0, 1, 2), (2, 1, 0), (1, 0), (0,)):
            network = self.connected()
            self.reload(network, *members)
            network.run(5)
            self.assertEqual((network.in_use, network.control(Kind.CLOSE)), (0, NOTHING), members)

    def test_shuffled(self) -> None:
        """R1, X2: shuffled anew it stays too, where the client returns to earlier gateways."""
        network = self.connected(randomize_clusters=True, failback=True, failback_hold_down=1.0)
        used = network.in_use
        for _ in range(10):
            self.reload(network)
            network.run(2.5)
            self.assertEqual(network.in_use, used)

    def test_renamed(self) -> None:
        """R1: so it does where the cluster has another name."""
        network = self.connected()
        session = network.client.node.failover.clusters["Cluster 1"].in_use
        renamed = Cluster("Cluster 9", network.client_policy.clusters[0].members)
        tunnels = tuple(replace(tunnel, cluster=renamed) for tunnel in network.client_policy.tunnels)
        self.reload(network, clusters=(renamed,), tunnels=tunnels)
        self.assertIs(network.client.node.failover.clusters["Cluster 9"].in_use, session)
        self.assertEqual(len(network.client.node.failover.journal.changes), 1)

    def test_removed_in_use(self) -> None:
        """R8: if the gateway in use is gone, the client tells it and goes on with another, idle as it is."""
        for standby in (0, 1):
            network = self.connected(standby=standby)
            self.reload(network, 1, 2)
            network.run(0.01)
            self.assertEqual(network.in_use, 1)
            self.assertEqual(len(network.gateways[0].node.cache), 0)
            change = network.client.node.failover.journal.changes[-1]
            self.assertEqual(change.reason, "the policy no longer has it")

    def test_still_in_another_cluster(self) -> None:
        """R4: a gateway that leaves one cluster and stays in another serves the other alone."""
        network = self.connected()
        single = Cluster("Cluster 2", (network.gateways[0].endpoint.address,))
        other = ip_address("10.0.0.9")
        both = replace(
            network.client_policy, tunnels=(*network.client_policy.tunnels, Tunnel(2, other, other, single))
        )
        network.client_policy = both
        network.act(network.client, network.client.node.reload(both, network.now))
        network.send(network.client, udp_packet(INNER, other, b""))
        network.run(0.1)
        first = Cluster("Cluster 1", tuple(g.endpoint.address for g in network.gateways[1:]))
        tunnels = (replace(both.tunnels[0], cluster=first), both.tunnels[1])
        network.act(network.client, network.client.node.reload(replace(both, tunnels=tunnels), network.now))
        network.run(0.1)
        clusters = network.client.node.failover.clusters
        uses = {name: cluster.in_use and cluster.in_use.name for name, cluster in clusters.items()}
        self.assertEqual(uses, {"Cluster 1": "198.51.100.22", "Cluster 2": "198.51.100.21"})

    def test_no_heartbeats_to_others(self) -> None:
        """R6: a gateway that no cluster uses any more gets no more heartbeats."""
        network = self.connected()
        clusters = network.client.node.failover.clusters
        session = clusters["Cluster 1"].in_use
        other = Cluster("Cluster 9", network.client_policy.clusters[0].members)
        elsewhere = ip_address("10.0.0.9")
        self.reload(network, clusters=(other,), tunnels=(Tunnel(2, elsewhere, elsewhere, other),))
        network.run(5)
        self.assertIs(network.client.node.cache.get(network.gateways[0].endpoint.address), session)
        self.assertEqual(network.control(Kind.HEARTBEAT), NOTHING)

    def test_new_times(self) -> None:
        """R6, R9: new heartbeat settings hold at once for the gateway in use."""
        network = self.connected()
        self.reload(network, heartbeat_defer_time=1.0)
        network.run(10.05)
        self.assertIn(len(network.control(Kind.HEARTBEAT)), (9, 10))
        self.reload(network, heartbeat=HeartbeatMode.NONE)
        network.sent.clear()
        network.run(10)
        self.assertEqual(network.sent, NOTHING)

    def test_goes_on_looking(self) -> None:
        """R8: a client that was looking for a gateway goes on, and finds the one that comes back."""
        network = self.connected()
        for gateway in network.gateways:
            gateway.alive = False
        network.run(20)
        self.reload(network)
        network.run(20)
        network.gateways[2].alive = True
        network.run(20)
        self.assertEqual(network.in_use, 2)

    def test_gateway_gone_while_asked(self) -> None:
        """R3: if the gateway that is being asked is gone, the next one is asked at once."""
        network = Network(2, randomize_clusters=False)
        network.gateways[0].alive = False
        network.send(network.client, OUT)
        network.run(0.5)
        self.reload(network, 1)
        network.run(0.1)
        self.assertEqual(network.gateways[1].delivered, [OUT])

    def test_new_standby(self) -> None:
        """X1: a standby that a new policy asks for is made at once."""
        network = self.connected()
        self.reload(network, standby=1)
        network.run(0.1)
        self.assertEqual(len(network.client.node.cache), 2)

    def test_exchange_time(self) -> None:
        """R3: a new ExchangeTime holds for the next exchange."""
        network = Network(2, randomize_clusters=False)
        network.gateways[0].alive = False
        self.reload(network, exchange_time=0.25)
        network.send(network.client, OUT)
        network.run(0.3)
        self.assertEqual(network.gateways[1].delivered, [OUT])
