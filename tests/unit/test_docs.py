"""The documentation tells the truth where a test can know it."""

import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn import __version__
from rvpn.cli import report
from rvpn.errors import DropReason
from rvpn.policy import Severity, check
from tests.unit.simulation import INNER, TARGET, Network, udp_packet

ROOT = Path(__file__).resolve().parents[2]
#: What the service adds to the status of its node (rvpn.service.tunnel).
OF_THE_SERVICE = {"version": __version__, "uptime": 1.0, "device": "rvpn0", "mtu": 1438}


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def named(table: str) -> set[str]:
    """Return the names in the first column of a Markdown table."""
    return {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)
    }


class OperationsTests(SynchronousTestCase):
    """docs/operations.md tells what a node counts and shows."""

    def setUp(self) -> None:
        """Cut out the sections."""
        status = read("docs/operations.md").split("\n## Status\n")[1].split("\n## ")[0]
        fields, self.drops = status.split("### Dropped packets")
        self.fields, self.session_fields = fields.split("Each session has these fields:")

    def test_drop_reasons(self) -> None:
        """The table of dropped packets has every reason, in the order of `DropReason`."""
        reasons = re.findall(r"^\| `([a-z-]+)`", self.drops, re.MULTILINE)
        self.assertEqual(reasons, [reason.value for reason in DropReason])

    def test_status(self) -> None:
        """The tables name exactly the fields that client and gateway give; `rvpn status` knows both."""
        network = Network()
        network.send(network.client, udp_packet(INNER, TARGET, b"hello"))
        network.run(1)
        statuses: list[dict[str, Any]] = [
            {**OF_THE_SERVICE, **host.node.status(network.now)} for host in network.hosts
        ]
        sessions = [session for status in statuses for session in status["sessions"]]
        self.assertEqual(len(sessions), 2)
        self.assertEqual(named(self.fields), set().union(*statuses))
        self.assertEqual(named(self.session_fields), set().union(*sessions))
        for status in statuses:
            self.assertIn(str(INNER), report.text(status))


class PolicyExampleTests(SynchronousTestCase):
    """The policies that readers copy."""

    def test_examples(self) -> None:
        """Every policy in README and the tutorial is without error, and so are the samples in etc."""
        texts = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "etc").glob("*.policy")}
        for page in ("README.md", "docs/tutorial.md"):
            blocks = re.findall(r"^```ini\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
            texts |= {f"{page} ({number})": text for number, text in enumerate(blocks)}
        self.assertGreaterEqual(len(texts), 6)
        errors = [
            str(diagnostic)
            for name, text in texts.items()
            for diagnostic in check(text, name)[1]
            if diagnostic.severity is Severity.ERROR
        ]
        self.assertEqual(errors, [])
