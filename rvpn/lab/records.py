"""
What continuous traffic records, and what is made of it: outages, losses, stalls.

    rvpn.lab.monitor -> a file of records -> `Log.read` -> `longest_gap`, `missing` -> `spread`

Times are seconds of the monotonic clock, which is the same in every node, unless it says otherwise.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from struct import Struct
from typing import Generic, NamedTuple, TypeVar

#: Seconds for which packets must have arrived before all is well.
STEADY = 0.25


class Arrival(NamedTuple):
    """A packet that arrived: the reply to ping `number`, or datagram `number` of a stream."""

    number: int
    sent: float
    received: float


class Progress(NamedTuple):
    """What a transfer has brought until `when`: bytes as they must be, wrong ones, connections broken."""

    when: float
    verified: int
    wrong: int
    broken: int


class Sighting(NamedTuple):
    """
    A control datagram that passed, `outward` from the client or back (rvpn.lab.sightings).

    `when` is of the time of day. `number` is a heartbeat's sequence, that which an answer is for, or the id
    of a key exchange.
    """

    when: float
    gateway: int
    kind: int
    outward: bool
    number: int


Record = TypeVar("Record", Arrival, Progress, Sighting)
_FORMATS = {Arrival: Struct("=Qdd"), Progress: Struct("=dQQQ"), Sighting: Struct("=dIB?Q")}


def pack(record: Arrival | Progress | Sighting) -> bytes:
    """Return a record as it stands in a file."""
    return _FORMATS[type(record)].pack(*record)


class Log(Generic[Record]):
    """A file to which records of one kind are added while it is read."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.path = path
        self._kind: type[Record] = kind
        self._records: list[Record] = []

    def read(self) -> Sequence[Record]:
        """Return all records so far, in the order of the file."""
        layout = _FORMATS[self._kind]
        with self.path.open("rb") as file:
            file.seek(len(self._records) * layout.size)
            data = file.read()
        whole = len(data) - len(data) % layout.size
        self._records += [self._kind(*fields) for fields in layout.iter_unpack(data[:whole])]
        return self._records


class Gap(NamedTuple):
    """A time in which nothing arrived."""

    begin: float
    end: float

    @property
    def length(self) -> float:
        """Its length in seconds."""
        return self.end - self.begin


def longest_gap(times: Iterable[float], since: float, until: float) -> Gap:
    """
    Return the longest time without an arrival that ends in (since, until].

    It may begin before `since`, with the last arrival before; if nothing arrives any more it ends with
    `until`.
    """
    before, inside = since, []
    for time in sorted(times):
        if time <= since:
            before = time
        elif time <= until:
            inside.append(time)
    edges = [before, *inside, until]
    return max(map(Gap, edges, edges[1:]), key=lambda gap: gap.length)


def missing(arrivals: Iterable[Arrival], since: float, until: float) -> int:
    """
    Return how many of the packets sent after the last one that had arrived at `since` had not at `until`.

    They are told by their numbers, up to the highest that had arrived; earlier ones that come late count for
    nothing.
    """
    arrived = [each for each in arrivals if each.received <= until]
    first = max((each.number for each in arrived if each.received <= since), default=-1)
    after = {each.number for each in arrived if each.number > first}
    return max(after, default=first) - first - len(after)


def steady(arrivals: Sequence[Arrival], interval: float, now: float) -> bool:
    """Tell whether nearly all packets of the last STEADY seconds arrived, one every `interval` seconds."""
    expected = STEADY / interval
    recent = sum(each.received > now - STEADY for each in arrivals[-2 * math.ceil(expected) :])
    return recent > 0.8 * expected


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, median, 95th percentile (nearest rank) and maximum, to a tenth of a millisecond."""
    ordered = sorted(values)
    figures = {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }
    return {name: round(value, 4) for name, value in figures.items()}
