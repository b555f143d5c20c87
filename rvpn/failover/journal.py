"""
The failover journal: every change of the gateway in use, why, and what it cost.

An entry is opened when the client decides for a gateway, or finds itself without one, and completed by the
first packet that arrives through the new gateway (`FirstPackets`). The last ones are in `rvpn status`; each
goes to the log when it is complete.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any

from rvpn.agenda import Act
from rvpn.interfaces import Action, Event, Fields
from rvpn.session.sessions import Session

#: Entries that are kept.
KEPT = 100


@dataclass(slots=True)
class Change:
    """
    One change of gateway. Times are in seconds.

    `time` is the time of day since 1970. `detection` runs from the last sign of life of the gateway left to
    the decision, `switch` from there until the next gateway is in use. `first_packet` ends with the first
    packet that came from there; it begins with the decision if packets waited, else with the first one that
    was sent there, for a client that is idle misses nothing. `packets_meanwhile` were sent to the gateway
    left after its last sign of life that we know of, or waited. None: not yet, or not applicable.
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


@dataclass(slots=True)
class _Expected:
    """A change to complete by a packet through `session`; `since` when one is missed, None: not yet."""

    session: Session
    change: Change
    since: float | None


class FirstPackets:
    """
    The entries that wait for a packet through the gateway taken, the last one of each cluster: `expected`.

    `with_payload` has something done with the next payload packet to any gateway in use.
    """

    def __init__(self, with_payload: Callable[[Hashable, Act], None]) -> None:
        self._with_payload = with_payload
        self.expected: dict[str, _Expected] = {}

    def expect(self, session: Session, change: Change, since: float | None) -> None:
        """Wait for a packet, which is missed `since` then, None: since something is sent."""
        self.expected[change.cluster] = expected = _Expected(session, change, since)
        self._await_payload(expected)

    def _await_payload(self, expected: _Expected) -> None:
        """See to it that `sent` is called, again where another gateway got the payload."""

        def again(_now: float) -> list[Action]:
            self._await_payload(expected)
            return []

        cluster = expected.change.cluster
        if expected.since is None and self.expected.get(cluster) is expected:
            self._with_payload((FirstPackets, cluster), again)

    def sent(self, session: Session, now: float) -> None:
        """Hear that payload goes to the gateway of `session`."""
        for expected in self.expected.values():
            if expected.session is session and expected.since is None:
                expected.since = now

    def received(self, session: Session, now: float) -> list[Action]:
        """Complete the entries that wait for a packet through the gateway of `session`, and tell of it."""
        actions: list[Action] = []
        for name, expected in list(self.expected.items()):
            if expected.session is session:
                del self.expected[name]
                if expected.since is not None:
                    expected.change.first_packet = now - expected.since
                    actions.append(told(expected.change))
        return actions

    def forget(self, session: Session) -> None:
        """Expect nothing more of a session that has ended."""
        for name in [name for name, expected in self.expected.items() if expected.session is session]:
            del self.expected[name]


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
