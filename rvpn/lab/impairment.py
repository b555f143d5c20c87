"""
What a bad network does to packets, as a calculation: delay, jitter, loss, reordering, duplication.

    packet, now -> Impairments.take -> heap of (when, packet) -> Impairments.due(now) -> packets that leave

Each direction of each gateway's path has its own settings and its own random numbers, seeded by name, so that
a run can be repeated. Jitter never reorders: only `reorder` does, so that each can be dosed by itself. Times
are in seconds, probabilities from 0 to 1.
"""

import heapq
from dataclasses import dataclass
from itertools import count
from random import Random

#: Packets held back at a time; as in a router, what comes on top is lost.
MOST_WAITING = 10_000
#: A reordered packet is held back this long after its turn, so that those behind it overtake.
OVERTAKING_TIME = 0.005


@dataclass(frozen=True, slots=True)
class Impairment:
    """How bad one direction of a path is."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for times and probabilities that are none."""
        for name in ("delay", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a time in seconds, not {getattr(self, name)}")
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1, not {getattr(self, name)}")


class Direction:
    """One direction of a path: decides the fate of each packet, and counts."""

    def __init__(self, impairment: Impairment, source: Random) -> None:
        self._impairment, self._source = impairment, source
        self._last = 0.0
        self.seen = self.lost = self.reordered = self.duplicated = 0

    def departures(self, now: float) -> tuple[float, ...]:
        """Return when the packet that arrives now leaves: never, once, or (duplicated) twice."""
        chance, impairment = self._source.random, self._impairment
        self.seen += 1
        if impairment.loss and chance() < impairment.loss:
            self.lost += 1
            return ()
        leaves = now + impairment.delay
        if impairment.jitter:
            leaves += impairment.jitter * chance()
        # A queue is first in, first out: nobody overtakes the packet before.
        self._last = leaves = max(leaves, self._last)
        if impairment.reorder and chance() < impairment.reorder:
            self.reordered += 1
            leaves += OVERTAKING_TIME
        if impairment.duplicate and chance() < impairment.duplicate:
            self.duplicated += 1
            return leaves, leaves
        return (leaves,)


class Impairments:
    """
    All directions that are impaired, and the packets held back in them.

    A direction is named by the packed address of its gateway and whether packets come from it. Packets of no
    known direction pass at once.
    """

    def __init__(self) -> None:
        self._directions: dict[tuple[bytes, bool], Direction] = {}
        self._waiting: list[tuple[float, int, bytes]] = []
        self._order = count()
        self.overflowed = 0

    def set(self, gateway: bytes, from_gateway: bool, impairment: Impairment, seed: int) -> None:
        """Set one direction; its counters begin anew."""
        source = Random(f"{seed} {gateway.hex()} {from_gateway}")  # noqa: S311 (repeatable, not secret)
        self._directions[gateway, from_gateway] = Direction(impairment, source)

    def clear(self) -> None:
        """Forget every setting; what is held back still leaves when it is due."""
        self._directions.clear()

    def directions(self) -> dict[tuple[bytes, bool], Direction]:
        """Return each direction with its counters."""
        return dict(self._directions)

    def take(self, packet: bytes, now: float) -> None:
        """Take one IP packet; `due` returns it when its time has come."""
        direction = self._find(packet)
        for when in (now,) if direction is None else direction.departures(now):
            if len(self._waiting) < MOST_WAITING:
                heapq.heappush(self._waiting, (when, next(self._order), packet))
            else:
                self.overflowed += 1

    def due(self, now: float) -> list[bytes]:
        """Return the packets that leave now, in order."""
        packets = []
        while self._waiting and self._waiting[0][0] <= now:
            packets.append(heapq.heappop(self._waiting)[2])
        return packets

    def deadline(self) -> float | None:
        """Return when the next packet leaves."""
        return self._waiting[0][0] if self._waiting else None

    def _find(self, packet: bytes) -> Direction | None:
        four = packet[0] >> 4 == 4
        source, destination = (packet[12:16], packet[16:20]) if four else (packet[8:24], packet[24:40])
        return self._directions.get((destination, False)) or self._directions.get((source, True))
