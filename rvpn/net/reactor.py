"""
Twisted's epoll reactor, made for packets: without a logging context around each, and awake between those that
follow one another closely.

Twisted puts the name of a descriptor into a context while it works, for the log, and looks at the descriptor
before and after: a dozen calls in Python, a fifth of what an idle tunnel adds to a ping. A `PacketReader`
does without, and everything else is treated as ever.

A process that sleeps takes tens of microseconds to wake, and finds its caches cold. So where `OFTEN` events
in a row were waited for no longer than `BUSY_POLL`, the reactor stays awake for that time after each. One
vain attempt ends that for a while, and so does bulk, which keeps it busy enough, and so does somebody else
who wants the core: it is offered each time, and who took it is not to be kept waiting again.

Who wants another reactor has it with `twistd -r`.
"""

import sys
from os import sched_yield
from time import perf_counter
from typing import Any

from twisted.internet.epollreactor import EPOLLIN, EPollReactor
from twisted.internet.main import installReactor
from twisted.python import log

#: Seconds to stay awake: a round trip through a tunnel on a network without delay.
BUSY_POLL = 0.0002
#: How many events in a row must have come as soon as that.
OFTEN = 4
#: Seconds without bulk, and after a vain attempt, until it is tried again.
QUIET = 0.01
#: Seconds for which somebody else has had the core if it was wanted at all; it is left alone so long then.
TAKEN, LEFT_ALONE = 0.0005, 1.0
#: Bytes of one packet, or a few small ones.
LITTLE = 2048
#: Seconds without a packet after which one comes alone, most likely.
PAUSE = 0.00002


class PacketReader:
    """
    A descriptor whose `doRead` says itself what it logs for, returns nothing, and raises nothing.

    If `single`, one packet has come, most likely: then it reads once, for asking for more in vain takes as
    long as sealing it. Afterwards `bulk` tells whether it read more than `LITTLE` bytes.
    """

    single = bulk = False

    def doRead(self) -> None:
        """Read."""


class PacketReactor(EPollReactor):
    """See the module."""

    _soon = 0
    _quiet_from = _sleeping_until = 0.0

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events and deal with them; as that of the base, but for packets."""
        most = len(self._selectables)
        began = perf_counter()
        quiet = began > self._quiet_from
        awake = quiet and self._soon >= OFTEN and began > self._sleeping_until and timeout != 0
        events = self._busy_poll(began, most) if awake else None
        if not events:
            events = self._poller.poll(-1 if timeout is None else timeout, most)
        waited = perf_counter() - began
        self._soon = self._soon + 1 if waited < BUSY_POLL else 0
        for descriptor, event in events:
            selectable = self._selectables.get(descriptor)
            if event == EPOLLIN and isinstance(selectable, PacketReader):
                selectable.single = quiet and waited > PAUSE
                selectable.doRead()
                if selectable.bulk:
                    self._quiet_from = began + waited + QUIET
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)

    def _busy_poll(self, began: float, most: int) -> list[tuple[int, int]]:
        """Return the next events; none if it was in vain."""
        poll, end, now = self._poller.poll, began + BUSY_POLL, began
        while now < end:
            sched_yield()
            before, now = now, perf_counter()
            if now - before > TAKEN:
                self._sleeping_until = now + LEFT_ALONE
            if events := poll(0, most):
                return list(events)
        self._sleeping_until = max(self._sleeping_until, now + QUIET)
        return []

    doIteration = doPoll


def installed() -> Any:
    """Return the reactor of this process: the one that was chosen, else a `PacketReactor`."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(PacketReactor())
    return sys.modules["twisted.internet.reactor"]
