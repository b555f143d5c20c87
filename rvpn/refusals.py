"""
What the log says of refused key exchanges. Strangers cause as many as they like, and lines cost room.

    refused -> `tell`: a line, with how many there were since the last one
        -> none where a line is fresh: only counted
"""

from rvpn.errors import RemoteError
from rvpn.interfaces import Action, Endpoint, Event, Fields

#: Seconds between two lines about refused key exchanges.
REFUSAL_INTERVAL = 1.0


class Refusals:
    """See the module."""

    def __init__(self) -> None:
        self._untold = 0
        self._next = float("-inf")

    def tell(self, error: RemoteError, endpoint: Endpoint, now: float) -> list[Action]:
        """Return the line about a refusal, if there is to be one."""
        self._untold += 1
        if now < self._next:
            return []
        self._next = now + REFUSAL_INTERVAL
        more, self._untold = self._untold - 1, 0
        message = "refused a key exchange from {endpoint}: {reason}"
        fields: Fields = {"endpoint": str(endpoint), "reason": str(error)}
        if more:
            message, fields = message + " ({more} more before it)", {**fields, "more": more}
        return [Event(message, fields)]
