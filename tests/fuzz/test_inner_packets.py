"""
Packets that a host, or somebody behind it, puts into the TUN device: mutants of IPv4 and IPv6 packets.

With a session, with one whose path carries little, and with none that can be had: nothing raises, nothing
stays, and what goes out is sealed for a session or an ICMP error to the sender.
"""

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.client.node import _REMEMBERED_LOOKUPS
from rvpn.constants import BACKOFF_LAST
from rvpn.datapath.offload import COMPLETE
from rvpn.datapath.packet import addresses
from rvpn.errors import DropReason
from rvpn.gateway.node import _REMEMBERED_TARGETS
from rvpn.interfaces import Deliver
from tests.fuzz.mutation import Mutator
from tests.fuzz.scene import GROWTH, INNER_6, LAN, Memory, Misbehaviour, Scene, inner_packets, ipv6, report
from tests.unit.simulation import Host, batch_of

#: For each role, in each of three situations.
PACKETS = 5000
#: One less than makes a node forget those before.
TARGETS = 3 * _REMEMBERED_LOOKUPS - 1
ICMP = {4: 1, 6: 58}


class InnerPacketTests(SynchronousTestCase):
    """Mutants from the TUN device of either role."""

    def setUp(self) -> None:
        """Make no session yet."""
        self.scene = Scene()
        self.mutator = Mutator(Random(8))
        self.sources: list[tuple[Host[Any], list[bytes]]] = [
            (self.scene.client, inner_packets(to_target=True)),
            (self.scene.gateway, inner_packets(to_target=False)),
        ]

    def attack(self, seconds: float = 0.0) -> None:
        """Let mutants come out of both TUN devices, `seconds` apart."""
        scene = self.scene
        with Memory() as memory:
            for number in range(PACKETS):
                for host, packets in self.sources:
                    self.send(host, self.mutator.packet(packets))
                scene.run(seconds)
                if number % 50 == 0:
                    scene.forget()
                if number == PACKETS // 10:
                    memory.begin()
            scene.forget()
            growth = memory.growth()
        report(self, f"{PACKETS} packets from each end", growth)
        self.assertLessEqual(growth, GROWTH)

    def send(self, host: Host[Any], packet: bytes) -> None:
        """Let a packet come out of a TUN device; what comes back at once has to be an ICMP error."""
        batch = self.scene._datagrams
        actions = host.node.outbound(batch_of(COMPLETE + packet), batch, self.scene.now)
        for action in actions:
            if isinstance(action, Deliver):
                version, (_, _, receiver) = action.packet[0] >> 4, addresses(memoryview(action.packet))
                if action.packet[9 if version == 4 else 6] != ICMP[version] or receiver not in packet:
                    raise Misbehaviour(f"{packet.hex()} drew {action.packet.hex()}")
        if sum(run.count for run in batch.runs) > 1 or batch.length > len(packet) + 64:
            raise Misbehaviour(f"{packet.hex()} became {batch.length} bytes")
        self.scene.act(host, actions)

    def dropped(self, host: Host[Any]) -> set[DropReason]:
        """Return why packets were dropped."""
        return set(host.node.filter.drops)

    def test_session(self) -> None:
        """With a session they are sealed or dropped, and the session goes on with the very same keys."""
        self.scene.ping()
        keys = self.scene.sending()
        self.attack()
        self.assertTrue(self.scene.ping())
        self.assertEqual(self.scene.sending(), keys)
        client, gateway = self.scene.client, self.scene.gateway
        ours = {DropReason.MALFORMED_PACKET, DropReason.NO_TUNNEL, DropReason.WRONG_SOURCE}
        self.assertLessEqual(ours, self.dropped(client))
        self.assertLessEqual({DropReason.MALFORMED_PACKET, DropReason.NO_SESSION}, self.dropped(gateway))

    def test_narrow_path(self) -> None:
        """Those too big for the path draw an ICMP error, or nothing."""
        self.scene.ping()
        for host, peer in ((self.scene.client, self.scene.gateway), (self.scene.gateway, self.scene.client)):
            host.node.path_mtu(peer.endpoint, 1300, self.scene.now)
        self.attack()
        self.assertTrue(self.scene.ping())
        for host in self.scene.hosts:
            self.assertIn(DropReason.TOO_BIG, self.dropped(host))

    def test_no_gateway(self) -> None:
        """Those for which there is no session wait within bounds, and are answered or dropped at last."""
        self.scene.gateway.alive = False
        self.attack(seconds=0.01)
        self.scene.run(2 * BACKOFF_LAST)
        client = self.scene.client.node
        self.assertEqual((len(client.agenda), client.failover.clusters["Cluster 1"].waiting), (0, 0))
        reasons = {DropReason.QUEUE_FULL, DropReason.REQUEST_REJECTED}
        self.assertLessEqual(reasons, self.dropped(self.scene.client))
        self.scene.gateway.alive = True
        self.assertTrue(self.scene.ping())

    def test_scan(self) -> None:
        """What is remembered about ever new targets is bounded, from the first one on."""
        scene = self.scene
        scene.ping()
        with Memory() as memory:
            for number in range(TARGETS):
                scene.send(scene.client, ipv6((INNER_6, LAN[1][number]), 17, b"scan"))
                if number % 50 == 0:
                    scene.run(0.001)
                    scene.forget()
            growth = memory.growth()
        self.assertLessEqual(len(scene.client.node._cluster_of), _REMEMBERED_LOOKUPS)
        self.assertLessEqual(len(scene.gateway.node._on_lan), _REMEMBERED_TARGETS)
        report(self, f"{TARGETS} targets", growth)
        self.assertLessEqual(growth, GROWTH)
