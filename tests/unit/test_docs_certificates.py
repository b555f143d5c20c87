"""docs/certificates.md can be followed word by word."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from rvpn.cli import passphrase
from rvpn.constants import AUTHORITY_LIFETIME, NODE_LIFETIME, Role
from rvpn.keyexchange import certificates
from rvpn.pki import keys
from rvpn.pki.description import SOON
from tests.unit.commands import rvpn
from tests.unit.test_docs import read, section, table

PAGE = "docs/certificates.md"


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language in a text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class PageTests(SynchronousTestCase):
    """The commands of the page, in a directory of their own."""

    def setUp(self) -> None:
        """Go there; the passphrase is known and costs no time."""
        directory = self.mktemp()
        Path(directory).mkdir()
        self.addCleanup(os.chdir, Path.cwd())
        os.chdir(directory)
        self.patch(keys, "SCRYPT_COST", (2, 1, 1))
        self.patch(passphrase, "get", lambda *_, **__: b"correct horse")

    def follow(self, title: str) -> list[str]:
        """Run the commands of a section; return what each printed."""
        printed = []
        for line in "".join(blocks(section(PAGE, title), "sh")).splitlines():
            program, *words = shlex.split(line)
            outcome = rvpn(*words)
            self.assertEqual((program, outcome.code, outcome.err), ("rvpn", 0, ""), line)
            printed.append(outcome.out)
        return printed

    def test_from_nothing(self) -> None:
        """Gateways and client get policies without a fault; then they are shown, renewed and revoked."""
        gateway, template = blocks(read(PAGE), "ini")
        Path("gateway.policy").write_text(gateway)
        Path("pki").mkdir()
        text = section(PAGE, "From nothing to three gateways and a client")
        (first, second) = blocks(text, "sh")
        for line in first.splitlines():
            self.assertEqual(rvpn(*shlex.split(line)[1:]).code, 0, line)
        Path("pki/client.policy").write_text(template)
        self.assertEqual(rvpn(*shlex.split(second)[1:]).code, 0)
        for name in ("ca.pem", "crl.pem"):
            shutil.copy(f"pki/{name}", name)
        checked = rvpn("policy", "check", "gateway.policy", "alice.rvpn")
        self.assertEqual(checked.out, "2 files: 0 errors, 0 warnings\n")
        (shown,) = self.follow("What there is")
        example = blocks(section(PAGE, "What there is"), "text")[0]
        columns = [[line.split()[:2] for line in text.splitlines()[2:]] for text in (shown, example)]
        self.assertEqual(columns[0], columns[1])
        before = Path("gw1.pem").read_bytes()
        self.follow("Renewal and expiry")
        self.assertNotEqual(Path("gw1.pem").read_bytes(), before)
        self.assertIn("revoked 2 certificates", self.follow("Revocation")[0])

    def test_both_roles_are_started(self) -> None:
        """The page goes on to `rvpn status` only after gateways and client were started."""
        text = section(PAGE, "From nothing to three gateways and a client")
        started = [text.index(f"twistd rvpn-{role.value} --policy") for role in (Role.GATEWAY, Role.CLIENT)]
        self.assertLess(max(started), text.index("`rvpn status`"))

    def test_openssl(self) -> None:
        """What the openssl commands make is a gateway's certificate."""
        (commands,) = blocks(section(PAGE, "openssl"), "sh")
        ca = "openssl req -x509 -newkey ed25519 -noenc -keyout ca.key -out ca.pem -subj /CN=example-ca"
        subprocess.run(["sh", "-ec", f"{ca}\n{commands}"], check=True, capture_output=True, timeout=20)
        certificate = x509.load_pem_x509_certificate(Path("gw1.pem").read_bytes())
        certificates.check_own(certificate, Role.GATEWAY)
        certificates.check_gateway(certificate, "gw1.example.org")
        certificates.check_authority(x509.load_pem_x509_certificate(Path("ca.pem").read_bytes()))

    if not shutil.which("openssl"):
        test_openssl.skip = "no openssl command"  # type: ignore[attr-defined]  # trial's way to skip

    def test_lifetimes(self) -> None:
        """The table of lifetimes is that of the code."""
        rows = {row[0]: row[1] for row in table(section(PAGE, "Renewal and expiry"), "certificate")}
        self.assertEqual(rows["authority"], f"{AUTHORITY_LIFETIME // 365} years")
        self.assertEqual(rows["gateway, client"], f"{NODE_LIFETIME} days")
        self.assertIn(f"that {SOON.days} days before", section(PAGE, "Renewal and expiry"))

    def test_limits(self) -> None:
        """So are the limits of a client's certificate, and of RSA keys."""
        rows = {row[0]: row[3] for row in table(section(PAGE, "What is in a certificate"), "part")}
        self.assertEqual(
            rows["subject alternative names"], f"inner IP addresses, at most {certificates.MAX_ADDRESSES}"
        )
        self.assertIn(f"RSA keys of at least {certificates.RSA_BITS} bits", read(PAGE))
