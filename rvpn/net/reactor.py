"""
Twisted's epoll reactor, made for packets: without a logging context around each, and awake between those that
follow one another closely.

Twisted puts the name of a descriptor into a context while it works, for the log, and looks at the descriptor
before and after: a dozen calls in Python, a fifth of what an idle tunnel adds to a ping. A `PacketReader`
does without, and everything else is treated as ever.

A process that sleeps takes tens of microseconds to wake, and finds its caches cold. So the reactor stays
awake for `BUSY_POLL` after a packet if the last one was waited for no longer than that, giving its core to
whoever else wants it. One vain attempt ends that, and so does bulk, which keeps it busy enough.

Who wants another reactor has it with `twistd -r`.
"""

import sys
from os import sched_yield
from time import perf_counter
from typing import Any

from twisted.internet.epollreactor import EPOLLIN, EPollReactor
from twisted.internet.main import installReactor
from twisted.python import log

#: Seconds to stay awake: half a round trip through a tunnel on a network without delay.
BUSY_POLL = 0.0002
#: Seconds after bulk until that, and until a packet is taken for the only one.
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

    _waited = BUSY_POLL
    _bulk_at = 0.0

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events and deal with them; as that of the base, but for packets."""
        most = len(self._selectables)
        began = perf_counter()
        quiet = began - self._bulk_at > QUIET
        awake = quiet and self._waited < BUSY_POLL and timeout != 0
        events = self._busy_poll(began + BUSY_POLL, most) if awake else None
        if not events:
            events = self._poller.poll(-1 if timeout is None else timeout, most)
        self._waited = waited = perf_counter() - began
        for descriptor, event in events:
            selectable = self._selectables.get(descriptor)
            if event == EPOLLIN and isinstance(selectable, PacketReader):
                selectable.single = quiet and waited > PAUSE
                selectable.doRead()
                if selectable.bulk:
                    self._bulk_at = began + waited
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)

    def _busy_poll(self, end: float, most: int) -> list[tuple[int, int]]:
        """Return the next events; none if there are none until `end`."""
        poll = self._poller.poll
        events: list[tuple[int, int]] = []
        while not events and perf_counter() < end:
            sched_yield()
            events = poll(0, most)
        return events

    doIteration = doPoll


def installed() -> Any:
    """Return the reactor of this process: the one that was chosen, else a `PacketReactor`."""
    if "twisted.internet.reactor" not in sys.modules:
        installReactor(PacketReactor())
    return sys.modules["twisted.internet.reactor"]
