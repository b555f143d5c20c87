"""
Timers of the kernel as descriptors in the reactor (timerfd_create(2)), for what `reactor.callLater` cannot
do: it counts the time of day, stands still in a suspended machine, and hears of neither.

A subclass arms the timer and reads it in `doRead`.
"""

import ctypes
import os
import sys

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

#: Flags of `arm`, from linux/timerfd.h: the time is on the clock, not from now; tell when the clock is set.
ABSOLUTE, CANCEL_ON_SET = 1, 2

_NANOSECONDS = 1_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


@implementer(IReadDescriptor)
class TimerDescriptor:
    """A timer on `clock` (CLOCK_... of `time`), disarmed, that the reactor reads from the start."""

    def __init__(self, clock: int, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        # Non-blocking and close-on-exec are the flags that open(2) has for them.
        self._descriptor: int = _libc.timerfd_create(clock, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        reactor.addReader(self)

    def arm(self, value: int, interval: int = 0, flags: int = 0) -> None:
        """Expire at `value` and then every `interval`, in nanoseconds; a value of 0 disarms."""
        spec = _TimerSpec(
            interval=_TimeSpec(*divmod(interval, _NANOSECONDS)), value=_TimeSpec(*divmod(value, _NANOSECONDS))
        )
        if _libc.timerfd_settime(self._descriptor, flags, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def expirations(self) -> int:
        """
        Return how often it expired since it was armed or last read.

        Raises `BlockingIOError` if it did not, `OSError` with ECANCELED if the clock was set (CANCEL_ON_SET).
        """
        return int.from_bytes(os.read(self._descriptor, 8), sys.byteorder)

    def close(self) -> None:
        """Never expire again. May be called again."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1

    def doRead(self) -> None:
        """Do what the timer is for."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure) -> None:
        """Close: the reactor is about to end."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor for the reactor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return type(self).__name__
