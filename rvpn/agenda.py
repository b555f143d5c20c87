"""
What is due when: the timer queue of a node.

State machines put appointments on the agenda; the shell asks `deadline()`, sets its single timer to it and
calls `advance()`, which does what is due and returns the actions that came of it. Cancelled appointments stay
in the heap until their time or until they are the larger half of it, so that neither cancelling nor memory
costs more than the appointments that are alive.
"""

import heapq
from collections.abc import Callable, Iterable
from itertools import count

from rvpn.interfaces import Action

Act = Callable[[float], Iterable[Action]]


class Appointment:
    """Something to be done at `when`; `cancel()` it and it never happens."""

    __slots__ = ("_agenda", "act", "when")

    def __init__(self, agenda: "Agenda", when: float, act: Act) -> None:
        self._agenda = agenda
        self.when = when
        self.act: Act | None = act

    def cancel(self) -> None:
        """Let it never happen; harmless if it already has."""
        if self.act is not None:
            self.act = None
            self._agenda.cancelled()


class Agenda:
    """A heap of appointments, the earliest first, those for the same time in the order they were made."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Appointment]] = []
        self._numbers = count()
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def at(self, when: float, act: Act) -> Appointment:
        """Call `act(now)` once `now` has reached `when` (seconds)."""
        appointment = Appointment(self, when, act)
        heapq.heappush(self._heap, (when, next(self._numbers), appointment))
        return appointment

    def deadline(self) -> float | None:
        """Return the time of the earliest appointment, or None."""
        while self._heap and self._heap[0][2].act is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def advance(self, now: float) -> list[Action]:
        """
        Do what is due at `now`, and return the actions. What this puts on the agenda waits for the next call.
        """
        made_before = next(self._numbers)
        actions: list[Action] = []
        while (when := self.deadline()) is not None and when <= now and self._heap[0][1] < made_before:
            appointment = heapq.heappop(self._heap)[2]
            act, appointment.act = appointment.act, None
            assert act is not None  # deadline() removed the cancelled ones
            actions.extend(act(now))
        return actions

    def cancelled(self) -> None:
        """
        Note that one more appointment in the heap is cancelled; remove them when they are the larger half.
        """
        self._cancelled += 1
        if self._cancelled > 64 and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].act is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
