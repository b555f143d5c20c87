"""`rvpn pki`: what it makes, what it says, and one line for every mistake."""

import getpass
import json
import os
import pty
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.cli import passphrase
from rvpn.errors import LocalError
from tests.certificates import CLIENT_USAGE, GATEWAY_USAGE, Authority
from tests.unit.commands import NOW, CommandTestCase, rvpn


class IssueTests(CommandTestCase):
    """`init`, `gateway`, `client`, `revoke`."""

    def test_init(self) -> None:
        """Says what lies where; a second one touches nothing and asks for no passphrase."""
        self.assertEqual((self.made.code, self.made.err), (0, ""))
        self.assertRegex(self.made.out, r"\Arvpn-ca-2026-11-23-[0-9a-f]{6}: an authority in")
        other = self.rvpn("pki", "init", ca=f"{self.directory}/other", days=1).out
        self.assertIn(", valid for 1 day\n", other)
        self.assertNotEqual(other.split(":")[0], self.made.out.split(":")[0])
        before = self.files()
        self.secret.unlink()
        self.refused(self.rvpn("pki", "init"), "exists already and is left as it is")
        del before["passphrase"]
        self.assertEqual(self.files(), before)

    def test_gateway(self) -> None:
        """Key and certificate for their owner alone, and the lines for the policy."""
        outcome = self.rvpn("pki", "gateway", "gw1", "192.0.2.1", "gw1.example.org")
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        for line in (
            "gateway gw1: certificate for 192.0.2.1 gw1.example.org, valid until 2027-12-28",
            "Certificate = gw1.pem",
            "CertificateKey = gw1.key",
            "Revoked = crl.pem",
        ):
            self.assertIn(f"{line}\n", f"{outcome.out}")
        for name in ("gw1.pem", "gw1.key"):
            self.assertEqual((self.directory / name).stat().st_mode & 0o777, 0o600)
        self.assertNotIn("PRIVATE", outcome.out)

    def test_gateway_by_name(self) -> None:
        """Clients expect the address of a gateway in its certificate: for want of one they need a line."""
        line = "192.0.2.1 = tls gw1.example.org "
        self.assertIn(line, self.rvpn("pki", "gateway", "gw1", "gw1.example.org").out)
        both = self.rvpn("pki", "gateway", "gw2", "192.0.2.2", "gw2.example.org")
        self.assertNotIn("[PEERS]", both.out)

    def test_client(self) -> None:
        """The lines for a client's policy have its inner addresses."""
        outcome = self.rvpn("pki", "client", "alice", "10.99.0.7", "fd00::7")
        self.assertEqual(outcome.code, 0)
        self.assertIn("InnerAddress = 10.99.0.7 fd00::7\n", outcome.out)
        self.assertIn("Revoked = crl.pem\n", outcome.out)
        self.assertIn(f"{self.ca}/ca.pem {self.ca}/crl.pem\n", outcome.out)

    def test_key_leaves_no_trace(self) -> None:
        """The secret key of a node is in its file alone."""
        self.rvpn("pki", "client", "alice", "10.99.0.7")
        files = self.files()
        secret = files.pop("alice.key").splitlines()[1]
        self.assertEqual([name for name, content in files.items() if secret in content], [])

    def test_existing_files(self) -> None:
        """A file that is in the way stays, nothing is issued, and no passphrase is asked for."""
        (self.directory / "gw1.key").write_bytes(b"precious")
        before = self.files()
        outcome = self.rvpn("pki", "gateway", "gw1", "192.0.2.1", passphrase_file="/nonexistent")
        self.refused(
            outcome, "gw1.key: exists already and is left as it is; remove it, or choose another --out"
        )
        self.assertEqual(self.files(), before)

    def test_no_place(self) -> None:
        """A certificate that cannot be put down is not issued."""
        before = self.files()
        outcome = self.rvpn("pki", "gateway", "gw1", "192.0.2.1", out=f"{self.directory}/nowhere")
        self.refused(outcome, "cannot create this file")
        self.assertEqual(self.files(), before)

    def test_renew(self) -> None:
        """A renewal replaces both files, and needs no addresses."""
        self.rvpn("pki", "client", "alice", "10.99.0.7")
        before = self.files()
        self.refused(self.rvpn("pki", "client", "alice", "10.99.0.7"), "--renew makes another")
        self.now += timedelta(days=365)
        self.assertIn("valid until 2028-12-27", self.rvpn("pki", "client", "--renew", "alice").out)
        changed = {name for name, content in self.files().items() if before[name] != content}
        self.assertEqual(changed, {"alice.key", "alice.pem", "pki/index.csv"})

    def test_kinds(self) -> None:
        """`--key` says which kind of key, `--days` how long the certificate holds."""
        self.rvpn("pki", "client", "alice", "10.99.0.7", key="p256", days=9)
        shown = json.loads(self.rvpn("pki", "show", "--json", str(self.directory / "alice.pem")).out)
        self.assertEqual((shown["key"], shown["expires"]), ("P-256", "2026-12-02T12:00:00+00:00"))

    def test_revoke(self) -> None:
        """Revoking names what there is to do next; without a name the list is only new."""
        self.rvpn("pki", "gateway", "gw1", "192.0.2.1")
        outcome = self.rvpn("pki", "revoke", "gw1")
        self.assertIn(f"revoked 1 certificate; copy {self.ca}/crl.pem to the gateways", outcome.out)
        self.refused(self.rvpn("pki", "revoke", "gw1"), "gw1 has no certificate that is valid")
        self.assertIn(f"wrote the list anew; copy {self.ca}/crl.pem", self.rvpn("pki", "revoke").out)

    def test_mistakes(self) -> None:
        """Whatever is wrong with names, addresses or places is one line, and changes nothing."""
        before = self.files()
        for words, fault in (
            (("gateway", "a/b", "192.0.2.1"), "found name 'a/b'"),
            (("gateway", "gw1", "192.0.2.300"), "or a DNS name"),
            (("gateway", "gw1"), "no addresses or DNS names"),
            (("client", "alice", "alice.example.org"), "address of one machine"),
            (("client", "--renew", "alice"), "no certificate that could be renewed"),
            (("revoke", "alice"), "alice has no certificate"),
            (("show", f"{self.directory}/passphrase"), "found no certificate"),
            (("show", "/nonexistent"), "cannot read this certificate"),
        ):
            self.refused(self.rvpn("pki", *words), fault)
        self.assertEqual(self.files(), before)
        elsewhere = rvpn("pki", "show", "--ca", str(self.directory))
        self.refused(elsewhere, "make one with: rvpn pki init --ca")

    def test_wrong_arguments(self) -> None:
        """Arguments that cannot be right end with exit code 2 before anything is looked at."""
        for words in (
            ("gateway", "--days", "0", "gw1"),
            ("client", "--days", "x", "a"),
            ("init", "--key", "dsa"),
            ("init", "--name", ""),
        ):
            self.assertEqual(rvpn("pki", *words).code, 2)

    def test_help(self) -> None:
        """Each command explains itself."""
        for command in ("init", "gateway", "client", "revoke", "show"):
            self.assertIn("--ca DIR", rvpn("pki", command, "--help").out)


class ShowTests(CommandTestCase):
    """`show`: the whole authority, or one certificate of anybody's."""

    def setUp(self) -> None:
        """Issue two and revoke one."""
        super().setUp()
        self.rvpn("pki", "gateway", "gw1", "192.0.2.1")
        self.rvpn("pki", "client", "alice", "10.99.0.7")
        self.rvpn("pki", "revoke", "alice")

    def test_list(self) -> None:
        """A line for each certificate, and no passphrase is needed."""
        lines = self.rvpn("pki", "show").out.splitlines()
        self.assertRegex(lines[0], r"pki: rvpn-ca-2026-11-23-[0-9a-f]{6}, Ed25519, until 2036-11-20, valid\Z")
        self.assertRegex(lines[3], r"\Agateway +gw1 +192\.0\.2\.1 +2027-12-28 +valid +[0-9A-F]{38,40}\Z")
        self.assertRegex(
            lines[4], r"\Aclient +alice +10\.99\.0\.7 +2027-12-28 +revoked 2026-11-23 +[0-9A-F]+\Z"
        )

    def test_list_is_behind(self) -> None:
        """A revocation that did not get into the list, and a list that is none, are told."""
        path = self.ca / "crl.pem"
        self.rvpn("pki", "revoke")
        listed = path.read_bytes()
        self.rvpn("pki", "revoke", "gw1")
        path.write_bytes(listed)
        self.assertIn(" revoked 2026-11-23, not in the list ", self.rvpn("pki", "show").out.splitlines()[3])
        self.assertEqual(self.rvpn("pki", "revoke", "gw1").code, 0)
        self.assertNotIn("not in the list", self.rvpn("pki", "show").out)
        path.write_bytes(b"garbage")
        self.refused(self.rvpn("pki", "show"), f"{path}: found something that is not this authority's")

    def test_expiry(self) -> None:
        """What expires soon says so, and what has expired too."""
        for days, state in (
            (364, "valid"),
            (366, "expires in 34 days"),
            (398.5, "expires in 1 day"),
            (399.5, "expires within a day"),
            (401, "expired"),
        ):
            self.now = NOW + timedelta(days=days)
            self.assertIn(f" {state} ", self.rvpn("pki", "show").out.splitlines()[3])

    def test_json(self) -> None:
        """`--json` has the same for programs."""
        shown = json.loads(self.rvpn("pki", "show", "--json").out)
        self.assertEqual([entry["name"] for entry in shown["certificates"]], ["gw1", "alice"])
        self.assertEqual(shown["certificates"][1]["revoked"], "2026-11-23T12:00:00+00:00")
        self.assertEqual((shown["authority"]["role"], shown["revocations"]["revoked"]), ("authority", 1))

    def test_one(self) -> None:
        """One certificate, whether rvpn issued it or not, is told field by field."""
        out = self.rvpn("pki", "show", str(self.directory / "gw1.pem")).out
        self.assertRegex(out, r"role: +gateway\nname: +gw1\nalternatives: +192\.0\.2\.1\nkey: +Ed25519\n")
        self.assertIn("authority", self.rvpn("pki", "show", str(self.ca / "ca.pem")).out)
        self.assertNotIn("fault", out)

    def test_fault(self) -> None:
        """A certificate of no use to rvpn says why, for both roles at once, and for neither."""
        file = self.directory / "other.pem"
        for usages, fault in (
            ((GATEWAY_USAGE, CLIENT_USAGE), "found extended key usage clientAuth and serverAuth"),
            ((), "found extended key usage of neither kind, expected serverAuth alone"),
        ):
            file.write_bytes(Authority().issue("gw1", names=["192.0.2.1"], usages=usages).pem)
            shown = self.rvpn("pki", "show", str(file)).out
            self.assertIn(f"fault:        certificate 'gw1': {fault}", shown)


class PassphraseTests(CommandTestCase):
    """Where the passphrase comes from: a file, a descriptor, the terminal."""

    def test_bad_files(self) -> None:
        """A file that others can read, or that holds none, is refused; a wrong passphrase too."""
        before = self.files()
        for content, mode, fault in (
            (b"correct horse\n", 0o640, "others can read this passphrase"),
            (b"\nx\n", 0o600, "found an empty or overlong line"),
            (b"x" * 2000, 0o600, "found an empty or overlong line"),
            (b"\xff\n", 0o600, "found no UTF-8 text"),
            (b"wrong horse\n", 0o600, "this is not the passphrase of this key"),
        ):
            self.secret.write_bytes(content)
            self.secret.chmod(mode)
            outcome = self.rvpn("pki", "client", "alice", "10.99.0.7")
            self.refused(outcome, fault)
            self.assertNotIn("horse", outcome.err)
        self.secret.write_bytes(before["passphrase"])
        self.assertEqual(self.files(), before)

    def test_too_short(self) -> None:
        """A new passphrase has to have 8 characters; there is no authority before it has."""
        self.secret.write_text("horse\n")
        self.refused(self.rvpn("pki", "init", ca=f"{self.directory}/other"), "expected at least 8")
        self.assertFalse((self.directory / "other").exists())

    def test_descriptor(self) -> None:
        """A pipe will do, by its descriptor."""
        reader, writer = os.pipe()
        os.write(writer, b"correct horse\n")
        os.close(writer)
        self.addCleanup(os.close, reader)
        outcome = self.rvpn("pki", "client", "alice", "10.99.0.7", passphrase_file=f"/dev/fd/{reader}")
        self.assertEqual(outcome.code, 0)

    def test_terminal(self) -> None:
        """A new passphrase is asked for twice, and the two have to be the same."""
        self.patch(os, "open", lambda *_: os.dup(0))
        said = ["correct horse", "correct house"]
        self.patch(getpass, "getpass", lambda _: said.pop(0))
        error = self.assertRaises(LocalError, passphrase.get, None, Path("pki"), new=True)
        self.assertIn("the two passphrases differ", str(error))
        said += ["correct horse"] * 2
        self.assertEqual(passphrase.get(None, Path("pki"), new=True), b"correct horse")

    def test_real_terminal(self) -> None:
        """On a real terminal the passphrase is not echoed."""
        child, terminal = pty.fork()
        if child == 0:
            words = ["pki", "revoke", "--ca", str(self.ca)]
            code = "import sys; from rvpn.pki import keys; keys.SCRYPT_COST = (2, 1, 1); "
            code += "from rvpn.cli import main; sys.exit(main(sys.argv[1:]))"
            os.execv(sys.executable, [sys.executable, "-c", code, *words])
        seen = b""
        while b": " not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, b"correct horse\n")
        try:
            while part := os.read(terminal, 4096):
                seen += part
        except OSError:  # how a terminal ends
            pass
        os.close(terminal)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertIn(b"Passphrase of ", seen)
        self.assertNotIn(b"correct horse", seen)

    def test_no_terminal(self) -> None:
        """Without a terminal the way out is named, at once."""
        ended = subprocess.run(
            [sys.executable, "-m", "rvpn", "pki", "revoke", "--ca", str(self.ca)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        self.assertEqual(ended.returncode, 1)
        self.assertRegex(
            ended.stderr, r"\Arvpn: error: there is no terminal [^\n]*--passphrase-file[^\n]*\n\Z"
        )


class WeightTests(SynchronousTestCase):
    """The other commands, and the services, wait for none of this."""

    def test_imports(self) -> None:
        """Neither another command nor the services import what issues certificates."""
        code = (
            "import sys; from rvpn.cli import main; main(['pubkey', '/nonexistent']); import rvpn.tap; "
            "import rvpn.service.client, rvpn.service.gateway; "
            "sys.exit(any(name.startswith('rvpn.pki') for name in sys.modules))"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", code], capture_output=True).returncode, 0)
