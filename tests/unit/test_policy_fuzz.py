"""Whatever a policy file holds, reading it raises nothing but says what is wrong."""

import random
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.policy import Severity, check

ROOT = Path(__file__).parents[2]
#: A policy with PEM in it, of no use but to be read.
INLINE = b"""[IDENTITY]
Certificate =
-----BEGIN CERTIFICATE-----
QUJD
-----END CERTIFICATE-----

CertificateKey =
-----BEGIN PRIVATE KEY-----
QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHU=
-----END PRIVATE KEY-----
[AUTHORITIES]
Authority1 = 10.0.0.0/8
-----BEGIN CERTIFICATE-----
QUJD
-----END CERTIFICATE-----
Revoked = crl.pem
"""
SAMPLES = [*((ROOT / "etc" / name).read_bytes() for name in ("client.policy", "gateway.policy")), INLINE]
MUTATIONS = 2000
#: Pieces that mean something to the grammar, or to careless code.
PIECES = (
    *(b"[GENERAL]", b"[TUNNEL]", b"[]", b"[", b"]", b"=", b"-", b"/", b",", b";", b"#", b":", b"%"),
    *(b"\n", b"\r", b"\0", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xae", b"x" * 5000, b"{0}", b"%s"),
    *(b"nan", b"-1", b"1e9", b"9" * 400, b"0", b"::", b"::/0", b"0.0.0.0/0"),
    *(b"Cluster", b"Cluster 1", b"AUTO", b"own", b"auto", b"Tunnel", b"<nr>"),
    *(b"\n-----BEGIN X-----\n", b"\n-----END X-----\n", b"-----", b"A" * 64),
)


def mutate(data: bytes, source: random.Random) -> bytes:
    """Return `data` with one to four changes: bytes flipped, cut out, put in or moved, and lines repeated."""
    for _ in range(source.randint(1, 4)):
        start = source.randrange(len(data) + 1)
        end = min(len(data), start + source.choice((1, 1, 4, 40)))
        piece = source.choice((b"", source.choice(PIECES), source.randbytes(2), data[start:end] * 2))
        other = source.randrange(len(data) + 1)
        if source.random() < 0.2:
            piece = data[other : other + 60]
        data = data[:start] + piece + data[end:]
    return data


class FuzzTests(SynchronousTestCase):
    """Mutated sample policies, the same ones in every run."""

    def test_mutations(self) -> None:
        """None raises; a policy comes back if and only if there is no error; every fault is one line."""
        source = random.Random(20001219)
        fault = re.compile(r"f:[1-9][0-9]*: (error: .*found .+, expected .+|warning: .+)", re.ASCII)
        refused = 0
        for _ in range(MUTATIONS):
            data = mutate(source.choice(SAMPLES), source)
            policy, diagnostics = check(data, "f")
            wrong = any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)
            self.assertEqual(policy is None, wrong, data)
            refused += wrong
            for diagnostic in diagnostics:
                text = str(diagnostic)
                self.assertTrue(fault.fullmatch(text) and text.isascii() and text.isprintable(), text)
                self.assertLessEqual(diagnostic.line, data.count(b"\n") + 1)
        self.assertTrue(MUTATIONS / 4 < refused < MUTATIONS, refused)
