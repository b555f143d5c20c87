"""The warnings for policies that are valid and probably wrong."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.policy import Policy, Severity, check

IDENTITY = "[IDENTITY]\nPrivateKey = k\n"
KEY = "RVhBTVBMRSBwdWJsaWMga2V5IG9mIGNsaWVudCAxLi4="


def warnings(text: str) -> list[str]:
    """Return the warnings for a text that has no errors once an identity stands before it."""
    policy, diagnostics = check(IDENTITY + text, "f")
    assert policy is not None, diagnostics
    assert {diagnostic.severity for diagnostic in diagnostics} <= {Severity.WARNING}
    return [f"{diagnostic.line - 2}: {diagnostic.message}" for diagnostic in diagnostics]


def tunnel_warnings(*targets: str) -> list[str]:
    """Return the warnings for entries with these targets, numbered from 1."""
    return warnings("[TUNNEL]\n" + "".join(f"Tunnel{n} = {t} AUTO\n" for n, t in enumerate(targets, start=1)))


class HiddenEntryTests(SynchronousTestCase):
    """Entries that others, searched first, hide."""

    def test_patents_example(self) -> None:
        """The patent's two entries have the same range: the second can never match."""
        found = tunnel_warnings("143.1.0.24 - 143.1.0.30", "143.1.0.24 - 143.1.0.30")
        self.assertEqual(
            found, ["3: Tunnel2 can never match: all its targets belong to Tunnel1, searched first"]
        )

    def test_covered_by_several(self) -> None:
        """An entry that several cover together can never match; a fourth, elsewhere, is not named."""
        found = tunnel_warnings("10.0.0.0/25", "10.0.0.128 - 10.0.0.255", "10.0.1.0/24", "10.0.0.0/24")
        self.assertEqual(
            found, ["5: Tunnel4 can never match: all its targets belong to Tunnel1, Tunnel2, searched first"]
        )

    def test_partial_overlap(self) -> None:
        """An entry that shares targets with an earlier one is a warning at the later."""
        self.assertEqual(
            tunnel_warnings("10.0.0.0 - 10.0.0.20", "10.0.0.20 - 10.0.0.30"),
            ["3: Tunnel2 overlaps Tunnel1, searched first"],
        )

    def test_order_is_numeric(self) -> None:
        """The higher number is the hidden one, though it stands first in the file."""
        found = warnings("[TUNNEL]\nTunnel10 = 10.0.0.1 AUTO\nTunnel9 = 10.0.0.0/24 AUTO\n")
        self.assertEqual(
            found, ["2: Tunnel10 can never match: all its targets belong to Tunnel9, searched first"]
        )

    def test_adjacent(self) -> None:
        """Entries side by side, and entries of two families, hide nothing."""
        self.assertEqual(
            tunnel_warnings("10.0.0.0/25", "10.0.0.128/25", "::/0", "0.0.0.0 - 9.255.255.255"), []
        )

    def test_many_are_not_all_named(self) -> None:
        """A warning names eight entries at most."""
        (found,) = tunnel_warnings(*(f"10.0.0.{n}" for n in range(10)), "10.0.0.0/24")
        self.assertIn("Tunnel8 and others, searched first", found)
        self.assertNotIn("Tunnel9", found)

    def test_redirections(self) -> None:
        """A second redirection of one access server can never match (R15)."""
        found = warnings(
            "[TUNNEL]\nRedirectTunnel2 = 10.0.0.1 10.0.0.2\nRedirectTunnel1 = 10.0.0.1 10.0.0.2\n"
            f"[PEERS]\n10.0.0.2 = {KEY}\n"
        )
        self.assertEqual(found, ["2: RedirectTunnel2 can never match: RedirectTunnel1 names 10.0.0.1 first"])

    def test_beside_errors(self) -> None:
        """Hidden entries are named in a file with errors too; what is missing there is not."""
        policy, diagnostics = check(
            "[TUNNEL]\nTunnel1 = 10.0.0.1 10.0.0.9\nTunnel2 = 10.0.0.1 10.0.0.9\n[IDENTITY]\nPrivateKey =\n",
            "f",
        )
        self.assertIsNone(policy)
        self.assertEqual(
            [(d.line, d.severity) for d in diagnostics], [(3, Severity.WARNING), (5, Severity.ERROR)]
        )


class MissingTests(SynchronousTestCase):
    """What a policy should have said."""

    def test_heartbeats_off(self) -> None:
        """A cluster of several gateways without heartbeats is a warning (R9)."""
        clusters = "[CLUSTER]\nCluster 1 = 10.0.0.1 10.0.0.2\nCluster 2 = 10.0.0.3\n"
        self.assertEqual(
            warnings(clusters),
            ["2: Cluster 1 has 2 gateways, but with Heartbeat = NONE no client notices that one has failed"],
        )
        self.assertEqual(warnings(clusters + "[GENERAL]\nHeartbeat = DEFERRED\n"), [])

    def test_no_identity(self) -> None:
        """A policy without private key is a warning, at its section if there is one."""
        text = "no PrivateKey in [IDENTITY]; the services refuse such a policy"
        for policy, line in (("", 1), ("[LAN]\nNetworks = 10.0.0.0/8\n[IDENTITY]\n", 3)):
            _, (warning,) = check(policy, "f")
            self.assertEqual((warning.line, warning.message), (line, text))

    def test_no_certificate(self) -> None:
        """What a node lacks is what its gateways ask for; a certificate is nothing without authorities."""
        tunnel = "[TUNNEL]\nTunnel1 = 10.0.0.1 192.0.2.1\n[GENERAL]\nMechanism = tls\n"
        certificate = "[IDENTITY]\nCertificate = c.pem\nCertificateKey = c.key\n"
        authority, pinned = "[AUTHORITIES]\nAuthority1 = ca.pem\n", f"[PEERS]\n192.0.2.1 = {KEY}\n"
        lan = "[LAN]\nNetworks = 10.0.0.0/8\n"
        refused = "the services refuse such a policy"
        for text, found in (
            (tunnel + IDENTITY, [f"f:5: warning: no Certificate in [IDENTITY]; {refused}"]),
            (tunnel + certificate + authority, []),
            (tunnel + certificate, [f"f:6: warning: no Authority<nr> in [AUTHORITIES]; {refused}"]),
            (
                tunnel + certificate + authority + pinned,
                [f"f:5: warning: no PrivateKey in [IDENTITY]; {refused}"],
            ),
            (lan + certificate + authority.replace("ca.pem", "ca.pem 10.99.0.0/24"), []),
        ):
            self.assertEqual([str(diagnostic) for diagnostic in check(text, "f")[1]], found)

    def test_no_peers(self) -> None:
        """Each gateway that an entry or a redirection names needs a key in [PEERS]; it is named once."""
        found = warnings(
            "[TUNNEL]\nTunnel1 = 10.0.0.1 Cluster 1\nTunnel2 = 10.0.0.2 192.0.2.2\n"
            "RedirectTunnel1 = 10.0.0.3 192.0.2.3\n[CLUSTER]\nCluster 1 = 192.0.2.1 192.0.2.2\n"
            f"[GENERAL]\nHeartbeat = INSTANT\n[PEERS]\n192.0.2.1 = {KEY}\n"
        )
        self.assertEqual(
            found,
            [
                "2: gateway 192.0.2.2 has no public key in [PEERS]",
                "4: gateway 192.0.2.3 has no public key in [PEERS]",
            ],
        )

    def test_no_networks(self) -> None:
        """A gateway without networks leads nowhere; a client needs none."""
        text = "1: no Networks in [LAN]; this gateway drops every packet of its clients"
        self.assertEqual(warnings(f"[CLIENTS]\nClient1 = {KEY} 10.9.0.1\n"), [text])
        self.assertEqual(warnings("[LAN]\nInterface = eth1\n"), [text])
        self.assertEqual(warnings("[LAN]\nNetworks = 10.0.0.0/8\n"), [])
        self.assertEqual(warnings("[TUNNEL]\n"), [])

    def test_presence_nowhere(self) -> None:
        """Who is to answer for clients on the LAN needs an interface there."""
        text = "3: Presence = proxy-arp needs Interface in [LAN]; the service refuses such a policy"
        lan = "[LAN]\nNetworks = 10.0.0.0/8\nPresence = proxy-arp\n"
        self.assertEqual(warnings(lan), [text])
        self.assertEqual(warnings(lan + "Interface = eth1\n"), [])

    def test_ranges(self) -> None:
        """At a gateway an authority without inner addresses is of no use, and one with too many a danger."""
        lan = "[LAN]\nNetworks = 10.0.0.0/8 fd00::/64\n[AUTHORITIES]\nAuthority1 = ca.pem "
        for ranges, found in (
            ("10.99.0.0/24", []),
            ("", ["4: Authority1 names no inner addresses; this gateway refuses all of its clients"]),
            (
                "10.0.0.0/8 fd00:9::/64",
                ["4: Authority1 grants 10.0.0.0/8, all of the LAN 10.0.0.0/8: also its machines' addresses"],
            ),
            (
                "::/0",
                ["4: Authority1 grants ::/0, all of the LAN fd00::/64: also its machines' addresses"],
            ),
        ):
            self.assertEqual(warnings(f"{lan}{ranges}\n"), found)
        everything = "[LAN]\nNetworks = 10.0.0.0/8\n[AUTHORITIES]\nAuthority1 = ca.pem ::/0\n"
        self.assertEqual(warnings(everything), ["4: Authority1 grants ::/0: any address there is"])
        client = f"[TUNNEL]\nTunnel1 = 0.0.0.0/0 192.0.2.1\n[PEERS]\n192.0.2.1 = {KEY}\n"
        self.assertEqual(warnings(client + "[AUTHORITIES]\nAuthority1 = ca.pem\n"), [])

    def test_gateway_inside_its_targets(self) -> None:
        """A gateway whose outer address lies among the targets bypasses the tunnel: no warning."""
        found = warnings(f"[TUNNEL]\nTunnel1 = 0.0.0.0/0 192.0.2.1\n[PEERS]\n192.0.2.1 = {KEY}\n")
        self.assertEqual(found, [])


class CheckTests(SynchronousTestCase):
    """`check` is one call for `rvpn policy check`."""

    def test_clean(self) -> None:
        """A policy without faults comes with no diagnostics."""
        self.assertEqual(check(IDENTITY, "f"), (Policy(private_key="k"), []))

    def test_order(self) -> None:
        """Diagnostics are in the order of their lines and name the file."""
        _, diagnostics = check(
            "[TUNNEL]\nTunnel1 = 10.0.0.1 10.0.0.9\n[CLUSTER]\nCluster = 10.0.0.1 10.0.0.2\n", "f"
        )
        self.assertEqual([diagnostic.line for diagnostic in diagnostics], [1, 2, 4])
        self.assertEqual(str(diagnostics[1]), "f:2: warning: gateway 10.0.0.9 has no public key in [PEERS]")
