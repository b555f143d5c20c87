"""Which gateway answers for a client's address, as the nodes settle it between them (DESIGN 6 and 8)."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import CONTROL_SPI, HeartbeatMode
from rvpn.session.session_control import Kind
from tests.unit.simulation import INNER, TARGET, Network, udp_packet

OUT = udp_packet(INNER, TARGET, b"")


class OwnerTests(SynchronousTestCase):
    """A client that uses the first gateway, and keeps keys with the second."""

    def setUp(self) -> None:
        """Have both gateways know the client."""
        self.network = Network(2, randomize_clusters=False, heartbeat=HeartbeatMode.INSTANT, standby=1)
        self.network.send(self.network.client, OUT)
        self.network.run(1)
        self.network.sent.clear()

    def questions(self, index: int) -> int:
        """Return how often a gateway asked `owner?`."""
        asker = self.network.gateways[index].endpoint
        return sum(
            source == asker and datagram[:4] == CONTROL_SPI.to_bytes(4) and datagram[4] == Kind.OWNER
            for _, datagram, source, _ in self.network.sent
        )

    def test_claimed_again(self) -> None:
        """The gateway in use that hears another announce the address asks, and owns it again by the claim."""
        gateway = self.network.gateways[0]
        self.assertTrue(gateway.node.presence.owns(INNER.packed))
        self.network.act(gateway, gateway.node.presence.contradicted(INNER, self.network.now))
        self.assertFalse(gateway.node.presence.owns(INNER.packed))
        self.network.run(1)
        self.assertTrue(gateway.node.presence.owns(INNER.packed))
        self.assertEqual(self.questions(0), 1)

    def test_answered_without_a_claim(self) -> None:
        """A gateway that is not in use is told so once, asks no more, and keeps its session as a standby."""
        gateway = self.network.gateways[1]
        (session,) = gateway.node.cache
        now = self.network.now
        self.network.act(gateway, gateway.node.presence.claimed(session, 1 << 95, now))
        self.network.act(gateway, gateway.node.presence.contradicted(INNER, now))
        self.network.run(10)
        self.assertFalse(gateway.node.presence.owns(INNER.packed))
        self.assertEqual(self.questions(1), 1)
        self.assertEqual(list(gateway.node.cache), [session])
