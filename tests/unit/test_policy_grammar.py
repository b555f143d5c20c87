"""Text -> `Policy`: the patent's statements, rvpn's own, and the error for each way to get them wrong."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import HeartbeatMode, Mechanism, TransformID
from rvpn.errors import LocalError
from rvpn.interfaces import Endpoint, IPAddress, PeerIdentity
from rvpn.policy import Client, Cluster, Policy, PolicyError, Redirect, Tunnel, load, parse
from rvpn.policy.model import Authority
from rvpn.policy.statements import MAX_DIGITS, MAX_LINE
from rvpn.policy.values import quote

KEY_1 = "RVhBTVBMRSBwdWJsaWMga2V5IG9mIGNsaWVudCAxLi4="
KEY_2 = "RVhBTVBMRSBwdWJsaWMga2V5IG9mIGdhdGV3YXkgMS4="
GATEWAY = Cluster("143.1.1.160", (IPv4Address("143.1.1.160"),))
PAIR = Cluster("Cluster 1", (IPv4Address("143.1.0.64"), IPv4Address("143.1.1.157")))


def policy(text: str) -> Policy:
    """Return the policy of a text without errors."""
    return load(text, "test.policy")


def errors(text: str | bytes) -> list[str]:
    """Return the errors of a text, without its name."""
    return [str(error).removeprefix("test.policy:") for error in parse(text, "test.policy")[1]]


def tunnels(*statements: str) -> tuple[Tunnel, ...]:
    """Return what statements of [TUNNEL] say beside a cluster 1."""
    clusters = ["[CLUSTER]", "Cluster 1 = 143.1.0.64 143.1.1.157", "Cluster = 143.1.0.63"]
    return policy("\n".join([*clusters, "[TUNNEL]", *statements])).tunnels


def tunnel(number: int, first: str, last: str, cluster: Cluster | None) -> Tunnel:
    """Return an entry, from texts."""
    return Tunnel(number, ip_address(first), ip_address(last), cluster)


class PatentTests(SynchronousTestCase):
    """What the patent's text and DESIGN 7 write is understood as they write it."""

    def test_clusters(self) -> None:
        """The patent's [CLUSTER] section."""
        found = policy(
            "[CLUSTER]\n\n"
            "Cluster 1 = 143.1.0.64 143.1.1.157\n\n"
            "Cluster 2 = 143.1.0.63 143.1.0.65 143.1.0.66\n"
        ).clusters
        members = ("143.1.0.63", "143.1.0.65", "143.1.0.66")
        self.assertEqual(found, (PAIR, Cluster("Cluster 2", tuple(map(IPv4Address, members)))))

    def test_tunnels(self) -> None:
        """The patent's two entries: a range to a cluster, a range to an address."""
        found = tunnels(
            "Tunnel1 = 143.1.0.24 - 143.1.0.30 Cluster 1", "Tunnel2 = 143.1.0.24 - 143.1.0.30 143.1.1.160"
        )
        self.assertEqual(
            found,
            (
                tunnel(1, "143.1.0.24", "143.1.0.30", PAIR),
                tunnel(2, "143.1.0.24", "143.1.0.30", GATEWAY),
            ),
        )

    def test_heartbeats(self) -> None:
        """The patent's three keys, and each of the three modes."""
        for mode in HeartbeatMode:
            found = policy(
                f"[GENERAL]\nHeartbeat = {mode.value}\nHeartbeatResponseTime = 2\nHeartbeatDeferTime = 30\n"
            )
            self.assertEqual(
                (found.heartbeat, found.heartbeat_response_time, found.heartbeat_defer_time),
                (mode, 2.0, 30.0),
            )

    def test_design_example(self) -> None:
        """The example of DESIGN 7 with its comments, fractions, CIDR, AUTO and a redirection."""
        found = policy(
            "[GENERAL]\n"
            "Heartbeat = INSTANT                 ; NONE | DEFERRED | INSTANT\n"
            "HeartbeatResponseTime = 0.1         ; seconds, fractions allowed, or auto\n"
            "HeartbeatDeferTime = 0.2\n"
            "RandomizeClusters = yes\n"
            "[CLUSTER]\n"
            "Cluster 1 = 143.1.0.64 143.1.1.157\n"
            "[TUNNEL]\n"
            "Tunnel1 = 143.1.0.24 - 143.1.0.30 Cluster 1\n"
            "Tunnel2 = 10.0.0.0/24 143.1.1.160\n"
            "Tunnel3 = 10.1.0.0-10.1.255.255 AUTO\n"
            "RedirectTunnel1 = 192.0.2.1 Cluster 1\n"
        )
        expected = Policy(
            heartbeat=HeartbeatMode.INSTANT,
            heartbeat_response_time=0.1,
            heartbeat_defer_time=0.2,
            clusters=(PAIR,),
            tunnels=(
                tunnel(1, "143.1.0.24", "143.1.0.30", PAIR),
                tunnel(2, "10.0.0.0", "10.0.0.255", GATEWAY),
                tunnel(3, "10.1.0.0", "10.1.255.255", None),
            ),
            redirects=(Redirect(1, IPv4Address("192.0.2.1"), PAIR),),
        )
        self.assertEqual(found, expected)

    def test_redirections(self) -> None:
        """R15: `Redirect Tunnel` in one word or two, to a cluster or an address."""
        found = policy(
            "[CLUSTER]\nCluster 1 = 143.1.0.64 143.1.1.157\n"
            "[TUNNEL]\nRedirectTunnel2 = 192.0.2.2 143.1.1.160\nRedirect Tunnel1 = 192.0.2.1 Cluster 1\n"
        ).redirects
        self.assertEqual(
            found,
            (Redirect(1, IPv4Address("192.0.2.1"), PAIR), Redirect(2, IPv4Address("192.0.2.2"), GATEWAY)),
        )

    def test_cluster_without_number(self) -> None:
        """`Cluster =` is named by `Cluster` alone, and is not cluster 1."""
        (entry,) = tunnels("Tunnel1 = 10.0.0.1 Cluster")
        self.assertEqual(entry.cluster, Cluster("Cluster", (IPv4Address("143.1.0.63"),)))


class FormTests(SynchronousTestCase):
    """Case, blanks and comments do not matter, and the order of the file only where it should."""

    def test_blanks_and_case(self) -> None:
        """Blanks around `=` and `-` and inside keywords are optional, case is of no account."""
        expected = (tunnel(1, "143.1.0.24", "143.1.0.30", PAIR),)
        for statement in (
            "Tunnel1=143.1.0.24-143.1.0.30 Cluster 1",
            "tunnel1 =143.1.0.24- 143.1.0.30 cluster1",
            "\t TUNNEL 1\t=  143.1.0.24 -143.1.0.30\tCLUSTER   1  ",
            "Tunnel01 = 143.1.0.24 - 143.1.0.30 Cluster 01",
        ):
            self.assertEqual(tunnels(statement), expected, statement)

    def test_auto_in_any_case(self) -> None:
        """AUTO leaves the gateway to be detected (R15)."""
        self.assertEqual(tunnels("Tunnel1 = 10.0.0.1 Auto"), (tunnel(1, "10.0.0.1", "10.0.0.1", None),))

    def test_targets(self) -> None:
        """Targets are one address, a range or a network, of either family and any size."""
        for targets, first, last in (
            ("10.0.0.7", "10.0.0.7", "10.0.0.7"),
            ("10.0.0.0/8", "10.0.0.0", "10.255.255.255"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("2001:db8::7", "2001:db8::7", "2001:db8::7"),
            ("2001:db8::1 - 2001:db8::ff", "2001:db8::1", "2001:db8::ff"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ):
            self.assertEqual(tunnels(f"Tunnel1 = {targets} AUTO"), (tunnel(1, first, last, None),), targets)

    def test_numeric_order(self) -> None:
        """Entries are in the order of their numbers, whatever that of the file, and 0 is a number."""
        found = tunnels("Tunnel10 = 10.0.0.1 AUTO", "Tunnel2 = 10.0.0.2 AUTO", "Tunnel0 = 10.0.0.3 AUTO")
        self.assertEqual([entry.number for entry in found], [0, 2, 10])

    def test_cluster_defined_later(self) -> None:
        """A tunnel entry may name a cluster that stands further below."""
        found = policy(
            "[TUNNEL]\nTunnel1 = 10.0.0.1 Cluster 1\n[CLUSTER]\nCluster1 = 143.1.0.64 143.1.1.157\n"
        )
        self.assertEqual(found.tunnels[0].cluster, PAIR)

    def test_comments(self) -> None:
        """`;` and `#` begin a comment, alone on a line or after anything."""
        found = policy("; a\n# b\n[GENERAL] ; c\nPort = 1;d\nKeyLifetime = 60 # e ; f\n")
        self.assertEqual((found.port, found.key_lifetime), (1, 60.0))

    def test_bytes_and_line_ends(self) -> None:
        """Bytes are as good as text; a byte order mark and carriage returns are of no account."""
        self.assertEqual(load(b"\xef\xbb\xbf[GENERAL]\r\nPort = 1\r\n", "f"), Policy(port=1))

    def test_empty_file(self) -> None:
        """A file without statements is a policy of defaults."""
        self.assertEqual(policy(""), Policy())


class SectionTests(SynchronousTestCase):
    """The sections that the patent does not have."""

    def test_general(self) -> None:
        """Every key of [GENERAL], `auto` among the values (X7)."""
        found = policy(
            "[GENERAL]\nHeartbeatResponseTime = auto\nHeartbeatDeferTime = AUTO\nRandomizeClusters = No\n"
            "Port = 500\nListen = 192.0.2.1 2001:db8::1\nTransforms = ChaCha20-Poly1305\n"
            "KeyLifetime = 1\nExchangeTime = .5\n"
        )
        self.assertEqual(
            found,
            Policy(
                heartbeat_response_time=None,
                heartbeat_defer_time=None,
                randomize_clusters=False,
                port=500,
                listen=(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")),
                transforms=(TransformID.CHACHA20_POLY1305,),
                key_lifetime=1.0,
                exchange_time=0.5,
            ),
        )

    def test_order_of_transforms(self) -> None:
        """Transforms keep the order of preference."""
        found = policy("[GENERAL]\nTransforms = chacha20-poly1305 aes-gcm-256\n").transforms
        self.assertEqual(found, (TransformID.CHACHA20_POLY1305, TransformID.AES_GCM_16_256))

    def test_identity_and_peers(self) -> None:
        """File names stay as they are written; a public key's padding is no second `=`."""
        found = policy(
            f"[IDENTITY]\nPrivateKey = keys/my client.key\nPresharedKey=/etc/psk\n"
            f"[PEERS]\n192.0.2.1 = {KEY_1}\n2001:DB8:0::1={KEY_1}\n"
        )
        self.assertEqual((found.private_key, found.preshared_key), ("keys/my client.key", "/etc/psk"))
        identity = PeerIdentity(Mechanism.NOISE, KEY_1)
        expected: dict[IPAddress, PeerIdentity] = {
            IPv4Address("192.0.2.1"): identity,
            IPv6Address("2001:db8::1"): identity,
        }
        self.assertEqual(found.peers, expected)

    def test_clients(self) -> None:
        """A client has a key, inner addresses joined by commas, and perhaps an endpoint (R12)."""
        addresses: tuple[IPAddress, ...] = (IPv4Address("10.9.0.1"), IPv6Address("fd00::1"))
        identity = PeerIdentity(Mechanism.NOISE, KEY_1)
        for inner, endpoint, expected in (
            ("10.9.0.1,fd00::1", "", None),
            ("10.9.0.1 , fd00::1", "198.51.100.7", Endpoint(IPv4Address("198.51.100.7"), 4501)),
            ("10.9.0.1, fd00::1", "198.51.100.7:99", Endpoint(IPv4Address("198.51.100.7"), 99)),
            ("10.9.0.1, fd00::1", "2001:db8::7", Endpoint(IPv6Address("2001:db8::7"), 4501)),
            ("10.9.0.1, fd00::1", "[2001:db8::7]:99", Endpoint(IPv6Address("2001:db8::7"), 99)),
        ):
            found = policy(f"[CLIENTS]\nClient7 = {KEY_1} {inner} {endpoint}\n[GENERAL]\nPort = 4501\n")
            self.assertEqual(found.clients, (Client(7, identity, addresses, expected),), endpoint)

    def test_device(self) -> None:
        """A device has a name and fixed inner addresses, or the client's own (R18)."""
        found = policy("[DEVICE]\nName = vpn-1\nInnerAddress = 10.9.0.1 fd00::1\n")
        self.assertEqual(found.device_name, "vpn-1")
        self.assertEqual(found.inner_addresses, (IPv4Address("10.9.0.1"), IPv6Address("fd00::1")))
        self.assertIsNone(policy("[DEVICE]\nInnerAddress = OWN\n").inner_addresses)

    def test_lan_and_control(self) -> None:
        """[LAN] and [CONTROL]."""
        found = policy(
            "[LAN]\nInterface = eth1\nNetworks = 10.0.0.0/24 fd00:1::/64\n"
            "[CONTROL]\nSocket = run/c.sock\nStateDirectory = /var/lib/x\n"
        )
        self.assertEqual(
            found,
            Policy(
                lan_interface="eth1",
                lan_networks=(ip_network("10.0.0.0/24"), ip_network("fd00:1::/64")),
                control_socket="run/c.sock",
                state_directory="/var/lib/x",
            ),
        )


class ErrorTests(SynchronousTestCase):
    """Each fault is named by file, line, what was found and what was expected."""

    def assert_fault(self, section: str, statement: str, found: str, expected: str) -> None:
        """Assert that a statement in a section is one fault, on its line."""
        complaints = errors(f"[{section}]\n{statement}\n")
        self.assertEqual(len(complaints), 1, complaints)
        self.assertTrue(complaints[0].startswith("2: error: "), complaints[0])
        self.assertIn(f"found {found}, expected {expected}", complaints[0])

    def test_all_at_once(self) -> None:
        """All errors of a file are reported, in the order of its lines, and the rest of it is understood."""
        text = (
            "[TUNNEL]\nTunnel1 = 10.0.0.1 Cluster 9\nTunnel2 = x AUTO\nTunnel3 = 10.0.0.3 AUTO\n"
            "[GENERAL]\nPort = 0\nListen = a 192.0.2.1 b\n"
        )
        found, diagnostics = parse(text, "test.policy")
        self.assertEqual([diagnostic.line for diagnostic in diagnostics], [2, 3, 6, 7, 7])
        self.assertEqual([entry.number for entry in found.tunnels], [3])
        self.assertEqual(
            str(diagnostics[2]),
            "test.policy:6: error: Port: found '0', expected a whole number from 1 to 65535",
        )

    def test_load_raises(self) -> None:
        """`load` raises a local error that carries every diagnostic, and names each on a line of its own."""
        error = self.assertRaises(PolicyError, load, "[GENERAL]\nPort = 0\nListen = a\n", "f")
        self.assertIsInstance(error, LocalError)
        self.assertEqual([diagnostic.line for diagnostic in error.diagnostics], [2, 3])
        self.assertEqual(str(error).splitlines(), [str(diagnostic) for diagnostic in error.diagnostics])

    def test_unknown_names(self) -> None:
        """An unknown key or section is an error that names the nearest, or where the key belongs."""
        self.assertEqual(
            errors("[TUNEL]\nwhatever\n[TUNNEL]\nTunel1 = 10.0.0.1 AUTO\nPort = 1\nxyz = 1\n"),
            [
                "1: error: found section 'TUNEL', expected [TUNNEL], the nearest known",
                "4: error: found key 'Tunel1' in [TUNNEL], expected Tunnel<nr>, the nearest known",
                "5: error: found key 'Port' in [TUNNEL], expected it in [GENERAL]",
                "6: error: found key 'xyz' in [TUNNEL], expected one of Tunnel<nr>, RedirectTunnel<nr>",
            ],
        )

    def test_numbers_in_keywords(self) -> None:
        """A number must follow some keywords, may follow one, and must not follow others."""
        self.assert_fault("TUNNEL", "Tunnel = 10.0.0.1 AUTO", "key 'Tunnel'", "Tunnel<nr>")
        self.assert_fault("GENERAL", "Port1 = 1", "key 'Port1'", "Port")
        self.assert_fault("TUNNEL", "Tunnel-1 = 10.0.0.1 AUTO", "key 'Tunnel-1' in [TUNNEL]", "Tunnel<nr>")
        self.assert_fault(
            "TUNNEL", "Tunnel 1 2 = 10.0.0.1 AUTO", "key 'Tunnel 1 2' in [TUNNEL]", "Tunnel<nr>"
        )
        digits = "1" * (MAX_DIGITS + 1)
        self.assert_fault("TUNNEL", f"Tunnel{digits} = 10.0.0.1 AUTO", "a number of 61 digits", "at most 60")

    def test_lines_of_no_form(self) -> None:
        """What is neither a section nor a statement is an error."""
        self.assert_fault("GENERAL", "Port 1", "'Port 1'", "<keyword> = <value>")
        self.assert_fault("GENERAL", "= 3", "'= 3'", "<keyword> = <value>")
        self.assert_fault("PEERS", "= 3", "'= 3'", "<keyword> = <value>")
        self.assert_fault("GENERAL", "[LAN] x", "'[LAN] x'", "[<section>] alone on its line")
        self.assert_fault("GENERAL", "Port =", "nothing", "a whole number from 1 to 65535")
        self.assertEqual(
            errors("Port = 1\nPort = 2\n[GENERAL]\n"),
            ["1: error: found 'Port = 1' before any section, expected [GENERAL] or another section first"],
        )

    def test_duplicates(self) -> None:
        """A second section or key is an error that names the first; however written, a number is a number."""
        self.assertEqual(
            errors(
                "[CLUSTER]\nCluster 1 = 10.0.0.1\nCluster01 = x\n[PEERS]\n"
                f"2001:db8::1 = {KEY_1}\n2001:DB8:0::1 = {KEY_2}\n[cluster]\n"
            ),
            [
                "3: error: found a second Cluster 1 (the first is on line 2), expected only one",
                "3: error: Cluster 1: found 'x', expected the IPv4 or IPv6 address of one machine",
                "6: error: found a second 2001:db8::1 (the first is on line 5), expected only one",
                "7: error: found a second [CLUSTER] (the first is on line 1), expected only one",
            ],
        )

    def test_numbers(self) -> None:
        """Numbers are decimal and within their limits: no nan, inf, sign, exponent or foreign digits."""
        limits = "a number from 0.001 to 3600, or auto"
        for text in (
            "nan",
            "inf",
            "-1",
            "+1",
            "1e3",
            "0",
            "0.0009",
            "3601",
            "1.",
            "1 2",
            "9" * 400,
            "1_0",
            "\u0662",
        ):
            self.assert_fault("GENERAL", f"HeartbeatResponseTime = {text}", quote(text), limits)
        self.assert_fault("GENERAL", "KeyLifetime = 0.9", "'0.9'", "a number from 1 to 604800")
        self.assert_fault("GENERAL", "ExchangeTime = auto", "'auto'", "a number from 0.1 to 3600")
        for text in ("0", "65536", "1.5", "-1", "\N{SUPERSCRIPT TWO}", "1" * 4000):
            self.assert_fault("GENERAL", f"Port = {text}", quote(text), "a whole number from 1 to 65535")

    def test_words(self) -> None:
        """A word that is none of the choices is an error that names them."""
        self.assert_fault("GENERAL", "Heartbeat = ON", "'ON'", "NONE, DEFERRED or INSTANT")
        self.assert_fault("GENERAL", "RandomizeClusters = 1", "'1'", "yes or no")
        self.assert_fault("GENERAL", "Transforms = aes", "'aes'", "aes-gcm-256 or chacha20-poly1305")
        self.assert_fault(
            "GENERAL", "Transforms = aes-gcm-256 AES-GCM-256", "'AES-GCM-256' twice", "each value once"
        )

    def test_targets(self) -> None:
        """Mixed families, reversed ranges, netmasks, zones and stray bits are errors."""
        for targets, found, expected in (
            ("10.0.0.1 - ::1", "a range from IPv4 to IPv6", "two addresses of one family"),
            ("10.0.0.9-10.0.0.1", "the range '10.0.0.9-10.0.0.1'", "its lower address first"),
            ("10.0.0.1/8", "'10.0.0.1/8' with bits beyond its length", "10.0.0.0/8"),
            ("10.0.0.0/33", "'10.0.0.0/33'", "a network as address/length"),
            ("10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0'", "a network as address/length"),
            ("10.0.0.0/", "'10.0.0.0/'", "a network as address/length"),
            ("10.0.0.01", "'10.0.0.01'", "an IPv4 or IPv6 address"),
            ("10.0.0.1 -", "'AUTO'", "an IPv4 or IPv6 address"),
            ("fe80::1%eth0", "'fe80::1%eth0'", "an IPv4 or IPv6 address"),
            ("fe80::%1/64", "'fe80::%1/64'", "a network as address/length"),
        ):
            self.assert_fault("TUNNEL", f"Tunnel1 = {targets} AUTO", found, expected)

    def test_gateways(self) -> None:
        """A gateway is one machine's address, a cluster, or AUTO; only a tunnel entry may say AUTO."""
        expected = "the address of a gateway or Cluster <nr>, or AUTO"
        for gateway in (
            "Cluster x",
            "Cluster 1 2",
            "Clusters",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ):
            self.assert_fault("TUNNEL", f"Tunnel1 = 10.0.0.1 {gateway}", quote(gateway), expected)
        self.assert_fault("TUNNEL", "Tunnel1 = 10.0.0.1", "nothing", expected)
        self.assert_fault(
            "TUNNEL", "RedirectTunnel1 = 10.0.0.1 AUTO", "'AUTO'", "the address of a gateway or Cluster <nr>"
        )

    def test_clusters(self) -> None:
        """Empty clusters, members twice and undefined clusters are errors; a faulty cluster is one error."""
        self.assert_fault("CLUSTER", "Cluster 1 =", "nothing", "one or more addresses of gateways")
        self.assert_fault("CLUSTER", "Cluster 1 = 10.0.0.1 10.0.0.1", "'10.0.0.1' twice", "each value once")
        self.assert_fault("TUNNEL", "Tunnel1 = 10.0.0.1 Cluster 1", "Cluster 1", "it in [CLUSTER]")
        self.assertEqual(
            errors(
                "[CLUSTER]\nCluster 1 = x\nCluster 2 = 10.0.0.2\n"
                "[TUNNEL]\nTunnel1 = 10.0.0.1 Cluster 1\nRedirectTunnel3 = 10.0.0.1 Cluster\n"
            ),
            [
                "2: error: Cluster 1: found 'x', expected the IPv4 or IPv6 address of one machine",
                "6: error: RedirectTunnel3: found Cluster, expected one of Cluster 1, Cluster 2",
            ],
        )

    def test_public_keys(self) -> None:
        """A public key is the one base64 text of 32 bytes: its length, padding and last bits are checked."""
        expected = "a public key (base64 of 32 bytes), tls, or tls and a DNS name"
        for text in (
            KEY_1[:-1],
            KEY_1[4:],
            "AAAA" + KEY_1,
            KEY_1[:-2] + "5=",
            KEY_1 + "\u00e9",
            "0x" + 64 * "0",
        ):
            self.assert_fault("PEERS", f"192.0.2.1 = {text}", quote(text), expected)
        self.assert_fault(
            "PEERS", f"localhost = {KEY_1}", "'localhost'", "the IPv4 or IPv6 address of one machine"
        )

    def test_peers_by_certificate(self) -> None:
        """A gateway has the name in its certificate that stands there, or else its address."""
        policy = load("[PEERS]\n192.0.2.1 = tls\n192.0.2.2 = TLS GW2.example.org\n2001:db8::1 = tls\n", "p")
        self.assertEqual(
            {str(address): peer.name for address, peer in policy.peers.items()},
            {"192.0.2.1": "192.0.2.1", "192.0.2.2": "gw2.example.org", "2001:db8::1": "2001:db8::1"},
        )
        self.assertEqual({peer.mechanism for peer in policy.peers.values()}, {Mechanism.TLS})
        expected = "a public key (base64 of 32 bytes), tls, or tls and a DNS name"
        for text in (
            "tls 192.0.2.1",
            "tls a b.example",
            "tls gw1",
            "tls -a.example",
            "tls a..example",
            "x509",
        ):
            self.assert_fault("PEERS", f"192.0.2.1 = {text}", quote(text), expected)

    def test_default_mechanism(self) -> None:
        """With `Mechanism = tls` who does not stand in [PEERS] has a certificate for its address."""
        address, other = ip_address("192.0.2.1"), ip_address("192.0.2.2")
        text = f"[PEERS]\n192.0.2.2 = {KEY_1}\n"
        self.assertIsNone(load(text, "p").peer(address))
        policy = load(text + "[GENERAL]\nMechanism = tls\n", "p")
        self.assertEqual(policy.peer(address), PeerIdentity(Mechanism.TLS, "192.0.2.1"))
        self.assertEqual(policy.peer(other), PeerIdentity(Mechanism.NOISE, KEY_1))

    def test_authorities(self) -> None:
        """An authority's file may be followed by addresses, ranges and networks: its clients' addresses."""
        text = "Authority2 = ca.pem 10.9.0.0/16 10.8.0.1 - 10.8.0.4 fd00::1\nAuthority1 = b.pem\n"
        second, first = load(f"[AUTHORITIES]\n{text}", "p").authorities
        self.assertEqual((second.number, second.file, first), (2, "ca.pem", Authority(1, "b.pem", ())))
        self.assertEqual(
            [str(network) for network in second.networks],
            ["10.9.0.0/16", "10.8.0.1/32", "10.8.0.2/31", "10.8.0.4/32", "fd00::1/128"],
        )
        wrong = "'10.9.0.1/16' with bits beyond its length"
        self.assert_fault("AUTHORITIES", "Authority1 = ca.pem 10.9.0.1/16", wrong, "10.9.0.0/16")

    def test_halves_of_an_identity(self) -> None:
        """A certificate without key, a key without certificate, a list without authority are errors."""
        self.assertEqual(
            errors("[IDENTITY]\nCertificate = a.pem\n[AUTHORITIES]\nRevoked = crl.pem\n"),
            [
                "2: error: Certificate: found no CertificateKey beside it, expected both",
                "4: error: Revoked: found no Authority<nr> beside it, expected both",
            ],
        )
        self.assertEqual(
            errors("[IDENTITY]\nCertificateKey = a.key\n"),
            ["2: error: CertificateKey: found no Certificate beside it, expected both"],
        )

    def test_clients(self) -> None:
        """A client without inner address, with a bad endpoint, or with what another one has is an error."""
        for rest in ("", ","):
            expected = "one or more inner addresses, separated by commas"
            self.assert_fault("CLIENTS", f"Client1 = {KEY_1} {rest}", "nothing", expected)
        for endpoint in (
            "198.51.100.7:0",
            "198.51.100.7:65536",
            "[::1]",
            "2001:db8::7:99999",
            "a b",
            "h:1",
            ":1",
        ):
            self.assert_fault(
                "CLIENTS",
                f"Client1 = {KEY_1} 10.9.0.1 {endpoint}",
                quote(endpoint),
                "an endpoint as address, IPv4:port or [IPv6]:port",
            )
        self.assertEqual(
            errors(
                f"[CLIENTS]\nClient1 = {KEY_1} 10.9.0.1, 10.9.0.2\nClient2 = {KEY_1} 10.9.0.3\n"
                f"Client3 = {KEY_2} 10.9.0.4, 10.9.0.2\n"
            ),
            [
                "3: error: Client2: found the public key of Client1, expected one of its own",
                "4: error: Client3: found inner address 10.9.0.2 of Client1, expected one of its own",
            ],
        )

    def test_interfaces(self) -> None:
        """An interface's name is one that Linux takes."""
        expected = "an interface's name"
        for name in ("a/b", "a:b", "a b", "tun%d", "x" * 16, ".", "..", "all", "\u00e9th0"):
            self.assert_fault("DEVICE", f"Name = {name}", quote(name), expected)
            self.assert_fault("LAN", f"Interface = {name}", quote(name), expected)

    def test_networks(self) -> None:
        """A network of the LAN has a length and no stray bits; each faulty one is an error."""
        self.assertEqual(
            errors("[LAN]\nNetworks = 10.0.0.0 10.0.1.1/24 10.0.2.0/24\n"),
            [
                "2: error: Networks: found '10.0.0.0', expected a network as address/length",
                "2: error: Networks: found '10.0.1.1/24' with bits beyond its length, expected 10.0.1.0/24",
            ],
        )

    def test_bytes_that_are_no_text(self) -> None:
        """What is not UTF-8, control characters, lone surrogates and very long lines are errors."""
        long = b"Port = " + b"1" * MAX_LINE
        self.assertEqual(
            errors(b"[GENERAL]\nPort = \xff\nName\0 = 1\n\x1b[LAN]\n" + long + b"\n; \x07\n"),
            [
                "2: error: found byte 0xff, expected UTF-8 text",
                "3: error: found control character U+0000, expected text",
                "4: error: found control character U+001B, expected text",
                f"5: error: found a line of {len(long)} bytes, expected at most {MAX_LINE}",
                "6: error: found control character U+0007, expected text",
            ],
        )
        self.assertEqual(errors("[GENERAL]\n\udc80\n"), ["2: error: found byte 0xed, expected UTF-8 text"])

    def test_messages_are_plain(self) -> None:
        """What a message repeats of a file is printable ASCII and short."""
        (complaint,) = errors("[GENERAL]\nPort = \u202e\x9b" + "x" * 1000)
        self.assertTrue(complaint.isascii() and complaint.isprintable(), complaint)
        self.assertLess(len(complaint), 200)
