"""
What the log says of refused key exchanges. Strangers cause as many as they like, and lines cost room.

    refused -> `tell`: a line, with how many more of the same address and reason there were since the last one
        -> none where a line is fresh, or one about the same address and reason not old: only counted
"""

from rvpn.errors import RemoteError
from rvpn.interfaces import Action, Endpoint, Event, Fields, IPAddress

#: Seconds between two lines about refused key exchanges.
REFUSAL_INTERVAL = 1.0
#: Seconds between two lines that differ in their counts alone: who is refused tries again and again.
SAME_REFUSAL_INTERVAL = 10.0
#: Of how many addresses and reasons refusals without a line are counted: those refused most recently.
MOST_COUNTED = 64


class Refusals:
    """
    See the module. It remembers the addresses and reasons of the lines of SAME_REFUSAL_INTERVAL, and counts
    for MOST_COUNTED of them: where more strangers try at a time, counts are too low.
    """

    def __init__(self) -> None:
        self._untold: dict[tuple[IPAddress, str], int] = {}
        self._next = float("-inf")
        self._told_at: dict[tuple[IPAddress, str], float] = {}

    def tell(self, error: RemoteError, endpoint: Endpoint, now: float) -> list[Action]:
        """Return the line about a refusal, if there is to be one."""
        about = endpoint.address, str(error)
        if now < self._next or now < self._told_at.get(about, float("-inf")) + SAME_REFUSAL_INTERVAL:
            self._count(about)
            return []
        self._told_at = {a: at for a, at in self._told_at.items() if now < at + SAME_REFUSAL_INTERVAL}
        self._told_at[about], self._next = now, now + REFUSAL_INTERVAL
        message = "refused a key exchange from {endpoint}: {reason}"
        fields: Fields = {"endpoint": str(endpoint), "reason": str(error)}
        if more := self._untold.pop(about, 0):
            message, fields = message + " ({more} more before it)", {**fields, "more": more}
        return [Event(message, fields)]

    def _count(self, about: tuple[IPAddress, str]) -> None:
        """Count a refusal that gets no line."""
        self._untold[about] = self._untold.pop(about, 0) + 1  # at the end: who is first came longest ago
        if len(self._untold) > MOST_COUNTED:
            del self._untold[next(iter(self._untold))]
