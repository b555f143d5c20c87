"""Plain words on a terminal or in a file: lines, tables, ticks; never a control character."""

import sys
from collections.abc import Iterable, Sequence

from rvpn.cli.report import aligned


def say(words: str) -> None:
    """Print a line at once."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def table(rows: Iterable[Sequence[object]]) -> str:
    """Return rows of cells as text, in columns two blanks apart."""
    return "\n".join(aligned([[str(cell) for cell in row] for row in rows]))


def mark(good: bool) -> str:
    """Return a tick or a cross, in letters where the terminal has neither."""
    tick, cross = "\N{CHECK MARK}", "\N{BALLOT X}"
    try:
        (tick + cross).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        tick, cross = "ok", "FAILED"
    return tick if good else cross
