"""What the security contexts of every mechanism have in common: the parameters that each end said."""

from typing import TypeVar

from rvpn.errors import LocalError
from rvpn.interfaces import Parameters

_T = TypeVar("_T")


def known(value: _T | None) -> _T:
    """Return what a context knows once it is established. Raises `LocalError` if it is not."""
    if value is None:
        raise LocalError("the security context is not established")
    return value


class Context:
    """The part of `rvpn.interfaces.SecurityContext` that no mechanism has to say anything about."""

    def __init__(self) -> None:
        self._own_parameters: Parameters | None = None
        self._peer_parameters: Parameters | None = None

    @property
    def own_parameters(self) -> Parameters:
        """What this end said."""
        return known(self._own_parameters)

    @property
    def peer_parameters(self) -> Parameters:
        """What the other end said."""
        return known(self._peer_parameters)
