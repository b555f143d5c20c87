"""Text -> `Policy` (DESIGN 7)."""

from rvpn.policy.diagnostics import Diagnostic
from rvpn.policy.model import Policy


def parse(text: str | bytes, filename: str) -> tuple[Policy, list[Diagnostic]]:
    """Return what could be understood of a policy file, and all its errors in the order of their lines."""
    raise NotImplementedError


def load(text: str | bytes, filename: str) -> Policy:
    """Return the policy that a file holds. Raises `PolicyError` with every error of the file."""
    raise NotImplementedError
