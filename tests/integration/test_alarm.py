"""The alarm on a real clock: on time, once, again when set again, whatever the ringing does."""

import os

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from rvpn.net.alarm import Alarm, now

#: Seconds that are long enough for a late ring to show on a busy machine.
SOON, LATER = 0.02, 0.06


class AlarmTests(TestCase):
    """An `Alarm` in the reactor."""

    timeout = 10

    def setUp(self) -> None:
        """Make an alarm that notes when it rang."""
        self.rung: list[float] = []
        self.heard: Deferred[None] = Deferred()
        self.failing = False
        self.again: float | None = None
        self.alarm = Alarm(self.ring, reactor)
        self.addCleanup(self.alarm.close)

    def ring(self) -> None:
        """Note the time, set the alarm once more or fail if the test says so."""
        self.rung.append(now())
        heard, self.heard = self.heard, Deferred()
        reactor.callLater(0, heard.callback, None)
        again, self.again = self.again, None
        if again is not None:
            self.alarm.set(again)
        if self.failing:
            raise RuntimeError("the bell is broken")

    async def test_on_time_and_once(self) -> None:
        """It rings when its time has come, not before, and then not again."""
        due = now() + SOON
        self.alarm.set(due)
        await self.heard
        await deferLater(reactor, SOON)
        (rung,) = self.rung
        self.assertGreaterEqual(rung, due)
        self.assertLess(rung, due + 1)

    async def test_past(self) -> None:
        """A time that has passed rings at once, even the beginning of the clock."""
        for when in now() - 100, 0.0, -1.0:
            self.alarm.set(when)
            await self.heard
        self.assertEqual(len(self.rung), 3)

    async def test_set_while_ringing(self) -> None:
        """What it rings for may set it again, to the same time too."""
        self.again = now() + SOON
        self.alarm.set(self.again)
        await self.heard
        await self.heard
        self.assertEqual(len(self.rung), 2)

    async def test_moved(self) -> None:
        """The time set last counts: earlier, later, or none."""
        start = now()
        self.alarm.set(start + 100)
        self.alarm.set(start + SOON)
        await self.heard
        self.alarm.set(now() + SOON)
        self.alarm.set(start + 100)
        await deferLater(reactor, LATER)
        self.alarm.set(now() + SOON)
        self.alarm.set(None)
        await deferLater(reactor, LATER)
        self.assertEqual(len(self.rung), 1)

    async def test_put_off_when_due(self) -> None:
        """An alarm that is due, but put off before the reactor comes to it, does not ring."""
        self.alarm.set(now() - 1)
        self.alarm.set(now() + 100)
        self.alarm.doRead()
        self.assertEqual(self.rung, [])

    async def test_failing_ring(self) -> None:
        """An exception is logged, and the alarm can be set again."""
        self.failing = True
        self.alarm.set(now())
        await self.heard
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.alarm.set(now())
        await self.heard
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_closed(self) -> None:
        """After `close`, which may come twice, it never rings, and to set it does nothing."""
        descriptor = self.alarm.fileno()
        self.alarm.set(now() + SOON)
        self.alarm.close()
        self.assertRaises(OSError, os.fstat, descriptor)
        self.alarm.close()
        self.alarm.set(now())
        await deferLater(reactor, LATER)
        self.assertEqual((self.rung, self.alarm.fileno()), ([], -1))

    async def test_end_of_the_reactor(self) -> None:
        """A reactor that ends closes it."""
        self.alarm.connectionLost(Failure(ConnectionError()))
        self.assertEqual(self.alarm.fileno(), -1)
