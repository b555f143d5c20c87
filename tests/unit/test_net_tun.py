"""The TUN port around a device in memory: what it delivers, how often, and what ends it."""

import errno
from collections import deque
from typing import Any, cast

from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import LocalError
from rvpn.net.tun import READS_PER_WAKEUP, TunDevice, TunPort


class FakeDevice(TunDevice):
    """Packets wait in `waiting`; what is written is in `written`; `broken` is raised by both directions."""

    def __init__(self, name: str) -> None:
        self.name, self.index = name, 7
        self.waiting: deque[bytes] = deque()
        self.written: list[bytes] = []
        self.broken: OSError | None = None
        self._descriptor = -1

    def read(self, buffer: memoryview) -> int:
        """Take the first packet that waits."""
        if self.broken:
            raise self.broken
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "nothing waits")
        packet = self.waiting.popleft()
        buffer[: len(packet)] = packet
        return len(packet)

    def write(self, packet: bytes | memoryview) -> None:
        """Remember the packet."""
        if self.broken:
            raise self.broken
        self.written.append(bytes(packet))


class FakeReactor:
    """Knows its readers."""

    def __init__(self) -> None:
        self.readers: set[object] = set()

    def addReader(self, reader: object) -> None:
        """Add a reader."""
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:
        """Remove a reader."""
        self.readers.discard(reader)


class Receiver:
    """Remembers what it is told; fails on packets that say so."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.losses: list[Failure] = []

    def packetReceived(self, packet: memoryview) -> None:
        """Take a packet."""
        self.packets.append(bytes(packet))
        if bytes(packet) == b"fail":
            raise ValueError("as asked")

    def deviceLost(self, reason: Failure) -> None:
        """Take the bad news."""
        self.losses.append(reason)


class TunPortTests(SynchronousTestCase):
    """One port that reads."""

    def setUp(self) -> None:
        self.receiver, self.reactor = Receiver(), FakeReactor()
        reactor = cast(IReactorFDSet, self.reactor)
        self.port = TunPort("rvpn0", self.receiver, reactor, FakeDevice)
        self.device = cast(Any, self.port)._device
        self.port.startReading()

    def test_delivers_packets_as_they_are(self) -> None:
        """Each packet comes alone, in order, at its length."""
        self.device.waiting += [b"first packet", b"second"]
        self.port.doRead()
        self.assertEqual(self.receiver.packets, [b"first packet", b"second"])

    def test_bounded(self) -> None:
        """A wake-up ends after so many packets, however many wait, so that timers keep their deadlines."""
        self.device.waiting += [b"x"] * (READS_PER_WAKEUP + 1)
        self.port.doRead()
        self.assertEqual(len(self.device.waiting), 1)

    def test_failing_receiver(self) -> None:
        """An exception is logged, the rest is delivered, and the reader stays."""
        self.device.waiting += [b"fail", b"after"]
        self.port.doRead()
        self.assertEqual(self.receiver.packets, [b"fail", b"after"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertIn(self.port, self.reactor.readers)

    def test_broken_device(self) -> None:
        """A read that fails ends the port: the receiver is told why, and the reactor lets go."""
        self.device.broken = OSError(errno.EBADFD, "File descriptor in bad state")
        self.port.doRead()
        (loss,) = self.receiver.losses
        self.assertIsNotNone(loss.check(LocalError))
        self.assertEqual(self.reactor.readers, set())

    def test_reactor_loses_device(self) -> None:
        """When the reactor finds the device gone the receiver is told, in words that name it."""
        self.port.connectionLost(Failure(CONNECTION_DONE))
        (loss,) = self.receiver.losses
        self.assertIn("rvpn0", loss.getErrorMessage())

    def test_write(self) -> None:
        """A packet is handed over whole; one that the kernel refuses is told by the result."""
        self.assertTrue(self.port.write(memoryview(b"packet")))
        self.device.broken = OSError(errno.EIO, "Input/output error")
        self.assertFalse(self.port.write(b"lost"))
        self.assertEqual(self.device.written, [b"packet"])

    def test_stopped_in_the_middle(self) -> None:
        """A receiver that stops the reading gets no further packet."""
        self.receiver.packetReceived = lambda packet: self.port.stopReading()  # type: ignore[method-assign]
        self.device.waiting += [b"one", b"two"]
        self.port.doRead()
        self.assertEqual(list(self.device.waiting), [b"two"])
        self.assertEqual(self.reactor.readers, set())
