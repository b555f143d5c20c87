"""docs/rules.md and the source cite each other: no rule is only a promise."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[2]
RULES = [f"R{number}" for number in range(1, 19)] + [f"X{number}" for number in range(1, 9)]


def citations(package: str) -> dict[str, set[str]]:
    """Return the modules of a package, named from there, by each rule that they cite; not this test."""
    found: dict[str, set[str]] = {rule: set() for rule in RULES}
    for file in (ROOT / package).rglob("*.py"):
        text = "" if file == Path(__file__) else file.read_text(encoding="utf-8")
        module = ".".join(file.relative_to(ROOT / package).with_suffix("").parts)
        for rule in set(re.findall(r"\b[RX]\d{1,2}\b", text)) & found.keys():
            found[rule].add(module)
    return found


class RulesTests(SynchronousTestCase):
    """The page of the rules."""

    def setUp(self) -> None:
        """Read the tables: where each rule is said to be kept, and where shown."""
        self.page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| ([RX]\d+) \| .+ \|([^|]*)\|([^|]*)\|$", self.page, re.MULTILINE)
        self.rows = {rule: [re.findall("`(.*?)`", cell) for cell in cells] for rule, *cells in rows}
        self.built = [rule for rule in RULES if any(self.rows[rule])]

    def test_complete(self) -> None:
        """It has every rule, in order; the only one that is not built is X5."""
        self.assertEqual(list(self.rows), RULES)
        self.assertEqual(set(RULES) - set(self.built), {"X5"})

    def test_cited(self) -> None:
        """Each rule that is built is cited in the source and in a test, and the other one nowhere."""
        for package in "rvpn", "tests":
            cited = citations(package)
            self.assertEqual([rule for rule in RULES if cited[rule]], self.built, package)

    def test_places(self) -> None:
        """Each module that the page names for a rule cites it."""
        for column, package in enumerate(("rvpn", "tests")):
            cited = citations(package)
            for rule in self.built:
                self.assertTrue(self.rows[rule][column], rule)
                self.assertEqual(set(self.rows[rule][column]) - cited[rule], set(), rule)

    def test_chapters(self) -> None:
        """Every chapter of the design that is cited anywhere is explained."""
        explained = set(re.findall(r"^\| DESIGN (\d+) \|", self.page, re.MULTILINE))
        files = [file for package in ("rvpn", "tests") for file in (ROOT / package).rglob("*.py")]
        cited = {number for file in files for number in re.findall(r"\bDESIGN (\d+)", file.read_text())}
        self.assertEqual(cited - explained, set())
