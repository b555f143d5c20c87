"""What a service keeps in memory: only what its policy can ask for."""

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

#: Large, and for the lab, the commands, the tests or parts of Twisted that no service is made of.
_ABSENT = (
    *(
        "rvpn.lab",
        "rvpn.cli",
        "rvpn.pki",
        "rvpn.keyexchange.tls",
        "pyroute2",
        "scapy",
        "hypothesis",
        "prometheus_client",
    ),
    *("twisted.web", "twisted.conch", "twisted.names", "twisted.mail", "twisted.words", "twisted.trial"),
)
_PROGRAM = """
import sys
import twisted.scripts.twistd
import rvpn.tap
print(*sys.modules)
"""


class ImportTests(SynchronousTestCase):
    """The modules of a service that runs."""

    def test_absent(self) -> None:
        """Twistd and both roles import nothing of the large packages that they do not use."""
        done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
        found = {
            package
            for module in done.stdout.split()
            for package in _ABSENT
            if module == package or module.startswith(f"{package}.")
        }
        self.assertEqual(found, set())
        self.assertIn("rvpn.service.gateway", done.stdout.split())
