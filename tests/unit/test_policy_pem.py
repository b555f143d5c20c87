"""PEM in a policy, in the place of the name of a file: read as it stands, never quoted."""

from ipaddress import IPv4Network

from twisted.trial.unittest import SynchronousTestCase

from rvpn.policy import check, parse
from rvpn.policy.values import InlinePEM

#: No key, but as long as one of Ed25519.
SECRET = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nQUJD\nREVG\n-----END CERTIFICATE-----\n"
KEY = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"
CRL = "-----BEGIN X509 CRL-----\nR0hJ\n-----END X509 CRL-----\n"
POLICY = f"""\
[IDENTITY]
Certificate =
{CERTIFICATE}
CertificateKey =

; with a comment in between, and in a file from elsewhere
{KEY.replace(chr(10), " " + chr(13) + chr(10))}
[AUTHORITIES]
Authority1 = 10.0.0.0/8
{CERTIFICATE}{CERTIFICATE}Authority2 = ca.pem
Revoked =
{CRL}"""


class InlineTests(SynchronousTestCase):
    """PEM below a statement is its value."""

    def faults(self, text: str) -> list[str]:
        """Return the errors of a policy; none quotes the secret."""
        policy, diagnostics = check(text, "f")
        self.assertIsNone(policy)
        for diagnostic in diagnostics:
            self.assertNotIn(SECRET[:20], str(diagnostic))
        return [str(diagnostic) for diagnostic in diagnostics]

    def test_values(self) -> None:
        """Blocks come as they stand, whatever blanks are around them, several of them together."""
        policy, errors = parse(POLICY, "f")
        self.assertEqual(errors, [])
        self.assertEqual((policy.certificate, policy.certificate_key), (CERTIFICATE, KEY))
        self.assertEqual(policy.authorities[0].file, CERTIFICATE * 2)
        self.assertEqual(policy.authorities[0].networks, (IPv4Network("10.0.0.0/8"),))
        self.assertEqual(policy.revoked, (CRL,))
        inline = (policy.certificate, policy.certificate_key, policy.authorities[0].file, *policy.revoked)
        self.assertTrue(all(isinstance(value, InlinePEM) for value in inline))
        self.assertNotIsInstance(policy.authorities[1].file, InlinePEM)

    def test_no_secret_is_shown(self) -> None:
        """The representation of a policy has no PEM in it."""
        self.assertNotIn(SECRET[:20], repr(parse(POLICY, "f")[0]))

    def test_elsewhere(self) -> None:
        """Where no PEM belongs it is an error, at the line above it."""
        for before, fault in (
            ("", "f:1: error: found PEM before any section, expected [GENERAL]"),
            ("[GENERAL]\n", "f:1: error: found PEM below a section, expected above it the statement"),
            ("[GENERAL]\nPort = 1\n\n", "f:2: error: Port: found PEM on the lines below, expected a whole"),
            (
                "[IDENTITY]\nPrivateKey =\n",
                "f:2: error: PrivateKey: found PEM on the lines below, expected the",
            ),
            ("[IDENTITY]\nCertificateKey = a\n", "f:2: error: CertificateKey: found 'a' and PEM below"),
            ("[AUTHORITIES]\nRevoked = a\n", "f:2: error: Revoked: found 'a' and PEM below, expected one"),
            ("[AUTHORITIES]\nAuthority1 = ca.pem\n", "f:2: error: Authority1: found 'ca.pem', expected "),
        ):
            self.assertIn(fault, "\n".join(self.faults(before + KEY)))

    def test_damaged(self) -> None:
        """A block that lost a line, or has one too many, is an error; what is left of a key is not quoted."""
        for damage, fault in (
            (("-----BEGIN PRIVATE", "----BEGIN PRIVATE"), "found base64 outside of a PEM block"),
            (("-----BEGIN PRIVATE KEY-----", ""), "found base64 outside of a PEM block"),
            (("-----END PRIVATE KEY-----", ""), "f:2: error: found a PEM block without an end"),
            (("-----END", "Port = 1\n-----END"), "found a PEM block that holds something else"),
            (("KEY-----", "KEY----"), "found a PEM block that holds something else"),
            ((SECRET, f"{SECRET} {SECRET}"), "found a PEM block that holds something else"),
        ):
            self.assertIn(
                fault, "\n".join(self.faults(f"[IDENTITY]\nCertificateKey =\n{KEY.replace(*damage)}"))
            )

    def test_key_of_noise(self) -> None:
        """A secret key of mechanism noise that somebody pasted into a policy is not quoted either."""
        faults = self.faults("[IDENTITY]\n" + SECRET[:43] + "=\n")
        self.assertIn("found base64 outside of a PEM block", faults[0])
