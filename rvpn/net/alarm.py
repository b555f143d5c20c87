"""
The one timer of a node, on a clock that neither steps with the time of day nor stands still in a suspended
machine.

`reactor.callLater` counts the time of day: if that is set back by an hour, nothing would be due for an hour.
A timerfd on CLOCK_BOOTTIME is readable when its time has come, so the reactor sees it as one more descriptor.
"""

import math
import time
from collections.abc import Callable
from functools import partial

from twisted.internet.interfaces import IReactorFDSet
from twisted.logger import Logger

from rvpn.net.timerfd import ABSOLUTE, TimerDescriptor

_log = Logger()


#: Returns seconds on the clock of alarms.
now: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class Alarm(TimerDescriptor):
    """Calls `ring` once when the time last given to `set` has come. What `ring` raises is logged."""

    def __init__(self, ring: Callable[[], None], reactor: IReactorFDSet) -> None:
        self._ring = ring
        self._when: float | None = None
        super().__init__(time.CLOCK_BOOTTIME, reactor)

    def set(self, when: float | None) -> None:
        """Ring at `when` on the clock of `now`, instead of when it would have; None: not at all."""
        if when == self._when or self._descriptor < 0:
            return
        self._when = when
        # A time of 0 would disarm it; one that has passed rings at once. Rounded up, it never rings early.
        self.arm(0 if when is None else max(1, math.ceil(when * 1e9)), flags=ABSOLUTE)

    def doRead(self) -> None:
        """Ring, unless the time was put off meanwhile."""
        try:
            self.expirations()
        except BlockingIOError:
            return
        self._when = None
        try:
            self._ring()
        except Exception:
            _log.failure("What was due could not be done")
