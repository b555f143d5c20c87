"""
Time that passed without us: a machine that slept, a process that stood still.

`SleepWatch` costs nothing while nothing happens, which an idle client with DEFERRED heartbeats must not (R9).
The kernel counts the time of a suspension on CLOCK_BOOTTIME but not on CLOCK_MONOTONIC, and as it resumes it
cancels timers of CLOCK_REALTIME that ask for it. So one such timer, which never expires, wakes the process
after each sleep; the two other clocks tell how long it was, and that it was none if only the time of day was
set.

`StallWatch` finds that the process itself was stopped (SIGSTOP, a frozen cgroup, a debugger, a machine out of
memory). Nothing tells of that, so it takes a timer that ticks: the kernel counts the ticks that were missed.
It is for a gateway, which must not go on as the owner of addresses that moved meanwhile (DESIGN 8). A client
does without: its alarm rings late, and R7 allows for that.

What neither sees: a virtual machine that was paused together with all its clocks.
"""

import errno
import time
from collections.abc import Callable

from twisted.internet.interfaces import IReactorFDSet
from twisted.logger import Logger

from rvpn.net.timerfd import ABSOLUTE, CANCEL_ON_SET, TimerDescriptor

#: Seconds of sleep, and of standing still, that are worth a report.
SHORTEST_SLEEP, SHORTEST_STALL = 0.5, 1.0
#: Seconds between the ticks of a `StallWatch`.
TICK = 0.25

#: The end of time, in nanoseconds; the kernel takes the largest that it can for it.
_NEVER = (1 << 62) * 1_000_000_000

#: Takes the seconds, about, that passed without this process.
Jumped = Callable[[float], None]

_log = Logger()


def suspended() -> float:
    """Return for how many seconds this machine was suspended since it started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class SleepWatch(TimerDescriptor):
    """Calls `jumped` after the machine was suspended. `slept` is for tests."""

    def __init__(
        self, jumped: Jumped, reactor: IReactorFDSet, slept: Callable[[], float] = suspended
    ) -> None:
        super().__init__(time.CLOCK_REALTIME, reactor)
        self._jumped = jumped
        self._slept = slept
        self._until_now = slept()
        self.arm(_NEVER, flags=ABSOLUTE | CANCEL_ON_SET)

    def doRead(self) -> None:
        """See whether it was a sleep, or only that somebody set the time of day."""
        try:
            self.expirations()
        except OSError as error:  # reading ends the state of being cancelled; the timer stays armed
            if error.errno not in (errno.ECANCELED, errno.EAGAIN):
                raise
        before, self._until_now = self._until_now, self._slept()
        if self._until_now - before >= SHORTEST_SLEEP:
            _tell(self._jumped, self._until_now - before)


class StallWatch(TimerDescriptor):
    """Calls `jumped` after this process stood still, and not for a sleep of the machine."""

    def __init__(self, jumped: Jumped, reactor: IReactorFDSet) -> None:
        super().__init__(time.CLOCK_MONOTONIC, reactor)
        self._jumped = jumped
        tick = int(TICK * 1e9)
        self.arm(tick, interval=tick)

    def doRead(self) -> None:
        """Count the ticks that were missed."""
        try:
            missed = self.expirations() - 1
        except BlockingIOError:
            return
        if missed * TICK >= SHORTEST_STALL:
            _tell(self._jumped, missed * TICK)


def _tell(jumped: Jumped, seconds: float) -> None:
    # An exception that reached the reactor would silently end the watch while the process lives on.
    try:
        jumped(seconds)
    except Exception:
        _log.failure("A jump of the clock by {seconds} s could not be handled", seconds=seconds)
