"""What a valid policy probably does not mean (DESIGN 7)."""

from rvpn.policy.diagnostics import Diagnostic
from rvpn.policy.model import Policy


def check(text: str | bytes, filename: str) -> tuple[Policy | None, list[Diagnostic]]:
    """Return the policy (None if it has errors) with its errors and warnings in the order of their lines."""
    raise NotImplementedError
