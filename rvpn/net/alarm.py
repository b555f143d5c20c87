"""
The one timer of a node, on a clock that neither steps with the time of day nor stands still in a suspended
machine.

`reactor.callLater` counts the time of day: if that is set back by an hour, nothing would be due for an hour.
A timerfd on CLOCK_BOOTTIME is readable when its time has come, so the reactor sees it as one more descriptor.
"""

import ctypes
import math
import os
import time
from collections.abc import Callable

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_libc = ctypes.CDLL(None, use_errno=True)
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME of linux/timerfd.h
_NANOSECONDS = 1_000_000_000

_log = Logger()


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


def now() -> float:
    """Return seconds on the clock of alarms."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@implementer(IReadDescriptor)
class Alarm:
    """Calls `ring` once when the time last given to `set` has come. What `ring` raises is logged."""

    def __init__(self, ring: Callable[[], None], reactor: IReactorFDSet) -> None:
        self._ring = ring
        self._reactor = reactor
        self._when: float | None = None
        # Non-blocking and close-on-exec are the flags that open(2) has for them.
        self._descriptor: int = _libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        reactor.addReader(self)

    def set(self, when: float | None) -> None:
        """Ring at `when` on the clock of `now`, instead of when it would have; None: not at all."""
        if when == self._when or self._descriptor < 0:
            return
        self._when = when
        # A time of 0 would disarm it; one that has passed rings at once. Rounded up, it never rings early.
        nanoseconds = 0 if when is None else max(1, math.ceil(when * _NANOSECONDS))
        spec = _TimerSpec(value=_TimeSpec(*divmod(nanoseconds, _NANOSECONDS)))
        if _libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never ring again. May be called again."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1

    def doRead(self) -> None:
        """Ring, unless the time was put off meanwhile."""
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._when = None
        try:
            self._ring()
        except Exception:
            _log.failure("what was due could not be done")

    def connectionLost(self, reason: Failure) -> None:
        """Close: the reactor is about to end."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor for the reactor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return "alarm"
