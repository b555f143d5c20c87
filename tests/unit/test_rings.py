"""
The rings of docs/rings.csv hold (DESIGN 9): one table for this test and for docs/architecture.md.

A row names one module, or with `.*` a package and all that is in it.
"""

import ast
import csv
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[2]
PURE_RINGS = (0, 1, 2)
#: What would tie a calculation to this machine or this moment.
IMPURE = ("twisted.internet", "socket", "time", "random", "os", "subprocess", "pyroute2")


def read_table() -> dict[str, int]:
    """Return the ring of each row."""
    with (ROOT / "docs" / "rings.csv").open(newline="") as table:
        return {row["module"]: int(row["ring"]) for row in csv.DictReader(table)}


def find_modules() -> dict[str, Path]:
    """Return the file of each module of rvpn by its dotted name."""
    modules = {}
    for path in (ROOT / "rvpn").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def covers(row: str, module: str) -> bool:
    """Return whether a row of the table is about a module."""
    package = row.removesuffix(".*")
    return module == package or (row != package and module.startswith(f"{package}."))


def imported(source: str, module: str, is_package: bool) -> Iterator[str]:
    """
    Yield the dotted name of everything that `source` imports anywhere.

    Of `from a import b` that is both a and a.b, as b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ancestry(name: str) -> list[str]:
    """Return a.b.c, a.b and a for a.b.c: importing a module runs the packages around it."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


class RingTests(SynchronousTestCase):
    """Every module has its ring and keeps to it."""

    def setUp(self) -> None:
        """Read the table, and what each module imports."""
        self.table = read_table()
        self.modules = find_modules()
        self.imports = {
            module: {
                ancestor
                for name in imported(path.read_text(), module, path.name == "__init__.py")
                for ancestor in ancestry(name)
            }
            for module, path in self.modules.items()
        }

    def ring(self, module: str) -> int:
        """Return a module's ring."""
        return next(ring for row, ring in self.table.items() if covers(row, module))

    def test_one_row_per_module(self) -> None:
        """Each module is covered by one row, and each row covers a module."""
        covering = {module: [row for row in self.table if covers(row, module)] for module in self.modules}
        wrong = {module: rows for module, rows in covering.items() if len(rows) != 1}
        self.assertEqual(wrong, {}, "docs/rings.csv needs exactly one row for each of these")
        unused = set(self.table) - {row for rows in covering.values() for row in rows}
        self.assertEqual(unused, set(), "rows without a module")

    def test_inward_only(self) -> None:
        """A module imports its own ring or lower."""
        outward = [
            f"{module} (ring {self.ring(module)}) imports {other} (ring {self.ring(other)})"
            for module, names in self.imports.items()
            for other in names & set(self.modules)
            if self.ring(other) > self.ring(module)
        ]
        self.assertEqual(outward, [])

    def test_pure_rings(self) -> None:
        """Rings 0 to 2 reach no clock, no randomness, no socket, directly or through a module of rvpn."""
        impure = [
            f"{module} reaches {name}" + (f" through {other}" if other != module else "")
            for module in self.modules
            if self.ring(module) in PURE_RINGS
            for other in self.reachable(module)
            for name in self.imports[other] & set(IMPURE)
        ]
        self.assertEqual(impure, [])

    def reachable(self, module: str) -> set[str]:
        """Return a module and all modules of rvpn that it imports, directly or not."""
        found, ahead = set[str](), {module}
        while ahead:
            found |= ahead
            ahead = {other for name in ahead for other in self.imports[name] & set(self.modules)} - found
        return found


class ImportReaderTests(SynchronousTestCase):
    """The reader of imports misses no way to write one; the ring test is worth as much as this."""

    def check(self, source: str, expected: set[str], is_package: bool = False) -> None:
        """Compare what is read of a module rvpn.esp.codec, or of a package of that name."""
        self.assertEqual(set(imported(source, "rvpn.esp.codec", is_package)), expected)

    def test_forms(self) -> None:
        """Plain, renamed, from, nested and relative imports are all seen."""
        self.check("import os.path as p, time", {"os.path", "time"})
        self.check("from twisted import internet", {"twisted", "twisted.internet"})
        self.check("def f():\n    import socket", {"socket"})
        self.check("from . import sa", {"rvpn.esp", "rvpn.esp.sa"})
        self.check("from .sa import X", {"rvpn.esp.sa", "rvpn.esp.sa.X"})
        self.check("from ..net import udp", {"rvpn.net", "rvpn.net.udp"})
        self.check("from . import sa", {"rvpn.esp.codec", "rvpn.esp.codec.sa"}, is_package=True)

    def test_rows(self) -> None:
        """A row with `.*` covers a package and its modules, and not its namesakes."""
        self.assertTrue(covers("rvpn.net.*", "rvpn.net"))
        self.assertTrue(covers("rvpn.net.*", "rvpn.net.udp"))
        self.assertFalse(covers("rvpn.net.*", "rvpn.network"))
        self.assertFalse(covers("rvpn", "rvpn.net"))


class PackagingTests(SynchronousTestCase):
    """What is installed is what is here."""

    def test_packages(self) -> None:
        """setup.cfg lists every package and the plugin directory, else an installed rvpn would lack them."""
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        here = {module for module, path in find_modules().items() if path.name == "__init__.py"}
        self.assertEqual(set(setup["options"]["packages"].split()), here | {"twisted.plugins"})

    def test_plugins_have_no_package(self) -> None:
        """An `__init__.py` beside our plugins would hide Twisted's own."""
        plugins = sorted(path.name for path in (ROOT / "twisted").rglob("*.py"))
        self.assertEqual(plugins, ["rvpn_plugins.py"])
