"""The command `rvpn` in the process of a test, alone and with an authority in a directory."""

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from rvpn.cli import main, pki
from rvpn.pki import keys

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Outcome(NamedTuple):
    """How a run of `rvpn` ended."""

    code: int
    out: str
    err: str


def rvpn(*arguments: str) -> Outcome:
    """Run the command in this process."""
    return run(lambda: main(arguments))


def run(program: Callable[[], int | None]) -> Outcome:
    """Run the `main` of a program in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = program() or 0
        except SystemExit as end:  # how argparse leaves
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


class CommandTestCase(SynchronousTestCase):
    """An authority in a directory of trial's, and what comes out beside it."""

    def setUp(self) -> None:
        """Make the authority through the command."""
        self.patch(keys, "SCRYPT_COST", (2, 1, 1))
        self.now = NOW
        self.patch(pki, "now", lambda: self.now)
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.ca = self.directory / "pki"
        self.secret = self.directory / "passphrase"
        self.secret.write_text("correct horse\n")
        self.secret.chmod(0o600)
        self.made = self.rvpn("pki", "init")

    def rvpn(self, *words: str, **options: object) -> Outcome:
        """Run a command with the places filled in; `options` are further options by name."""
        more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        group = 2 if words[0] == "pki" else 1
        places = [f"--ca={self.ca}", f"--passphrase-file={self.secret}"]
        if words[1] in ("gateway", "client"):
            places.append(f"--out={self.directory}")
        elif words[1] == "show":
            places.pop()
        return rvpn(*words[:group], *places, *more, *words[group:])

    def files(self) -> dict[str, bytes]:
        """Return all files by their path."""
        found = (path for path in self.directory.rglob("*") if path.is_file())
        return {str(path.relative_to(self.directory)): path.read_bytes() for path in found}

    def refused(self, outcome: Outcome, fault: str) -> None:
        """Check that a command ended in one line that names the fault."""
        self.assertEqual((outcome.code, outcome.out), (1, ""))
        self.assertRegex(outcome.err, r"\Arvpn: error: [^\n]*\n\Z")
        self.assertIn(fault, outcome.err)
