"""`rvpn enroll`: one file for a new client, made of what all clients have in common."""

from ipaddress import ip_address
from pathlib import Path

from rvpn.constants import Mechanism, Role
from rvpn.files import policyfile
from rvpn.keyexchange.credentials import Credentials
from rvpn.policy import Policy, PolicyError, load
from rvpn.service import configuration
from tests.unit.commands import CommandTestCase, Outcome, rvpn

TEMPLATE = """\
; What all clients have in common
[GENERAL]
Heartbeat = INSTANT
[CLUSTER]
Cluster 1 = 192.0.2.1 192.0.2.2 192.0.2.3
[TUNNEL]
Tunnel1 = 10.0.0.0/24 Cluster 1
"""


class EnrollTests(CommandTestCase):
    """An authority with a template in its directory, and new clients."""

    def setUp(self) -> None:
        """Write the template."""
        super().setUp()
        self.template = self.ca / "client.policy"
        self.template.write_text(TEMPLATE)
        self.file = self.directory / "alice.rvpn"

    def enroll(self, *words: str, **options: object) -> Outcome:
        """Enroll a client, into a file beside the authority."""
        return self.rvpn("enroll", *words, **{"output": self.file, **options})

    def policy(self) -> Policy:
        """Return the policy that was made."""
        return load(policyfile.read(self.file), str(self.file))

    def test_policy(self) -> None:
        """The file is the template, for the client's eyes alone, with its address and mechanism added."""
        outcome = self.enroll("alice", "10.99.0.7", "fd00:99::7")
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertIn("twistd rvpn-client --policy alice.rvpn", outcome.out)
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        policy, template = self.policy(), load(TEMPLATE, "f")
        self.assertEqual(policy.inner_addresses, (ip_address("10.99.0.7"), ip_address("fd00:99::7")))
        self.assertEqual(policy.mechanism, Mechanism.TLS)
        for field in ("heartbeat", "clusters", "tunnels"):
            self.assertEqual(getattr(policy, field), getattr(template, field))
        self.assertIn("; What all clients have in common", self.file.read_text())
        self.assertEqual(rvpn("policy", "check", str(self.file)).out, "1 file: 0 errors, 0 warnings\n")

    def test_credentials(self) -> None:
        """A service takes its certificate, key and authority from the file as it is, wherever that lies."""
        self.enroll("alice", "10.99.0.7")
        elsewhere = Path(self.mktemp())
        self.file.rename(elsewhere)
        credentials = configuration.read(elsewhere, Role.CLIENT).credentials
        self.assertIsInstance(credentials, Credentials)
        self.assertEqual(credentials.mechanisms, (Mechanism.TLS,))

    def test_exposed(self) -> None:
        """A file with a secret key in it that others could have read is refused, as a key file is."""
        self.enroll("alice", "10.99.0.7")
        self.file.chmod(0o640)
        error = self.assertRaises(PolicyError, configuration.read, self.file, Role.CLIENT)
        self.assertIn("found mode 0640, expected 0600", str(error))

    def test_key_leaves_no_trace(self) -> None:
        """The secret key is in that file and nowhere else."""
        self.enroll("alice", "10.99.0.7")
        files = self.files()
        key = files.pop("alice.rvpn").split(b"BEGIN PRIVATE KEY-----\n")[1].splitlines()[0]
        self.assertEqual([name for name, content in files.items() if key in content], [])

    def test_stated_already(self) -> None:
        """A template may state the mechanism, a device and further gateways; nothing is stated twice."""
        self.template.write_text(
            TEMPLATE.replace("[GENERAL]", "[device]\nName = vpn1\n[general]\nmechanism=tls")
            + "[PEERS]\n192.0.2.1 = tls gw1.example.org"
        )
        self.enroll("alice", "10.99.0.7")
        policy = self.policy()
        self.assertEqual((policy.device_name, policy.mechanism), ("vpn1", Mechanism.TLS))
        self.assertEqual(policy.inner_addresses, (ip_address("10.99.0.7"),))

    def test_renewal(self) -> None:
        """A renewal replaces the file, with another key and what the template says now."""
        self.enroll("alice", "10.99.0.7")
        before = self.file.read_bytes()
        self.refused(self.enroll("alice", "10.99.0.7"), "--renew makes another")
        self.template.write_text(TEMPLATE.replace("INSTANT", "DEFERRED"))
        self.assertEqual(self.enroll("--renew", "alice").code, 0)
        self.assertIn("DEFERRED", self.file.read_text())
        self.assertNotEqual(before, self.file.read_bytes())

    def test_existing_file(self) -> None:
        """A file that is in the way stays as it is, and no certificate is issued."""
        self.file.write_bytes(b"precious")
        before = self.files()
        self.refused(self.enroll("alice", "10.99.0.7"), "alice.rvpn: exists already")
        self.assertEqual(self.files(), before)

    def test_again_after_revocation(self) -> None:
        """A revoked client gets in again only on purpose, and each refusal says how."""
        self.enroll("alice", "10.99.0.7")
        self.rvpn("pki", "revoke", "alice")
        self.refused(self.enroll("--renew", "alice"), "remove what was made for it before, and issue it")
        again = self.enroll("alice", "10.99.0.7")
        self.refused(again, "left as it is; remove it, or choose another with -o")
        self.file.unlink()
        self.assertEqual(self.enroll("alice", "10.99.0.7").code, 0)
        self.rvpn("pki", "revoke", "alice")
        self.assertEqual(self.enroll("alice", "10.99.0.7", output=self.directory / "other").code, 0)

    def test_damaged_list(self) -> None:
        """A revocation list that no service would read ends the command before a certificate is issued."""
        (self.ca / "crl.pem").write_bytes(b"garbage")
        before = self.files()
        self.refused(self.enroll("alice", "10.99.0.7"), "crl.pem: found something that is not")
        self.assertEqual(self.files(), before)

    def test_bad_templates(self) -> None:
        """What a template must not have, or lacks, is told with its line, and no certificate is issued."""
        for content, fault in (
            ("[TUNNEL]\nTunnel1 = dog\n", ":2: error: Tunnel1: found 'dog'"),
            (TEMPLATE + "[IDENTITY]\n", ":8: error: found [IDENTITY], expected none"),
            (TEMPLATE + "[AUTHORITIES]\n", ":8: error: found [AUTHORITIES], expected none"),
            (
                TEMPLATE.replace("Heartb", "Mechanism = noise\nHeartb"),
                ":3: error: found another",
            ),
            (TEMPLATE + "[DEVICE]\nInnerAddress = 10.99.0.8\n", ":9: error: found InnerAddress, expected"),
            ("[LAN]\nNetworks = 10.0.0.0/8\n", ":1: error: found no entry in [TUNNEL]"),
        ):
            self.template.write_text(content)
            before = self.files()
            self.refused(self.enroll("alice", "10.99.0.7"), f"client.policy{fault}")
            self.assertEqual(self.files(), before)
        self.template.unlink()
        self.refused(self.enroll("alice", "10.99.0.7"), "cannot read this file")

    def test_other_template(self) -> None:
        """`--template` names another one; the file is NAME.rvpn in this directory if nothing else is said."""
        other = self.directory / "other.policy"
        self.template.rename(other)
        self.assertEqual(self.enroll("alice", "10.99.0.7", template=other).code, 0)
        self.assertIn("(default: NAME.rvpn)", rvpn("enroll", "--help").out)
