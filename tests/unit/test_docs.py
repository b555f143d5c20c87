"""The documentation tells the truth where a test can know it."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import DropReason
from rvpn.policy import Severity, check

ROOT = Path(__file__).resolve().parents[2]


class OperationsTests(SynchronousTestCase):
    """docs/operations.md."""

    def test_drop_reasons(self) -> None:
        """The table of dropped packets has every reason, in the order of `DropReason`."""
        section = (ROOT / "docs/operations.md").read_text().split("### Dropped packets")[1].split("\n## ")[0]
        self.assertEqual(
            re.findall(r"^\| `([a-z-]+)`", section, re.MULTILINE), [reason.value for reason in DropReason]
        )


class PolicyExampleTests(SynchronousTestCase):
    """The policies that readers copy."""

    def test_examples(self) -> None:
        """Every policy in README and the tutorial is without error, and so are the samples in etc."""
        texts = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "etc").glob("*.policy")}
        for page in ("README.md", "docs/tutorial.md"):
            for number, text in enumerate(
                re.findall(r"^```ini\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
            ):
                texts[f"{page} ({number})"] = text
        errors = [
            str(diagnostic)
            for name, text in texts.items()
            for diagnostic in check(text, name)[1]
            if diagnostic.severity is Severity.ERROR
        ]
        self.assertEqual(errors, [])
        self.assertGreaterEqual(len(texts), 5)
