"""
The failover journal: every change of the gateway in use, why, and what it cost.

An entry is opened when the client decides for a gateway, or finds itself without one, and completed by the
first packet that arrives through the new gateway. The last ones are in `rvpn status`; each goes to the log
when it is complete.
"""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from rvpn.interfaces import Action, Event, Fields

#: Entries that are kept.
KEPT = 100


@dataclass(slots=True)
class Change:
    """
    One change of gateway. Times are in seconds.

    `time` is the time of day since 1970. `detection` runs from the last sign of life of the gateway left to
    the decision, `switch` from there to the first packet to the next gateway's session, `first_packet` to the
    first one that came from there. `packets_meanwhile` were sent to the gateway left after its last sign of
    life that we know of, or waited. None: not yet, or not applicable.
    """

    time: float
    cluster: str
    left: str | None
    taken: str | None
    reason: str
    detection: float | None = None
    switch: float | None = None
    first_packet: float | None = None
    packets_meanwhile: int = 0


class Journal:
    """The changes of all clusters, the oldest forgotten first."""

    def __init__(self) -> None:
        self.changes: deque[Change] = deque(maxlen=KEPT)

    def add(self, change: Change) -> None:
        """Open an entry."""
        self.changes.append(change)

    def status(self) -> list[dict[str, Any]]:
        """Return the entries for `rvpn status --json`, the oldest first."""
        return [asdict(change) for change in self.changes]


def told(change: Change) -> Action:
    """Return the log line of an entry; its fields make the JSON log the journal on disk."""
    fields: Fields = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in asdict(change).items()
        if value is not None
    }
    fields["event"] = "failover"
    fields["changed_at"] = fields.pop("time")
    if change.first_packet is not None:
        return Event("cluster {cluster}: a packet through gateway {taken} after {first_packet:.3f} s", fields)
    if change.taken is None:
        return Event("cluster {cluster}: left gateway {left} without another: {reason}", fields, warning=True)
    if change.left is None:
        return Event("cluster {cluster}: uses gateway {taken}: {reason}", fields)
    return Event("cluster {cluster}: gateway {left} -> {taken}: {reason}", fields, warning=True)
