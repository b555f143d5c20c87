"""The TUN port around a device in memory: what it delivers, how often, and what ends it."""

import errno
from collections import deque
from typing import Any, cast

from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import LocalError
from rvpn.interfaces import PacketBatch
from rvpn.net.offloads import IN_USE, OFF
from rvpn.net.tun import BYTES_PER_WAKEUP, LARGEST_READ, PACKETS_PER_WAKEUP, TunDevice, TunPort


class FakeDevice(TunDevice):
    """Packets wait in `waiting`; what is written is in `written`; `broken` is raised by both directions."""

    def __init__(self, name: str, offload: bool) -> None:
        self.name, self.index = name, 7
        self.offloads = {"checksum": IN_USE if offload else OFF}
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
        self.wakeups: list[list[bytes]] = []
        self.losses: list[Failure] = []

    def packetsReceived(self, packets: PacketBatch) -> None:
        """Take packets."""
        assert packets.taken == 0
        self.wakeups.append([bytes(packets.view[start:end]) for start, end in packets.spans])
        if b"fail" in self.wakeups[-1]:
            raise ValueError("as asked")

    def deviceLost(self, reason: Failure) -> None:
        """Take the bad news."""
        self.losses.append(reason)


class TunPortTests(SynchronousTestCase):
    """One port that reads."""

    def setUp(self) -> None:
        self.receiver, self.reactor = Receiver(), FakeReactor()
        reactor = cast(IReactorFDSet, self.reactor)
        self.port = TunPort("rvpn0", self.receiver, reactor, True, FakeDevice)
        self.device = cast(Any, self.port)._device
        self.port.startReading()

    def test_delivers_packets_as_they_are(self) -> None:
        """All that wait come at once, in order, each at its length, and none of them a second time."""
        self.device.waiting += [b"first packet", b"second"]
        self.port.doRead()
        self.device.waiting += [b"third"]
        self.port.doRead()
        self.assertEqual(self.receiver.wakeups, [[b"first packet", b"second"], [b"third"]])

    def test_nothing_waits(self) -> None:
        """A wake-up for nothing is no batch."""
        self.port.doRead()
        self.assertEqual(self.receiver.wakeups, [])

    def test_bounded_in_packets(self) -> None:
        """A wake-up ends after so many packets, however many wait, so that timers keep their deadlines."""
        self.device.waiting += [b"x"] * (PACKETS_PER_WAKEUP + 1)
        self.port.doRead()
        self.assertEqual(len(self.device.waiting), 1)

    def test_bounded_in_bytes(self) -> None:
        """A wake-up ends when super-packets bring it to so many bytes; the largest always has room."""
        self.device.waiting += [bytes(BYTES_PER_WAKEUP // 4 - 1)] * 4 + [bytes(LARGEST_READ)] * 2
        self.port.doRead()
        self.assertEqual([len(packet) for packet in self.device.waiting], [LARGEST_READ])

    def test_bounded_by_small_ones(self) -> None:
        """Small packets behind super-packets end a wake-up too, before the largest would have no room."""
        self.device.waiting += [bytes(BYTES_PER_WAKEUP // 4 - 1000)] * 4 + [bytes(3000)] * 9
        self.port.doRead()
        self.assertEqual(len(self.device.waiting), 7)

    def test_failing_receiver(self) -> None:
        """An exception is logged, what comes next is delivered, and the reader stays."""
        for packet in b"fail", b"after":
            self.device.waiting.append(packet)
            self.port.doRead()
        self.assertEqual(self.receiver.wakeups, [[b"fail"], [b"after"]])
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
        """Packets are handed over whole, each behind its header; those that the kernel refuses count."""
        batch = PacketBatch(100)
        for packet in b"one", b"three":
            batch.buffer[batch.length : batch.length + len(packet)] = packet
            batch.add(len(packet))
        self.assertEqual(self.port.write(batch), 0)
        self.assertEqual(self.device.written, [b"one", b"three"])
        self.device.broken = OSError(errno.EIO, "Input/output error")
        self.assertEqual(self.port.write(batch), 2)
        self.assertEqual(self.port.refusals, {"packet EIO": 2})

    def test_write_packet(self) -> None:
        """A packet of our own has nothing left to do for the kernel, and its header says so."""
        self.assertTrue(self.port.writePacket(b"packet"))
        self.assertEqual(self.device.written, [bytes(10) + b"packet"])
        self.device.broken = OSError(errno.EINVAL, "Invalid argument")
        self.assertFalse(self.port.writePacket(b"lost"))

    def test_stopped(self) -> None:
        """What a receiver leaves in the batch stays there while the reading is stopped."""
        self.port.stopReading()
        self.assertEqual(self.reactor.readers, set())
