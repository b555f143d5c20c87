"""Which gateways of a cluster come in question (R5, R8, X1), and what waits while none is in use (R2)."""

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import QUEUE_LENGTH, Mechanism
from rvpn.datapath.waiting import WaitingPackets
from rvpn.failover.cluster import ClusterInUse
from rvpn.failover.journal import Change
from rvpn.interfaces import Endpoint, IPAddress, Path, PeerIdentity
from rvpn.policy.model import Cluster
from rvpn.session.session_control import Status
from rvpn.session.sessions import Session

GATEWAYS = tuple(ip_address(f"198.51.100.{number}") for number in (21, 22, 23))
#: The KMS's order, which need not be the policy's (R1).
ORDER = (GATEWAYS[2], GATEWAYS[0], GATEWAYS[1])
ASKED_AT = 10.0


class ClusterInUseTests(SynchronousTestCase):
    """`ClusterInUse`."""

    def setUp(self) -> None:
        self.sessions: dict[IPAddress, Session] = {}
        self.cluster = ClusterInUse(Cluster("Cluster 1", GATEWAYS), ORDER)

    def connect(self, gateway: IPAddress) -> Session:
        """Make a live session with a gateway, which was last heard before ASKED_AT."""
        peer = PeerIdentity(Mechanism.NOISE, "")
        self.sessions[gateway] = Session(gateway, peer, Path(Endpoint(gateway, 4500)), (), 0.0)
        return self.sessions[gateway]

    def live(self) -> list[IPAddress]:
        """Return the gateways that a packet could go to, the best first."""
        return [session.gateway for session in self.cluster.live(self.sessions.get)]

    def successor(self) -> IPAddress | None:
        """Return the gateway to go on with after a failure."""
        session = self.cluster.successor(self.sessions.get, ASKED_AT)
        return session.gateway if session else None

    def test_none(self) -> None:
        """Without a session there is no choice."""
        self.assertEqual((self.live(), self.successor()), ([], None))

    def test_foreign_session(self) -> None:
        """A session with a gateway of another cluster is not for this one."""
        stranger = ip_address("198.51.100.99")
        self.connect(stranger)
        self.assertEqual((self.live(), self.successor()), ([], None))
        self.assertNotIn(stranger, self.cluster)

    def test_first_in_order(self) -> None:
        """R5: live sessions come in the cluster's order, and of equals the first is gone on with."""
        for gateway in GATEWAYS:
            self.connect(gateway)
        self.assertEqual((self.live(), self.successor()), ([*ORDER], ORDER[0]))
        del self.sessions[ORDER[0]]
        self.assertEqual((self.live(), self.successor()), ([*ORDER[1:]], ORDER[1]))

    def test_better_status(self) -> None:
        """X4: one that is fit comes before one that is not, wherever it stands."""
        self.connect(ORDER[0]).status = Status.DRAINING
        self.connect(ORDER[2])
        self.assertEqual(self.successor(), ORDER[2])

    def test_proven_alive(self) -> None:
        """X1: one that gave a sign of life since it was asked comes before all that did not."""
        for gateway in GATEWAYS:
            self.connect(gateway)
        alive = self.sessions[ORDER[2]]
        alive.status = Status.DRAINING
        alive.heard(ASKED_AT)
        self.assertEqual(self.successor(), ORDER[2])

    def test_standbys(self) -> None:
        """X1: the next gateways after the one in use, cyclically, and never that one itself."""
        self.assertEqual(self.cluster.standbys(2), [])
        for rank, gateway in enumerate(ORDER):
            self.cluster.in_use = self.connect(gateway)
            self.assertEqual(self.cluster.rank(self.cluster.in_use), rank)
            cyclic = [*ORDER[rank + 1 :], *ORDER[:rank]]
            self.assertEqual([self.cluster.standbys(count) for count in (0, 1, 9)], [[], cyclic[:1], cyclic])

    def test_taken_over(self) -> None:
        """R1: a policy read again moves neither the gateway in use nor the packets that wait."""
        self.cluster.in_use = session = self.connect(GATEWAYS[1])
        self.cluster.packets.add(b"packet")
        again = ClusterInUse(self.cluster.cluster, GATEWAYS)
        self.assertTrue(again.take_over(self.cluster))
        self.assertIs(again.in_use, session)
        self.assertEqual(again.packets.take(), [b"packet"])

    def test_vacancy_taken_over(self) -> None:
        """A cluster that lacks a gateway still lacks one, since then, when the policy has been read again."""
        self.cluster.vacancy, self.cluster.vacant_since = Change(0.0, "Cluster 1", None, None, ""), 5.0
        again = ClusterInUse(self.cluster.cluster, GATEWAYS)
        self.assertTrue(again.take_over(self.cluster))
        self.assertEqual((again.vacancy, again.vacant_since), (self.cluster.vacancy, 5.0))

    def test_not_taken_over(self) -> None:
        """A gateway that the new policy's cluster lacks is in use no longer; the packets wait on."""
        self.cluster.in_use = self.connect(GATEWAYS[1])
        self.cluster.packets.add(b"packet")
        again = ClusterInUse(Cluster("Cluster 1", GATEWAYS[:1]), GATEWAYS[:1])
        self.assertFalse(again.take_over(self.cluster))
        self.assertIsNone(again.in_use)
        self.assertEqual(again.packets.take(), [b"packet"])

    def test_queue(self) -> None:
        """R2: packets wait in their order, the oldest goes when there are too many, and taking empties."""
        packets = [number.to_bytes(2) for number in range(QUEUE_LENGTH + 2)]
        dropped = [self.cluster.packets.add(packet) for packet in packets]
        self.assertEqual(dropped, [0] * QUEUE_LENGTH + [1] * 2)
        self.assertEqual(self.cluster.waiting, QUEUE_LENGTH)
        self.assertEqual(self.cluster.packets.take(), packets[2:])
        self.assertEqual((self.cluster.waiting, self.cluster.packets.take()), (0, []))

    def test_queue_of_super_packets(self) -> None:
        """R2: their bytes are bounded too, and as many of the oldest go as one more needs."""
        waiting = WaitingPackets(64, 1000)
        self.assertEqual([waiting.add(bytes(size)) for size in (300, 300, 400, 500, 1)], [0, 0, 0, 2, 0])
        self.assertEqual(list(map(len, waiting.take())), [400, 500, 1])
        self.assertEqual([waiting.add(bytes(1000)), waiting.add(b"")], [0, 0])
