"""Certificates, revocation lists and keys as `rvpn pki` makes them, and the directory that keeps them."""

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.pki import authority, index, keys
from rvpn.pki.authority import Authority, Issued, Request
from rvpn.pki.index import Entry
from rvpn.pki.keys import KeyKind
from rvpn.pki.names import checked_alternatives, checked_name

T = TypeVar("T", bound=x509.ExtensionType)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PASSPHRASE = b"correct horse"
CHEAP = (2, 1, 1)
GATEWAY = Request(Role.GATEWAY, "gw1", ("192.0.2.1", "2001:db8::1", "gw1.example.org"))
CLIENT = Request(Role.CLIENT, "alice", ("10.99.0.7",))


class AuthorityTestCase(SynchronousTestCase):
    """A test with an authority in a directory of its own, whose passphrase costs no time."""

    kind: ClassVar[KeyKind] = KeyKind.ED25519

    def setUp(self) -> None:
        """Make the authority."""
        self.patch(keys, "SCRYPT_COST", CHEAP)
        self.directory = Path(self.mktemp())
        authority.create(self.directory, "authority", PASSPHRASE, NOW, kind=self.kind)
        self.authority = self.open()

    def open(self) -> Authority:
        """Open the authority until the end of the test."""
        opened = Authority(self.directory)
        self.addCleanup(opened.close)
        return opened

    def issue(self, request: Request, now: datetime = NOW) -> Issued:
        """Issue a certificate and do nothing with it."""
        wanted = self.authority.check(replace(request, kind=self.kind), now)
        with self.authority.issuing(wanted, PASSPHRASE, now) as issued:
            return issued

    def refusal(self, request: Request, now: datetime = NOW) -> str:
        """Return the one line with which a request is refused."""
        text = str(self.assertRaises(LocalError, self.authority.check, request, now))
        self.assertNotIn("\n", text)
        return text

    def files(self) -> dict[str, bytes]:
        """Return all that the directory holds."""
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}


class CertificateTests(AuthorityTestCase):
    """What stands in a certificate."""

    def extension(self, certificate: x509.Certificate, kind: type[T]) -> x509.Extension[T]:
        """Return the extension of a kind."""
        return certificate.extensions.get_extension_for_class(kind)

    def certificate(self, issued: Issued) -> x509.Certificate:
        """Return what was issued; its key and the authority's signature are checked on the way."""
        certificate = x509.load_pem_x509_certificate(issued.certificate)
        certificate.verify_directly_issued_by(self.authority.certificate)
        key = load_pem_private_key(issued.key, None)
        self.assertEqual(key.public_key(), certificate.public_key())
        return certificate

    def test_authority(self) -> None:
        """An authority signs certificates and lists, critically, and no further authority, for ten years."""
        own = self.authority.certificate
        constraints = self.extension(own, x509.BasicConstraints)
        self.assertEqual(constraints.value, x509.BasicConstraints(ca=True, path_length=0))
        usage = self.extension(own, x509.KeyUsage)
        self.assertEqual(
            (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature),
            (True, True, False),
        )
        self.assertTrue(constraints.critical and usage.critical)
        own.verify_directly_issued_by(own)
        self.assertEqual(own.not_valid_after_utc, NOW + timedelta(days=3650))

    def test_roles(self) -> None:
        """A gateway's is for serverAuth, a client's for clientAuth; names are alternative names."""
        for request, usage in (
            (GATEWAY, ExtendedKeyUsageOID.SERVER_AUTH),
            (CLIENT, ExtendedKeyUsageOID.CLIENT_AUTH),
        ):
            certificate = self.certificate(self.issue(request))
            self.assertEqual(
                self.extension(certificate, x509.ExtendedKeyUsage).value, x509.ExtendedKeyUsage([usage])
            )
            constraints = self.extension(certificate, x509.BasicConstraints).value
            self.assertEqual(constraints, x509.BasicConstraints(ca=False, path_length=None))
            names = self.extension(certificate, x509.SubjectAlternativeName).value
            self.assertEqual(tuple(str(name.value) for name in names), request.alternatives)
            addresses = names.get_values_for_type(x509.IPAddress)
            self.assertEqual(len(addresses), sum("example" not in name for name in request.alternatives))
            self.assertEqual(certificate.subject.rfc4514_string(), f"CN={request.name}")

    def test_lifetime(self) -> None:
        """Valid an hour ago for clocks that are late, for 400 days, and no longer than the authority."""
        certificate = self.certificate(self.issue(CLIENT))
        self.assertEqual(certificate.not_valid_before_utc, NOW - timedelta(hours=1))
        self.assertEqual(certificate.not_valid_after_utc, NOW + timedelta(days=400))
        late = self.certificate(self.issue(GATEWAY, NOW + timedelta(days=3600)))
        self.assertEqual(late.not_valid_after_utc, self.authority.certificate.not_valid_after_utc)

    def test_serial_numbers(self) -> None:
        """Serial numbers differ, and are random enough that nobody guesses the next (RFC 5280: 20 octets)."""
        serials = {
            self.issue(replace(CLIENT, name=f"c{n}", alternatives=(f"10.0.0.{n + 1}",))).entry.serial
            for n in range(8)
        }
        self.assertEqual(len(serials), 8)
        self.assertGreater(max(serials).bit_length(), 100)
        self.assertLessEqual(max(serials).bit_length(), 159)

    def test_secrets_are_not_shown(self) -> None:
        """The key of a new certificate is no part of its text."""
        issued = self.issue(CLIENT)
        self.assertNotIn("PRIVATE", repr(issued))
        self.assertIn(b"PRIVATE", issued.key)


class P256Tests(CertificateTests):
    """The same with keys on P-256."""

    kind = KeyKind.P256


class OpenSSLTests(AuthorityTestCase):
    """The command openssl, which knows nothing of rvpn, agrees."""

    skip = None if shutil.which("openssl") else "no openssl command"

    def verify(self, pem: bytes, purpose: str, *more: str) -> str:
        """Return what `openssl verify` says of a certificate."""
        file = Path(self.mktemp())
        file.write_bytes(pem)
        return self.openssl(
            "verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose,
            "-attime", str(int(NOW.timestamp())), "-CAfile", str(self.directory / "ca.pem"), *more, str(file),
        )  # fmt: skip

    def openssl(self, *arguments: str) -> str:
        """Run it and return all that it prints."""
        return subprocess.run(
            ["openssl", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10
        ).stdout

    def test_verify(self) -> None:
        """Strict verification takes each certificate for its role, and for no other."""
        gateway, client = self.issue(GATEWAY).certificate, self.issue(CLIENT).certificate
        self.assertIn(": OK", self.verify(gateway, "sslserver"))
        self.assertIn(": OK", self.verify(gateway, "sslserver", "-verify_ip", "192.0.2.1"))
        self.assertIn(": OK", self.verify(gateway, "sslserver", "-verify_hostname", "gw1.example.org"))
        self.assertIn("IP address mismatch", self.verify(gateway, "sslserver", "-verify_ip", "192.0.2.2"))
        self.assertIn("unsuitable certificate purpose", self.verify(gateway, "sslclient"))
        self.assertIn(": OK", self.verify(client, "sslclient", "-verify_ip", "10.99.0.7"))
        self.assertIn("unsuitable certificate purpose", self.verify(client, "sslserver"))
        own = self.authority.certificate_pem
        self.assertIn(": OK", self.verify(own, "crlsign"))

    def test_revocation(self) -> None:
        """The list is taken as it is from the first day, and refuses who was revoked."""
        certificate = self.issue(CLIENT).certificate
        crl = ("-crl_check", "-CRLfile", str(self.directory / "crl.pem"))
        self.assertIn(": OK", self.verify(certificate, "sslclient", *crl))
        self.authority.revoke(self.authority.to_revoke(["alice"], NOW), PASSPHRASE, NOW)
        self.assertIn("certificate revoked", self.verify(certificate, "sslclient", *crl))

    def test_key(self) -> None:
        """The authority's key opens with its passphrase (at the true cost, which OpenSSL has to accept)."""
        self.patch(keys, "SCRYPT_COST", (1 << 14, 8, 5))
        file = Path(self.mktemp())
        file.write_bytes(keys.encrypted_pem(keys.generate(KeyKind.P256), PASSPHRASE))
        text = self.openssl(
            "pkey", "-in", str(file), "-passin", f"pass:{PASSPHRASE.decode()}", "-noout", "-text"
        )
        self.assertIn("NIST CURVE: P-256", text)


class OpenSSLP256Tests(OpenSSLTests):
    """The same with keys on P-256."""

    kind = KeyKind.P256


class RequestTests(AuthorityTestCase):
    """What an authority grants, before anybody is asked for the passphrase."""

    def test_names(self) -> None:
        """A name is fit for a file and a subject; those of the authority's own files are taken."""
        for name in ("alice", "gw-1.example.org", "Bob@work", "x" * 64):
            self.assertEqual(checked_name(name), name)
        for name in ("", "..", "a/b", "-x", "a b", "Ca", "crl", "ä", "x" * 65, "a\n"):
            self.assertIn("expected at most 64", str(self.assertRaises(LocalError, checked_name, name)))

    def test_alternatives(self) -> None:
        """Addresses and DNS names become canonical, each once; a client has addresses alone."""
        texts = ("192.0.2.1", "GW1.Example.ORG.", "2001:DB8:0::1", "192.0.2.1")
        self.assertEqual(
            checked_alternatives(Role.GATEWAY, texts), ("192.0.2.1", "gw1.example.org", "2001:db8::1")
        )
        for text in (
            "192.0.2.300",
            "-gw.example",
            "a..b",
            "*.example.org",
            "gw1",
            "",
            "x" * 64,
            "fe80::1%eth0",
        ):
            error = self.assertRaises(LocalError, checked_alternatives, Role.GATEWAY, [text])
            self.assertIn("or a DNS name", str(error))
        for text in ("127.0.0.1", "::1", "169.254.1.1", "fe80::1"):
            for role in Role:
                error = self.assertRaises(LocalError, checked_alternatives, role, [text])
                self.assertIn(f"found {text}, expected an address by which other networks", str(error))
        for text in ("alice.example.org", "0.0.0.0", "224.0.0.1", "10.0.0.0/8"):
            error = self.assertRaises(LocalError, checked_alternatives, Role.CLIENT, [text])
            self.assertIn("address of one machine", str(error))

    def test_no_alternatives(self) -> None:
        """A certificate without a name in it would fit nobody."""
        self.assertIn("no inner addresses for alice", self.refusal(replace(CLIENT, alternatives=())))
        self.assertIn("no addresses or DNS names", self.refusal(replace(GATEWAY, alternatives=())))

    def test_again(self) -> None:
        """A second certificate for a name is given only on demand, until the first has expired."""
        self.issue(CLIENT)
        self.assertIn("--renew makes another, rvpn pki revoke alice ends it", self.refusal(CLIENT))
        self.assertEqual(self.authority.check(CLIENT, NOW + timedelta(days=401)), CLIENT)

    def test_renewal(self) -> None:
        """A renewal has the same names and another key, and the certificate before it stays valid."""
        first = self.issue(CLIENT)
        second = self.issue(replace(CLIENT, renew=True, alternatives=()))
        self.assertEqual(second.entry.alternatives, CLIENT.alternatives)
        self.assertNotEqual(first.key, second.key)
        self.assertTrue(all(entry.is_live(NOW) for entry in self.authority.entries))
        moved = self.issue(replace(CLIENT, renew=True, alternatives=("10.99.0.8",)))
        self.assertEqual(moved.entry.alternatives, ("10.99.0.8",))

    def test_nothing_to_renew(self) -> None:
        """Who was never there, or was revoked, is not renewed by mistake."""
        self.assertIn("no certificate that could be renewed", self.refusal(replace(CLIENT, renew=True)))
        self.issue(CLIENT)
        self.authority.revoke(self.authority.to_revoke(["alice"], NOW), PASSPHRASE, NOW)
        self.assertIn("alice was revoked on 2026-11-23", self.refusal(replace(CLIENT, renew=True)))
        self.assertEqual(self.authority.check(CLIENT, NOW), CLIENT)

    def test_one_role(self) -> None:
        """A name belongs to a gateway or to a client."""
        self.issue(GATEWAY)
        self.assertIn("gw1 is the name of a gateway", self.refusal(replace(CLIENT, name="gw1", renew=True)))

    def test_shared_address(self) -> None:
        """No two clients have the same inner address while both could come with it."""
        self.issue(CLIENT)
        other = replace(CLIENT, name="bob", alternatives=("10.99.0.8", "10.99.0.7"))
        self.assertIn("10.99.0.7 belongs to client alice", self.refusal(other))
        self.authority.revoke(self.authority.to_revoke(["alice"], NOW), PASSPHRASE, NOW)
        self.assertEqual(self.authority.check(other, NOW), other)

    def test_shared_address_of_gateways(self) -> None:
        """Nor have two gateways one address: clients know them by it. A DNS name may lead to both."""
        self.issue(GATEWAY)
        other = replace(GATEWAY, name="gw2")
        self.assertRegex(self.refusal(other), r"address \S+ belongs to gateway gw1; choose another, or")
        named = replace(other, alternatives=("192.0.2.2", "gw1.example.org"))
        self.assertEqual(self.authority.check(named, NOW), named)
        inner = replace(CLIENT, alternatives=GATEWAY.alternatives[:1])
        self.assertEqual(self.authority.check(inner, NOW), inner)
        self.issue(replace(GATEWAY, renew=True))
        self.authority.revoke(self.authority.to_revoke(["gw1"], NOW), PASSPHRASE, NOW)
        self.assertEqual(self.authority.check(other, NOW), other)

    def test_many_addresses(self) -> None:
        """A client has no more addresses than gateways take."""
        addresses = tuple(f"10.99.0.{number}" for number in range(1, 10))
        self.assertIn("at most 8", self.refusal(replace(CLIENT, alternatives=addresses)))

    def test_expired_authority(self) -> None:
        """What an expired authority signs nobody would take."""
        self.assertIn("has expired", self.refusal(CLIENT, NOW + timedelta(days=3650)))


class DirectoryTests(AuthorityTestCase):
    """What an authority keeps on disk."""

    def test_rights(self) -> None:
        """The directory is its owner's alone, and so is every file in it."""
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        self.assertEqual({path.stat().st_mode & 0o777 for path in self.directory.iterdir()}, {0o600})
        self.assertEqual(set(self.files()), {"ca.pem", "ca.key", "crl.pem", "index.csv"})

    def test_exposed_key(self) -> None:
        """A key that its own rights would open to others is refused, whatever the directory's are."""
        self.authority.close()
        path = self.directory / "ca.key"
        path.chmod(0o644)
        error = self.assertRaises(LocalError, Authority, self.directory)
        self.assertEqual(str(error), f"{path}: found mode 0644, expected 0600: chmod 600 {path}")
        path.chmod(0o600)
        self.open()

    def test_never_overwrites(self) -> None:
        """An authority is not made where something is, and leaves nothing behind when it cannot be made."""
        before = self.files()
        error = self.assertRaises(LocalError, authority.create, self.directory, "other", PASSPHRASE, NOW)
        self.assertIn("left as it is", str(error))
        self.assertEqual(self.files(), before)
        self.assertEqual(list(self.directory.parent.glob(f".{self.directory.name}*")), [])
        self.assertRaises(LocalError, authority.refuse_existing, self.directory)
        empty = Path(self.mktemp())
        empty.mkdir()
        authority.refuse_existing(empty)
        authority.create(empty, "other", PASSPHRASE, NOW)
        self.assertEqual(empty.stat().st_mode & 0o777, 0o700)

    def test_one_at_a_time(self) -> None:
        """Two processes never work on one authority: one would lose what the other issued."""
        self.assertIn("another rvpn process", str(self.assertRaises(LocalError, Authority, self.directory)))

    def test_passphrase(self) -> None:
        """A wrong passphrase issues and revokes nothing."""
        before = self.files()
        for passphrase in (b"wrong", b""):
            issuing = self.authority.issuing(CLIENT, passphrase, NOW)
            self.assertIn("not the passphrase", str(self.assertRaises(LocalError, issuing.__enter__)))
            self.assertRaises(LocalError, self.authority.revoke, set(), passphrase, NOW)
        self.assertEqual(self.files(), before)
        self.assertIn(b"ENCRYPTED PRIVATE KEY", before["ca.key"])

    def test_other_key(self) -> None:
        """A key from elsewhere, put there with the same passphrase, signs nothing."""
        pem = keys.encrypted_pem(keys.generate(KeyKind.ED25519), PASSPHRASE)
        (self.directory / "ca.key").write_bytes(pem)
        error = self.assertRaises(LocalError, self.issue, CLIENT)
        self.assertIn("found a key that is not that of", str(error))

    def test_issued(self) -> None:
        """What was issued stands in the index, and another process finds it there."""
        entry = self.issue(GATEWAY).entry
        self.authority.close()
        self.assertEqual(self.open().entries, [entry])
        line = (self.directory / "index.csv").read_text().splitlines()[1]
        self.assertIn(",gateway,gw1,192.0.2.1 2001:db8::1 gw1.example.org,2026-11-23T12:00:00Z,", line)

    def test_not_delivered(self) -> None:
        """A certificate whose files could not be written was never issued."""
        before = self.files()

        def fail() -> None:
            with self.authority.issuing(CLIENT, PASSPHRASE, NOW):
                self.assertNotEqual(self.files(), before)
                raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, fail)
        self.assertEqual(self.files(), before)

    def test_revocation(self) -> None:
        """All valid certificates of a name are revoked, in index and list, and no others."""
        revoked = {self.issue(CLIENT).entry.serial, self.issue(replace(CLIENT, renew=True)).entry.serial}
        self.issue(GATEWAY)
        self.assertEqual(self.authority.to_revoke(["alice"], NOW), revoked)
        self.authority.revoke(revoked, PASSPHRASE, NOW)
        listed = self.authority.revocations
        self.assertEqual({entry.serial_number for entry in listed}, revoked)
        self.assertEqual({e.serial for e in self.authority.entries if e.revoked == NOW}, revoked)
        for name in ("alice", "mallory"):
            error = self.assertRaises(LocalError, self.authority.to_revoke, [name], NOW)
            self.assertIn(f"{name} has no certificate that is valid", str(error))

    def test_revocation_list(self) -> None:
        """A list holds as long as its authority, its numbers grow, and a late clock takes it too."""
        lists = []
        for _ in range(3):
            lists.append(self.authority.revocations)
            self.authority.revoke(set(), PASSPHRASE, NOW)
        numbers = [c.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for c in lists]
        self.assertEqual(sorted(set(numbers)), numbers)
        self.assertEqual(lists[0].next_update_utc, self.authority.certificate.not_valid_after_utc)
        self.assertEqual(lists[0].last_update_utc, NOW - timedelta(hours=1))
        (self.directory / "crl.pem").unlink()
        self.authority.revoke(set(), PASSPHRASE, NOW + timedelta(seconds=9))
        again = self.authority.revocations
        number = again.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        self.assertGreater(number, numbers[-1])

    def test_damaged_list(self) -> None:
        """What this authority did not sign is not taken for its list, and to revoke mends it."""
        path = self.directory / "crl.pem"
        self.issue(CLIENT)
        self.authority.revoke(self.authority.to_revoke(["alice"], NOW), PASSPHRASE, NOW)
        elsewhere = Path(self.mktemp())
        authority.create(elsewhere, "authority", PASSPHRASE, NOW)
        for content in (b"", b"garbage", (elsewhere / "crl.pem").read_bytes()):
            path.write_bytes(content)
            error = self.assertRaises(LocalError, lambda: self.authority.revocations)
            self.assertIn(f"{path}: found something that is not this authority's", str(error))
            self.authority.revoke(set(), PASSPHRASE, NOW)
            self.assertEqual(len(self.authority.revocations), 1)

    def test_half_revoked(self) -> None:
        """A crash between index and list is seen, and mended by revoking again."""
        serial = self.issue(CLIENT).entry.serial
        path = self.directory / "crl.pem"
        before = path.read_bytes()
        self.authority.revoke(self.authority.to_revoke(["alice"], NOW), PASSPHRASE, NOW)
        self.assertEqual(self.authority.unlisted, set())
        path.write_bytes(before)
        self.assertEqual(self.authority.unlisted, {serial})
        self.authority.revoke(self.authority.to_revoke(["alice"], NOW), PASSPHRASE, NOW)
        self.assertEqual(self.authority.unlisted, set())
        self.assertRaises(LocalError, self.authority.to_revoke, ["alice"], NOW)

    def test_damage(self) -> None:
        """A directory that is none, or lacks or garbles a file, is named in one line."""
        self.authority.close()
        for name, content, fault in (
            ("index.csv", b"\xff\n", "index.csv:1: found something that is no line"),
            ("index.csv", index.write([]) + b"XY,client,a,,,,\n", "index.csv:2: found something"),
            ("index.csv", b"", "index.csv:0: found something"),
            ("index.csv", None, "index.csv: no such file"),
            ("ca.pem", b"garbage", "ca.pem: found no certificate"),
            ("ca.pem", None, "found no authority here; make one with: rvpn pki init"),
        ):
            path = self.directory / name
            path.unlink() if content is None else path.write_bytes(content)
            text = str(self.assertRaises(LocalError, Authority, self.directory))
            self.assertIn(fault, text)
            self.assertNotIn("\n", text)


class IndexTests(SynchronousTestCase):
    """The index on its own."""

    def test_round_trip(self) -> None:
        """Entries are read as they were written."""
        entries = [
            Entry(0xA, Role.GATEWAY, "gw1", ("192.0.2.1", "gw1"), NOW, NOW + timedelta(1)),
            Entry(1 << 158, Role.CLIENT, "alice", ("fd00::7",), NOW, NOW + timedelta(1), NOW),
        ]
        data = index.write(entries)
        self.assertEqual(index.read(data, "index.csv"), entries)
        self.assertIn(b"\n0A,gateway,", data)

    def test_live(self) -> None:
        """A certificate is live until it expires or is revoked."""
        entry = Entry(1, Role.CLIENT, "a", (), NOW, NOW + timedelta(days=1))
        self.assertTrue(entry.is_live(NOW))
        self.assertFalse(entry.is_live(NOW + timedelta(days=2)))
        self.assertFalse(replace(entry, revoked=NOW).is_live(NOW))
