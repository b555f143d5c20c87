"""AUTO stands for the detected access server, or for what `RedirectTunnel` puts in its place (R15)."""

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.policy import Cluster, Policy, TunnelIndex, load, resolve_auto

POLICY = """
[CLUSTER]
Cluster 1 = 143.1.0.64 143.1.1.157
Cluster 2 = 143.1.0.63 143.1.0.65 143.1.0.66
[TUNNEL]
Tunnel1 = 143.1.0.24 - 143.1.0.30 Cluster 1
Tunnel2 = 10.0.0.0/24 143.1.1.160
Tunnel3 = 10.1.0.0 - 10.1.255.255 AUTO
Tunnel4 = 2001:db8:1::/48 AUTO
RedirectTunnel1 = 192.0.2.1 Cluster 1
Redirect Tunnel2 = 198.51.100.1 Cluster 2
RedirectTunnel3 = 203.0.113.1 143.1.1.160
RedirectTunnel4 = 192.0.2.1 143.1.1.160
RedirectTunnel5 = fe80::1 Cluster 2
"""


class ResolveTests(SynchronousTestCase):
    """The clusters of a policy's entries, given the access server."""

    def setUp(self) -> None:
        """Read the policy."""
        self.policy = load(POLICY, "test.policy")

    def clusters(self, detected: str | None) -> list[Cluster | None]:
        """Return the clusters of the four entries where `detected` is the access server."""
        resolved = resolve_auto(self.policy, ip_address(detected) if detected else None)
        return [tunnel.cluster for tunnel in resolved.tunnels]

    def auto(self, detected: str | None) -> Cluster | None:
        """Return the cluster of the entries for AUTO, which is the same for all."""
        *_, third, fourth = self.clusters(detected)
        self.assertEqual(third, fourth)
        return third

    def test_itself(self) -> None:
        """An access server that is not redirected is the gateway, a cluster of one as `Tunnel2` has it."""
        for server in "192.0.2.99", "2001:db8::1":
            self.assertEqual(self.auto(server), Cluster(server, (ip_address(server),)))

    def test_redirected(self) -> None:
        """The patent's redirection: to a cluster, or to an address. The first one for a server wins."""
        first, second = self.policy.clusters
        self.assertEqual(self.auto("192.0.2.1"), first)
        self.assertEqual(self.auto("203.0.113.1"), Cluster("143.1.1.160", (ip_address("143.1.1.160"),)))
        self.assertEqual(self.auto("fe80::1"), second)

    def test_two_sites(self) -> None:
        """A laptop that moves between two sites uses each one's cluster there, and none on the way."""
        first, second = self.policy.clusters
        sites = ["192.0.2.1", None, "198.51.100.1", "192.0.2.1"]
        self.assertEqual([self.auto(site) for site in sites], [first, None, second, first])

    def test_nothing_detected(self) -> None:
        """Without an access server the entries have no gateway, but still hold their targets."""
        self.assertIsNone(self.auto(None))
        resolved = resolve_auto(self.policy, None)
        self.assertEqual(resolved, self.policy)
        found = TunnelIndex(resolved.tunnels).find(ip_address("10.1.2.3"))
        assert found is not None
        self.assertEqual((found.number, found.cluster), (3, None))

    def test_link_local(self) -> None:
        """A link-local address is no gateway, for a datagram to it lacks the link."""
        self.assertIsNone(self.auto("fe80::2"))
        self.assertIsNone(self.auto("169.254.1.1"))

    def test_others(self) -> None:
        """Entries with a gateway or cluster of their own keep it, and nothing else changes."""
        first, _ = self.policy.clusters
        for detected in None, "192.0.2.1", "192.0.2.99":
            clusters = self.clusters(detected)
            self.assertEqual(clusters[:2], [first, Cluster("143.1.1.160", (ip_address("143.1.1.160"),))])
        resolved = resolve_auto(self.policy, ip_address("192.0.2.1"))
        for field in set(Policy.__slots__) - {"tunnels"}:
            self.assertEqual(getattr(resolved, field), getattr(self.policy, field))
