"""Which gateway of a cluster is in use (R5), and what waits while none is (R2)."""

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.cluster import ClusterInUse
from rvpn.constants import QUEUE_LENGTH, Mechanism
from rvpn.interfaces import Endpoint, IPAddress, Path, PeerIdentity
from rvpn.policy.model import Cluster
from rvpn.sessions import Session

GATEWAYS = tuple(ip_address(f"198.51.100.{number}") for number in (21, 22, 23))
#: The KMS's order, which need not be the policy's (R1).
ORDER = (GATEWAYS[2], GATEWAYS[0], GATEWAYS[1])


class ClusterInUseTests(SynchronousTestCase):
    """`ClusterInUse`."""

    def setUp(self) -> None:
        self.sessions: dict[IPAddress, Session] = {}
        self.cluster = ClusterInUse(Cluster("Cluster 1", GATEWAYS), ORDER)

    def connect(self, gateway: IPAddress) -> Session:
        """Make a live session with a gateway."""
        peer = PeerIdentity(Mechanism.NOISE, "")
        self.sessions[gateway] = Session(gateway, peer, Path(Endpoint(gateway, 4500)), (), 0.0)
        return self.sessions[gateway]

    def choose(self) -> IPAddress | None:
        """Return the gateway that a packet would go to."""
        session = self.cluster.choose(self.sessions.get)
        return session.path.remote.address if session else None

    def end(self, gateway: IPAddress) -> None:
        """End the session with a gateway."""
        self.sessions.pop(gateway).closed = True

    def test_none(self) -> None:
        """Without a session there is no choice."""
        self.assertIsNone(self.choose())

    def test_first_in_order(self) -> None:
        """R5: of several live sessions the first in the cluster's order is taken."""
        for gateway in GATEWAYS[:2]:
            self.connect(gateway)
        self.assertEqual(self.choose(), GATEWAYS[0])

    def test_stays(self) -> None:
        """R5: the gateway in use stays in use, though an earlier one gets a session, until its own ends."""
        self.connect(GATEWAYS[1])
        self.assertEqual(self.choose(), GATEWAYS[1])
        self.connect(GATEWAYS[2])
        self.assertEqual(self.choose(), GATEWAYS[1])
        self.end(GATEWAYS[1])
        self.assertEqual(self.choose(), GATEWAYS[2])
        self.end(GATEWAYS[2])
        self.assertIsNone(self.choose())

    def test_foreign_session(self) -> None:
        """A session with a gateway of another cluster is not for this one."""
        self.connect(ip_address("198.51.100.99"))
        self.assertIsNone(self.choose())

    def test_taken_over(self) -> None:
        """R1: a policy read again moves neither the gateway in use nor the packets that wait."""
        self.connect(GATEWAYS[1])
        self.choose()
        self.cluster.wait(b"packet")
        before, self.cluster = self.cluster, ClusterInUse(self.cluster.cluster, GATEWAYS)
        self.cluster.take_over(before)
        self.connect(GATEWAYS[0])
        self.assertEqual(self.choose(), GATEWAYS[1])
        self.assertEqual(self.cluster.take_waiting(), [b"packet"])

    def test_queue(self) -> None:
        """R2: packets wait in their order, the oldest goes when there are too many, and taking empties."""
        packets = [number.to_bytes(2) for number in range(QUEUE_LENGTH + 2)]
        kept = [self.cluster.wait(packet) for packet in packets]
        self.assertEqual(kept, [True] * QUEUE_LENGTH + [False] * 2)
        self.assertEqual(self.cluster.waiting, QUEUE_LENGTH)
        self.assertEqual(self.cluster.take_waiting(), packets[2:])
        self.assertEqual((self.cluster.waiting, self.cluster.take_waiting()), (0, []))
