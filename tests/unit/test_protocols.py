"""How the tunnel's protocol deals with a full socket: its node and transport obey the test."""

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any, TypeVarTuple, cast

from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import DropReason
from rvpn.interfaces import Action, DatagramBatch, Endpoint, PacketBatch, Path
from rvpn.service.protocols import TunnelProtocol
from tests.unit.simulation import batch_of

PATH = Path(Endpoint(ip_address("192.0.2.9"), 4500))


class FakeNode:
    """Seals two packets at a time: each becomes a datagram of its bytes. One called `fail` is too much."""

    def outbound(self, packets: PacketBatch, datagrams: DatagramBatch, _now: float) -> list[Action]:
        """Seal."""
        datagrams.clear()
        for start, end in packets.spans[packets.taken :][:2]:
            packets.taken += 1
            packet = packets.view[start:end]
            datagrams.view[datagrams.length : datagrams.length + len(packet)] = packet
            datagrams.add(PATH, len(packet), len(packet))
            if bytes(packet) == b"fail":
                raise ValueError("as asked")
        return []

    def drop(self, _reason: DropReason, count: int = 1) -> None:
        """Drop none."""
        assert not count


class FakeTransport:
    """Has room for so many datagrams."""

    def __init__(self) -> None:
        self.room = 100
        self.sent: list[bytes] = []

    def send(self, batch: DatagramBatch) -> int:
        """Send what there is room for."""
        while batch.runs and self.room:
            self.room -= 1
            run = batch.runs.pop(0)
            self.sent.append(bytes(batch.view[run.start : run.end]))
        return 0


Ts = TypeVarTuple("Ts")


class FakeShell:
    """Knows whether the TUN device is read."""

    def __init__(self) -> None:
        self.node = FakeNode()
        self.reading = True

    def perform(self, calculation: Callable[[*Ts, float], Iterable[Action]], *arguments: *Ts) -> None:
        """Calculate."""
        calculation(*arguments, 0.0)

    def hold(self) -> None:
        """Stop reading."""
        self.reading = False

    def release(self) -> None:
        """Read again."""
        self.reading = True


class FullSocketTests(SynchronousTestCase):
    """Five packets."""

    packets = (b"one", b"two", b"three", b"four", b"five")

    def setUp(self) -> None:
        self.shell, self.transport = FakeShell(), FakeTransport()
        self.protocol = TunnelProtocol(cast(Any, self.shell))
        self.protocol.transport = cast(Any, self.transport)

    def receive(self, *packets: bytes) -> None:
        """Let packets come from the TUN device."""
        self.protocol.seal(batch_of(*packets), 0.0)

    def test_all_at_once(self) -> None:
        """As long as there is room the TUN device goes on being read."""
        self.receive(*self.packets)
        self.assertEqual(self.transport.sent, [*self.packets])
        self.assertTrue(self.shell.reading)

    def test_nothing_is_lost(self) -> None:
        """Wherever the socket is full, the rest is sent later, once and in order, and then more is read."""
        for room in range(5):
            self.setUp()
            self.transport.room = room
            self.receive(*self.packets)
            self.assertFalse(self.shell.reading)
            for _ in range(room, 5):
                self.assertFalse(self.shell.reading)
                self.transport.room = 1
                self.protocol.sendingResumed()
            self.assertEqual(self.transport.sent, [*self.packets])
            self.assertTrue(self.shell.reading)

    def test_room_for_others(self) -> None:
        """Nothing waits when a socket that was full of other things has room."""
        self.protocol.sendingResumed()
        self.assertEqual(self.transport.sent, [])

    def test_failure_while_it_waits(self) -> None:
        """What cannot be sealed after a wait does not keep the TUN device from being read."""
        self.transport.room = 1
        self.receive(b"one", b"two", b"fail")
        self.transport.room = 100
        self.assertRaises(ValueError, self.protocol.sendingResumed)
        self.assertTrue(self.shell.reading)
        self.receive(b"next")
        self.assertEqual(self.transport.sent[-1], b"next")
        self.assertTrue(self.shell.reading)
