"""The reactor of the services: packets by a short way, everything else by Twisted's."""

import functools
import itertools
import os
import subprocess
import sys

from twisted.internet.interfaces import IReadDescriptor
from twisted.python import context, log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rvpn.net.reactor import PacketReactor, PacketReader


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
