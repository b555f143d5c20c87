"""`certificatefiles`: what a policy names of certificates, and all that can be wrong with the files."""

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from rvpn.cli import policy
from rvpn.constants import Mechanism, Role
from rvpn.errors import LocalError
from rvpn.files import certificatefiles, keyfile
from rvpn.files.certificatefiles import FileFault
from rvpn.keyexchange.authenticator import CertificateAuthenticator
from rvpn.policy import Severity, load
from rvpn.service import certificates, configuration
from rvpn.service.certificates import FILES_INTERVAL, CertificateWatch
from tests.certificates import CLIENT_USAGE, DAY, TODAY, Authority, Issued, authenticator, rsa_key
from tests.unit.commands import rvpn

POLICY = """\
[IDENTITY]
Certificate = own.pem
CertificateKey = own.key
[AUTHORITIES]
Authority1 = ca.pem 10.99.0.0/24
Authority7 = other.pem
Revoked = crl.pem
[LAN]
Networks = 10.0.0.0/8
"""


class FilesTestCase(SynchronousTestCase):
    """A directory with a gateway's policy and all the files that it names."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.ca, self.other = Authority(), Authority("Other CA")
        self.issued, self.gone = self.ca.gateway(), self.ca.client()
        self.write("own.key", self.issued.key_pem)
        self.write("own.pem", self.issued.pem)
        self.write("ca.pem", self.ca.pem)
        self.write("other.pem", self.other.pem)
        self.revoke(self.gone)
        self.write("node.policy", POLICY.encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file that only its owner may read."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_bytes(content)

    def revoke(self, *certificates: Issued, by: Authority | None = None) -> None:
        """Write the revocation list."""
        self.write("crl.pem", (by or self.ca).revocation(*certificates).public_bytes(Encoding.PEM))

    def load(self, role: Role = Role.GATEWAY) -> CertificateAuthenticator:
        """Read all files."""
        return certificatefiles.load(load(POLICY, "node.policy"), self.directory, role)


class LoadTests(FilesTestCase):
    """`load`."""

    def test_all(self) -> None:
        """Certificate, key, authorities with their ranges, and what they revoked."""
        files = self.load().files
        first, second = files.authorities
        self.assertEqual((files.certificate, files.role), (self.issued.certificate, Role.GATEWAY))
        self.assertEqual((first.label, first.name), ("Authority1", "Test CA"))
        self.assertEqual([str(network) for network in first.networks], ["10.99.0.0/24"])
        self.assertEqual(first.revoked, {self.gone.certificate.serial_number})
        self.assertEqual((second.label, second.networks, second.revoked), ("Authority7", (), frozenset()))
        self.assertEqual(first.list_ends_at, TODAY + DAY)

    def fault(self, statement: str, words: str, role: Role = Role.GATEWAY) -> None:
        """Assert that a file is refused, in one line that names it, at the statement that names it."""
        error = self.assertRaises(FileFault, self.load, role)
        self.assertEqual(error.statement, statement)
        self.assertTrue(str(error).startswith(f"{self.directory}/"), error)
        self.assertIn(words, str(error))
        self.assertNotIn("\n", str(error))

    def test_own(self) -> None:
        """The own certificate has to be one of this role, with a key that is its own and a secret."""
        self.fault(
            "Certificate", "own.pem: certificate 'gw1': found extended key usage serverAuth", Role.CLIENT
        )
        for content, words in (
            (b"rubbish", "own.pem: found something else, expected a certificate in PEM"),
            (
                self.ca.gateway(key=rsa_key(2048)).pem,
                "own.pem: found an RSA key of 2048 bits, expected Ed25519",
            ),
            (self.ca.gateway().pem, "own.key: found a key that is not the certificate's, expected its"),
        ):
            self.write("own.pem", content)
            self.fault("CertificateKey" if "own.key" in words else "Certificate", words)
        (self.directory / "own.pem").unlink()
        self.fault("Certificate", "own.pem: cannot read this file: No such file or directory")
        os.mkfifo(self.directory / "own.pem")
        self.fault("Certificate", "own.pem: found something that is not a regular file")

    def test_key(self) -> None:
        """A key is in PEM, not encrypted, and nobody else may read it."""
        encrypted = self.issued.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        self.write("own.key", encrypted)
        self.fault("CertificateKey", "own.key: found an encrypted key, expected one that a service can read")
        self.write("own.key", b"rubbish")
        self.fault("CertificateKey", "own.key: found something else, expected a private key in PEM")
        self.write("own.key", self.issued.key_pem)
        (self.directory / "own.key").chmod(0o640)
        self.fault("CertificateKey", "own.key: found mode 0640, expected 0600")

    def test_authorities(self) -> None:
        """An authority is a certificate that may issue others, and strong."""
        for own, words in (
            (self.issued, "found a certificate that may not issue others, expected that of an authority"),
            (Authority(key=rsa_key(2048)), "found an RSA key of 2048 bits"),
            (Authority(""), "found an authority without a common name"),
            (
                Authority("Other", critical=STRANGE),
                "found the critical extension 1.2.3.4, expected none that",
            ),
            (
                Authority("Other", usages=[CLIENT_USAGE]),
                "found an extended key usage without serverAuth, expected none, or one with both",
            ),
        ):
            self.write("other.pem", own.pem)
            self.fault("Authority7", f"other.pem: {words}")

    def test_authorities_of_one_name(self) -> None:
        """Two authorities have two names, which tell their clients apart; and none is there twice."""
        self.write("other.pem", Authority("Test CA").pem)
        self.fault("Authority7", "other.pem: found an authority with the name of Authority1, 'Test CA', exp")
        self.write("other.pem", self.ca.pem)
        self.fault("Authority7", "other.pem: found the authority of Authority1 again, expected each one once")

    def test_lists(self) -> None:
        """A list that no authority of the policy signed would be of no effect, and is refused."""
        self.revoke(by=Authority("Test CA"))
        self.fault("Revoked", "crl.pem: found a revocation list with the name of authority 'Test CA' that")
        self.revoke(by=Authority("Third CA"))
        self.fault("Revoked", "crl.pem: found a revocation list that 'Third CA' is said to have signed")
        self.write("crl.pem", b"")
        self.fault("Revoked", "crl.pem: found an empty file")
        self.write("crl.pem", self.ca.pem)
        self.fault("Revoked", "crl.pem: found something else, expected a revocation list in PEM")

    def test_several_lists(self) -> None:
        """Each list in a file counts, and a damaged one is not passed over."""
        first, second = (
            ca.revocation(ca.client()).public_bytes(Encoding.PEM) for ca in (self.ca, self.other)
        )
        self.write("crl.pem", b"of two authorities\n" + first + b"\n" + second)
        self.assertTrue(all(authority.revoked for authority in self.load().files.authorities))
        self.write("crl.pem", first + second.replace(b"\nMI", b"\nXX"))
        self.fault("Revoked", "crl.pem: found something else, expected a revocation list in PEM")

    def test_inline(self) -> None:
        """What stands in the policy itself is read as a file would be, and its faults name the statement."""
        key = self.issued.key_pem.decode()
        text = POLICY.replace("CertificateKey = own.key\n", f"CertificateKey =\n{key}")
        self.assertNotEqual(text, POLICY)
        (self.directory / "own.key").unlink()
        policy = load(text, "node.policy")
        self.assertNotIn(self.directory / "own.key", configuration.certificate_files(policy, self.directory))
        certificatefiles.load(policy, self.directory, Role.GATEWAY)
        other = load(text.replace(key, self.gone.key_pem.decode()), "node.policy")
        fault = self.assertRaises(
            certificatefiles.FileFault, certificatefiles.load, other, self.directory, Role.GATEWAY
        )
        self.assertEqual(fault.statement, "CertificateKey")
        self.assertIn("the PEM below CertificateKey: found a key that is not the certificate's", str(fault))

    def test_check(self) -> None:
        """`rvpn policy check` reports each such file at its line, as an error: the services refuse it."""
        file = self.directory / "node.policy"
        before = policy._diagnose(str(file))
        self.assertEqual({diagnostic.severity for diagnostic in before}, {Severity.WARNING})
        self.write("own.pem", self.ca.client().pem)
        self.write("own.key", b"rubbish")
        self.write("crl.pem", b"rubbish")
        (self.directory / "other.pem").unlink()
        found = [str(diagnostic) for diagnostic in policy._diagnose(str(file)) if diagnostic not in before]
        expected = ((2, "own.pem"), (3, "own.key"), (6, "other.pem"), (7, "crl.pem"))
        self.assertEqual(len(found), len(expected), found)
        for text, (line, name) in zip(found, expected, strict=True):
            self.assertTrue(text.startswith(f"{file}:{line}: error: {self.directory}/{name}: "), text)
        self.assertEqual(rvpn("policy", "check", str(file)).code, 1)

    def test_check_of_lists(self) -> None:
        """An authority without a revocation list is warned of at its line, and that alone is no error."""
        file = str(self.directory / "node.policy")
        found = [d for d in policy._diagnose(file) if "revocation" in str(d)]
        self.assertEqual([d.line for d in found], [6])
        self.assertIn("warning: no revocation list of Authority7, 'Other CA', is in Revoked", str(found[0]))
        self.assertEqual(rvpn("policy", "check", file).code, 0)
        both = [ca.revocation().public_bytes(Encoding.PEM) for ca in (self.ca, self.other)]
        self.write("crl.pem", b"".join(both))
        self.assertNotIn("revocation", rvpn("policy", "check", file).out)

    def test_unread_authority(self) -> None:
        """A list of an authority that could not be read is no second fault."""
        self.write("ca.pem", b"rubbish")
        self.fault("Authority1", "ca.pem: found something else")
        found = certificatefiles.inspect(load(POLICY, "f"), self.directory, Role.GATEWAY)[1]
        self.assertEqual([fault.statement for fault in found], ["Authority1"])

    def test_check_of_client(self) -> None:
        """A client whose policy has an inner address that its certificate lacks is warned of that."""
        self.write("own.pem", self.gone.pem)
        self.write("own.key", self.gone.key_pem)
        more = "[TUNNEL]\nTunnel1 = 10.0.0.0/8 192.0.2.1\n[DEVICE]\nInnerAddress = 10.99.0.1 10.99.0.5\n"
        lan = POLICY.index("[LAN]")
        self.write("node.policy", (POLICY[:lan] + "[GENERAL]\nMechanism = tls\n" + more).encode())
        (found,) = (
            diagnostic
            for diagnostic in policy._diagnose(str(self.directory / "node.policy"))
            if "InnerAddress" in str(diagnostic)
        )
        self.assertIn(":13: warning: InnerAddress 10.99.0.5 is not in the certificate", str(found))


class ConfigurationTests(FilesTestCase):
    """What a service makes of them."""

    def test_mechanisms(self) -> None:
        """A node without certificates offers none, and never imports what they need."""
        credentials = configuration.read(self.directory / "node.policy", Role.GATEWAY).credentials
        self.assertEqual(credentials.mechanisms, (Mechanism.TLS,))
        self.assertNotIn("private", repr(credentials))

    def test_fixed(self) -> None:
        """Whether there are certificates takes a restart to change; what is in them does not."""
        file = self.directory / "node.policy"
        before = configuration.read(file, Role.GATEWAY)
        renewed = self.ca.gateway()
        self.write("own.pem", renewed.pem)
        self.write("own.key", renewed.key_pem)
        self.assertEqual(before.fixed_but_changed(configuration.read(file, Role.GATEWAY)), [])

    def test_files(self) -> None:
        """All of the files are watched."""
        found = configuration.certificate_files(load(POLICY, "node.policy"), self.directory)
        self.assertEqual(
            sorted(path.name for path in found), ["ca.pem", "crl.pem", "other.pem", "own.key", "own.pem"]
        )


class WatchTests(FilesTestCase):
    """`CertificateWatch`."""

    def setUp(self) -> None:
        """Watch the files, at a time of day that the test sets."""
        super().setUp()
        self.now, self.own = TODAY, self.load()
        self.changes: list[str] = []
        self.faulty = False
        self.patch(certificates, "time", lambda: self.now)
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.clock = Clock()
        files = configuration.certificate_files(load(POLICY, "node.policy"), self.directory)
        watch = CertificateWatch(lambda: files, lambda: self.own, self.changed, self.clock)
        self.addCleanup(watch.close)

    def changed(self, files: Collection[Path]) -> bool:
        """Note what has changed."""
        self.changes.append(certificates.named(files, self.directory))
        return not self.faulty

    def told(self) -> list[str]:
        """Return what was logged since the last call."""
        found = [event["log_format"].format(**event) for event in self.events if "what" in event]
        self.events.clear()
        return found

    def test_change(self) -> None:
        """Each change of a file is seen once: a new one, a removed one, one that is back."""
        for name, act in (
            ("crl.pem", lambda: self.revoke(self.gone, self.issued)),
            ("crl.pem", lambda: (self.directory / "crl.pem").unlink()),
            ("crl.pem", lambda: self.revoke()),
            ("own.pem", lambda: self.write("own.pem", self.ca.gateway().pem)),
        ):
            self.changes.clear()
            act()
            self.clock.pump([FILES_INTERVAL] * 3)
            self.assertEqual(self.changes, [name])

    def test_not_taken(self) -> None:
        """What changed while a file was faulty is named again when all are taken."""
        renewed = self.ca.gateway()
        for faulty, name, content in (
            (True, "own.pem", renewed.pem),
            (False, "own.key", renewed.key_pem),
            (False, "ca.pem", self.ca.pem),
        ):
            self.faulty = faulty
            self.write(name, content)
            self.clock.advance(FILES_INTERVAL)
        self.assertEqual(self.changes, ["own.pem", "own.key, own.pem", "ca.pem"])

    def test_named(self) -> None:
        """Files are named as the policy does: those elsewhere by their whole path."""
        files = [self.directory / "pki" / "ca.pem", Path("/etc/ssl/other.pem")]
        self.assertEqual(certificates.named(files, self.directory), "/etc/ssl/other.pem, pki/ca.pem")

    def test_ends(self) -> None:
        """Once a day, and when a file has changed, the log tells what is at its end."""
        soon = [f"{what} expires on 2023-11-15 22:13:20 UTC" for what in self.own.ends]
        self.assertEqual(len(soon), 4)
        self.assertEqual(self.told(), soon)
        self.clock.pump([FILES_INTERVAL] * 3)
        self.assertEqual(self.told(), [])
        self.now += 1.5 * DAY
        self.clock.advance(FILES_INTERVAL)
        self.assertEqual(self.told(), [line.replace("expires", "expired") for line in soon])
        self.now, self.own = TODAY, authenticator(Role.GATEWAY, self.ca.gateway(end=TODAY + 15 * DAY))
        self.revoke()
        self.clock.advance(FILES_INTERVAL)
        self.assertEqual(self.told(), [], "two weeks are not soon")

    def test_end(self) -> None:
        """What expires is told of at once, however fresh the warning before it."""
        self.now += DAY - 1
        self.revoke()
        self.clock.advance(FILES_INTERVAL)
        self.assertIn("expires", self.told()[0])
        for later, lines in (1, 0), (1, 4), (1, 0):
            self.now += later
            self.clock.advance(FILES_INTERVAL)
            told = self.told()
            self.assertEqual(len(told), lines)
            self.assertTrue(all("expired on" in line for line in told))


#: An extension that nobody knows.
STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
#: Revocation lists, and none.
TWO: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([{"number": 5}], [])


class SuccessionTests(FilesTestCase):
    """`check_lists`: a revocation list gives way to newer ones alone."""

    def read(self, *lists: dict[str, Any]) -> CertificateAuthenticator:
        """Return what is read with these lists."""
        made = [self.ca.revocation(self.gone, **more) for more in lists] + [self.other.revocation()]
        self.write("crl.pem", b"".join(crl.public_bytes(Encoding.PEM) for crl in made))
        return self.load()

    def test_newer(self) -> None:
        """By its number, and where one has none by its date."""
        five, undated = {"number": 5, "start": TODAY}, {"start": TODAY}
        for before, after, words in (
            (five, five, ""),
            (five, {"number": 6, "start": TODAY - DAY}, ""),
            (
                five,
                {"number": 4, "start": TODAY + 1, "end": TODAY + 2},
                "found list 4 of authority 'Test CA'",
            ),
            (five, undated, ""),
            (undated, {"number": 7, "start": TODAY - DAY}, "found list 7 of authority 'Test CA'"),
            (five, None, "found no revocation list of authority 'Test CA', expected list 5 of authority"),
        ):
            old, new = self.read(before), self.read(*([after] if after is not None else []))
            if words:
                error = self.assertRaises(LocalError, certificates.check_lists, old, new)
                self.assertIn(words, str(error))
            else:
                certificates.check_lists(old, new)

    def test_first(self) -> None:
        """The first list is none that goes back, nor is a list of an authority that is new."""
        certificates.check_lists(self.read(), self.read({"number": 1}))
        certificates.check_lists(None, self.read({"number": 1}))

    def test_words(self) -> None:
        """The log says of each authority what is in force."""
        (told, _), (none, _) = (map(certificates.in_words, self.read(*lists).lists.values()) for lists in TWO)
        expected = "list 5 of authority 'Test CA' of 2023-11-13 22:13:20 UTC, until 2023-11-15 22:13:20 UTC"
        self.assertEqual(
            (told, none), (f"{expected}: 1 revoked", "no revocation list of authority 'Test CA'")
        )


class ImportTests(FilesTestCase):
    """A node without certificates."""

    def test_spared(self) -> None:
        """It imports nothing of the mechanism `tls`, and so needs no memory for it."""
        keyfile.create(str(self.directory / "noise.key"))
        self.write("noise.policy", b"[IDENTITY]\nPrivateKey = noise.key\n[LAN]\nNetworks = 10.0.0.0/8\n")
        for name, imports in ("noise.policy", False), ("node.policy", True):
            program = (
                "import sys; from pathlib import Path; import rvpn.tap; from rvpn.constants import Role\n"
                "from rvpn.service import configuration\n"
                f"configuration.read(Path({str(self.directory / name)!r}), Role.GATEWAY)\n"
                "print('rvpn.keyexchange.tls' in sys.modules)"
            )
            told = subprocess.check_output([sys.executable, "-c", program], text=True, timeout=30)
            self.assertEqual(told, f"{imports}\n", name)
