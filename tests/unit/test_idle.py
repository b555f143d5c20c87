"""A node with nothing to do sleeps: few appointments, no datagrams."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.unit.simulation import INNER, TARGET, Host, Network, udp_packet

HOUR = 3600.0


def wakeups(network: Network, host: Host[Any], seconds: float) -> int:
    """Let time pass, and count how often the host's alarm rings meanwhile."""
    end, count = network.now + seconds, 0
    while (deadline := host.node.deadline()) is not None and deadline <= end:
        network.run(deadline - network.now)
        count += 1
    network.run(end - network.now)
    return count


class IdleTests(SynchronousTestCase):
    """The agenda of a node that carries no packets."""

    def setUp(self) -> None:
        self.network = Network()
        self.hosts: list[Host[Any]] = self.network.hosts

    def test_without_session(self) -> None:
        """A node without a session never wakes up."""
        for host in self.hosts:
            self.assertIsNone(host.node.deadline())

    def test_with_session(self) -> None:
        """With a session that nobody uses, a client wakes up once a minute at most, and sends nothing."""
        self.network.send(self.network.client, udp_packet(INNER, TARGET, b"the only one"))
        self.network.run(30)
        self.network.sent.clear()
        for host in self.hosts:
            self.assertLessEqual(wakeups(self.network, host, HOUR / 2), 30)
        self.assertEqual(self.network.sent, [])

    def test_after_the_end(self) -> None:
        """When its session has ended, nothing is left on a client's agenda."""
        self.network.send(self.network.client, udp_packet(INNER, TARGET, b""))
        self.network.run(1)
        self.network.act(self.network.client, self.network.client.node.close(self.network.now))
        wakeups(self.network, self.network.client, 120)
        self.assertIsNone(self.network.client.node.deadline())
