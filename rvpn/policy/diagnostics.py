"""
What is wrong with a policy file: one `Diagnostic` for each fault, and the error that carries them.

`grammar` finds errors, `lint` warnings; `str()` of each is the line that `rvpn policy check` prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, unique

from rvpn.errors import LocalError


@unique
class Severity(Enum):
    """An error makes a policy unusable, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One fault of a policy file. `message` names what was found and what was expected."""

    filename: str
    line: int
    severity: Severity
    message: str

    def __str__(self) -> str:
        """Write it as compilers do, so that editors find the line."""
        return f"{self.filename}:{self.line}: {self.severity.value}: {self.message}"


class PolicyError(LocalError):
    """A policy file with errors: `diagnostics` holds all, and the text has a line for each."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = tuple(diagnostics)
