"""The reactor of the services: packets by a short way, everything else by Twisted's."""

import functools
import itertools
import os
import select
import subprocess
import sys
from collections.abc import Iterator

from twisted.internet.interfaces import IReadDescriptor
from twisted.python import context, log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rvpn.net import reactor
from rvpn.net.reactor import (
    BUSY_POLL,
    LONGEST_REST,
    OFTEN,
    PAID,
    PAUSE,
    QUIET,
    PacketReactor,
    PacketReader,
)

SOON, LATE = BUSY_POLL / 2, BUSY_POLL * 10


@implementer(IReadDescriptor)
class Other:
    """One end of a pipe, which remembers in which log context it was read, or why it was closed."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.systems: list[object] = []
        self.reasons: list[Failure] = []

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.descriptor

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return "pipe"

    def doRead(self) -> None:
        """Read."""
        os.read(self.descriptor, 1)
        self.systems.append(context.get(log.ILogContext)["system"])

    def connectionLost(self, reason: Failure) -> None:
        """Remember it."""
        self.reasons.append(reason)


class Packets(PacketReader, Other):
    """A pipe of packets."""

    doRead = Other.doRead


class PacketReactorTests(SynchronousTestCase):
    """A reactor of the test's own, and two pipes."""

    def setUp(self) -> None:
        self.reactor = PacketReactor()
        self.addCleanup(self.reactor._poller.close)
        for waker in self.reactor._internalReaders:
            self.addCleanup(waker.connectionLost, Failure(ConnectionError()))
        self.packets, self.feed = self.pipe(Packets)
        self.other, self.other_feed = self.pipe(Other)

    def pipe(self, kind: type[Other]) -> tuple[Other, int]:
        """Let the reactor read a new pipe; return its ends."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        reader = kind(reading)
        self.reactor.addReader(reader)
        return reader, writing

    def test_reading(self) -> None:
        """Both are read when something is there; only for the other is there a name in the log's context."""
        for feed in self.feed, self.other_feed:
            os.write(feed, b"x")
        self.reactor.doPoll(1.0)
        self.assertEqual(len(self.packets.systems), 1)
        self.assertNotEqual(self.packets.systems, ["pipe"])
        self.assertEqual(self.other.systems, ["pipe"])
        self.reactor.doPoll(0.0)
        self.assertEqual((len(self.packets.systems), len(self.other.systems)), (1, 1))

    def test_end(self) -> None:
        """A descriptor that ends is told so, whichever it is, and is read no more."""
        for feed in self.feed, self.other_feed:
            os.close(feed)
        self.reactor.doPoll(1.0)
        self.assertEqual((len(self.packets.reasons), len(self.other.reasons)), (1, 1))
        for reader in self.packets, self.other:
            self.assertNotIn(reader, self.reactor.getReaders())

    def test_removed_meanwhile(self) -> None:
        """Who was removed by an event is not read for one that came with it."""
        for feed in self.feed, self.other_feed:
            os.write(feed, b"x")
        pipes = self.packets, self.other
        for first, second in itertools.permutations(pipes):
            self.patch(first, "doRead", functools.partial(self.reactor.removeReader, second))
        self.reactor.doPoll(1.0)
        self.assertEqual(sum(pipe in self.reactor.getReaders() for pipe in pipes), 1)

    def test_choice(self) -> None:
        """The services have it, unless somebody chose another one."""
        ask = "import rvpn.tap; from twisted.internet import reactor; print(type(reactor).__name__)"
        other = "from twisted.internet import pollreactor; pollreactor.install(); "
        for program, expected in (ask, "PacketReactor"), (other + ask, "PollReactor"):
            answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
            self.assertEqual(answer.stdout.decode().strip(), expected)


class FakePoller:
    """A poller that has events at given times of its own clock, on which each call takes a microsecond."""

    def __init__(self) -> None:
        self.now = 1.0
        self.events: list[tuple[float, int]] = []
        self.slept: list[float] = []
        self.others = 0.0

    def let_others(self) -> None:
        """Let the other processes of this core run."""
        self.now += self.others

    def clock(self) -> float:
        """Return the time in seconds."""
        self.now += 1e-6
        return self.now

    def poll(self, timeout: float, _most: int) -> list[tuple[int, int]]:
        """Return an event of some descriptor, after sleeping until there is one."""
        due, descriptor = self.events[0] if self.events else (self.now + timeout, -1)
        if timeout:
            self.slept.append(self.now)
            self.now = max(self.now, due)
        if self.events and due <= self.now:
            del self.events[0]
            return [(descriptor, select.EPOLLIN)]
        return []


class Reader(PacketReader):
    """A reader that remembers whether it was told to read once, and finds `bulk`."""

    def __init__(self) -> None:
        self.singles: list[bool] = []

    def doRead(self) -> None:
        """Read."""
        self.singles.append(self.single)


class BusyPollTests(SynchronousTestCase):
    """A reactor with a clock and a poller of the test's own."""

    def setUp(self) -> None:
        self.reactor = PacketReactor()
        self.reactor._poller.close()
        for waker in self.reactor._internalReaders:
            self.addCleanup(waker.connectionLost, Failure(ConnectionError()))
        self.poller, self.reader = FakePoller(), Reader()
        self.reactor._poller = self.poller
        self.reactor._selectables = {0: self.reader, 1: self.reader}
        self.to_and_fro = itertools.cycle((0, 1))
        self.patch(reactor, "perf_counter", self.poller.clock)
        self.patch(reactor, "sched_yield", self.poller.let_others)

    def sleeps(self, *pauses: float, descriptors: Iterator[int] | None = None) -> list[bool]:
        """
        Return, for packets with these pauses before them, whether the reactor slept until they came.

        They go to and fro, unless `descriptors` says where each comes.
        """
        slept = []
        for pause in pauses:
            before = len(self.poller.slept)
            self.poller.events.append((self.poller.now + pause, next(descriptors or self.to_and_fro)))
            self.reactor.doPoll(None)
            slept.append(len(self.poller.slept) > before)
        return slept

    def rests(self) -> float:
        """Let a packet that is awaited awake come late; return for how many seconds it sleeps then."""
        self.assertEqual(self.sleeps(SOON), [False])
        self.sleeps(LATE)
        began = self.poller.now
        while self.sleeps(SOON) == [True]:
            pass
        return self.poller.now - began

    def test_awake(self) -> None:
        """After packets that came soon the next is awaited awake, until one does not come soon."""
        self.assertEqual(
            self.sleeps(LATE, *[SOON] * OFTEN, *[SOON] * 99), [True] * (OFTEN + 1) + [False] * 99
        )
        self.assertEqual(self.sleeps(LATE, *[SOON] * OFTEN), [True] * (OFTEN + 1))
        self.assertEqual(self.sleeps(SOON), [False])

    def test_one_way(self) -> None:
        """What comes one way, as anybody can send it, keeps nobody awake."""
        one_way = itertools.repeat(0)
        self.assertEqual(self.sleeps(*[SOON] * 100, descriptors=one_way), [True] * 100)
        self.sleeps(*[SOON] * OFTEN)
        self.assertEqual(self.sleeps(*[SOON] * 100, descriptors=one_way).count(False), 1)

    def test_pairs(self) -> None:
        """Packets in pairs never keep it awake, which would be in vain each time."""
        self.assertEqual(self.sleeps(*[BUSY_POLL / 20, BUSY_POLL * 5] * 50), [True] * 100)

    def test_rest(self) -> None:
        """It is left off for longer with each failure, up to a bound, and begins anew once it has paid."""
        until_often = (OFTEN + 2) * SOON
        self.sleeps(*[SOON] * OFTEN)
        rests = [self.rests() for _ in range(20)]
        self.assertLess(rests[0], 2 * until_often)
        for shorter, longer in itertools.pairwise(rests[2:]):
            self.assertGreaterEqual(longer, min(1.5 * shorter, LONGEST_REST))
        self.assertLess(rests[-1], LONGEST_REST + until_often)
        self.sleeps(*[SOON] * PAID)
        self.assertLess(self.rests(), 2 * until_often)

    def test_core_taken(self) -> None:
        """Who wants the core gets it, and has it to itself nearly all the time then, until he leaves."""
        self.sleeps(*[SOON] * OFTEN)
        self.poller.others = LATE
        seconds = 1.0
        awake = self.sleeps(*[SOON] * int(seconds / SOON)).count(False)
        self.assertLess(awake, 2 * seconds / LONGEST_REST)
        self.poller.others = 0.0
        self.sleeps(*[SOON] * int(LONGEST_REST / SOON + 1))
        self.assertEqual(self.sleeps(*[SOON] * 99), [False] * 99)

    def test_bulk(self) -> None:
        """For a while after bulk nobody stays awake."""
        self.assertEqual(self.sleeps(*[SOON] * OFTEN, SOON), [True] * OFTEN + [False])
        self.reader.bulk = True
        self.assertEqual(self.sleeps(SOON, SOON, SOON), [False, True, True])
        self.reader.bulk = False
        self.assertEqual(self.sleeps(*[SOON] * int(QUIET / SOON / 2)).count(False), 0)
        self.sleeps(QUIET)
        self.assertEqual(self.sleeps(*[SOON] * OFTEN, SOON)[-1], False)

    def test_timers(self) -> None:
        """What is due at once does not wait, and what is due later waits no longer for it than that."""
        for timeout, late in (0.0, BUSY_POLL / 10), (BUSY_POLL * 4, BUSY_POLL * 2):
            self.sleeps(*[SOON] * (OFTEN + PAID))
            before = self.poller.now
            self.reactor.doPoll(timeout)
            self.assertLess(self.poller.now - before, timeout + late)

    def test_single(self) -> None:
        """Only a packet after a pause is taken for the only one."""
        self.sleeps(1.0, PAUSE / 2, 2 * PAUSE, 0.0)
        self.assertEqual(self.reader.singles, [True, False, True, False])
