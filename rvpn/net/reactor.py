"""
Twisted's epoll reactor, made for packets: without a logging context around each, and awake between those that
follow one another closely.

Twisted puts the name of a descriptor into a context while it works, for the log, and looks at the descriptor
before and after: a dozen calls in Python, a fifth of what an idle tunnel adds to a ping. A `PacketReader`
does without, and everything else is treated as ever.

A process that sleeps takes tens of microseconds to wake, and finds its caches cold. So where packets go to
and fro, which `OFTEN` events in a row show, waited for no longer than `BUSY_POLL`, each at another descriptor
than the one before, the reactor stays awake for that time after each. What comes one way alone is not served
sooner by that, and a stranger can send it.

An attempt fails if nothing came in that time, or somebody else had the core for as long: it is offered over
and over. Then the reactor sleeps as ever, each time for twice as long, until attempts have `PAID`: in vain
they cost next to nothing, and a neighbour who computes has the core. And it sleeps for a while after bulk,
which keeps it busy enough.

Who wants another reactor has it with `twistd -r`.
"""

import sys
from collections.abc import Sequence
from os import sched_yield
from time import perf_counter
from typing import Any

from twisted.internet.epollreactor import EPOLLIN, EPollReactor
from twisted.internet.main import installReactor
from twisted.python import log

#: Seconds to stay awake: a round trip through a tunnel on a network without delay, while all still sleep.
BUSY_POLL = 0.0003
#: How many events in a row must have come as soon as that.
OFTEN = 4
#: How many in a row make up for a failure: sleep and waking would have cost as much CPU time.
PAID = 16
#: Seconds of sleep after many failures: so an attempt in vain each time is a third of a per cent of a core.
LONGEST_REST = 0.1
#: Seconds without bulk until it is tried again.
QUIET = 0.01
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
    _events: Sequence[tuple[int, int]] = ()
    _rest = BUSY_POLL
    _resting_until = _quiet_from = 0.0

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events and deal with them; as that of the base, but for packets."""
        most = len(self._selectables)
        began = perf_counter()
        quiet = began > self._quiet_from
        awake = quiet and self._soon >= OFTEN and began > self._resting_until and timeout != 0
        events = self._busy_poll(began + BUSY_POLL, most) if awake else None
        if not events:
            events = self._poller.poll(-1 if timeout is None else timeout, most)
        waited = perf_counter() - began
        if waited < BUSY_POLL and events != self._events:
            # What came to a sleeper pays for nothing.
            self._soon += awake or self._soon < OFTEN
        else:
            if awake:
                self._fail(began + waited)
            self._soon = 0
        self._events = events
        for descriptor, event in events:
            selectable = self._selectables.get(descriptor)
            if event == EPOLLIN and isinstance(selectable, PacketReader):
                selectable.single = quiet and waited > PAUSE
                selectable.doRead()
                if selectable.bulk:
                    self._quiet_from = began + waited + QUIET
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)

    def _busy_poll(self, end: float, most: int) -> list[tuple[int, int]]:
        """Return the next events; none if it was in vain."""
        poll = self._poller.poll
        while perf_counter() < end:
            sched_yield()
            if events := poll(0, most):
                return list(events)
        return []

    def _fail(self, now: float) -> None:
        """Rest, as nothing came soon though it was awaited awake."""
        self._rest = BUSY_POLL if self._soon >= PAID else min(2 * self._rest, LONGEST_REST)
        self._resting_until = now + self._rest

    doIteration = doPoll


def installed() -> Any:
    """Return the reactor of this process: the one that was chosen, else a `PacketReactor`."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(PacketReactor())
    return sys.modules["twisted.internet.reactor"]
