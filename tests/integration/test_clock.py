"""
Time that passed without us, on real clocks: a stopped process, and what a machine's sleep would look like.
"""

import os
import signal
import sys
import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from rvpn.net.clock import SHORTEST_SLEEP, SHORTEST_STALL, TICK, SleepWatch, StallWatch, suspended

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
from twisted.internet import reactor
from rvpn.net.clock import SleepWatch, StallWatch

def tell(what):
    return lambda seconds: print(what, seconds, flush=True)

watches = SleepWatch(tell("sleep"), reactor), StallWatch(tell("stall"), reactor)
reactor.callWhenRunning(print, "ready", flush=True)
reactor.run()
"""


class Child(ProcessProtocol):
    """A process with both watches; `line` fires with each line that it prints."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._rest = ""
        self.line: Deferred[str] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        """Pass on whole lines."""
        *lines, self._rest = (self._rest + data.decode()).split("\n")
        for line in lines:
            self.lines.append(line)
            fired, self.line = self.line, Deferred()
            fired.callback(line)

    def processEnded(self, reason: Failure) -> None:
        """Tell that it has ended."""
        self.ended.callback(None)


class StallTests(TestCase):
    """A process that stands still."""

    timeout = 20

    async def stop(self) -> None:
        """End the child, stopped or not."""
        if self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGKILL)
        await self.child.ended

    async def test_stopped(self) -> None:
        """SIGSTOP and SIGCONT: the time between is reported, to a tick, as a stall and not as a sleep."""
        self.child = Child()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = reactor.spawnProcess(
            self.child, sys.executable, [sys.executable, "-c", CHILD], environment
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop()))
        self.assertEqual(await self.child.line, "ready")
        await deferLater(reactor, 2 * TICK)
        os.kill(self.process.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        await deferLater(reactor, SHORTEST_STALL + 2 * TICK)
        heard = self.child.line
        os.kill(self.process.pid, signal.SIGCONT)
        stood_still = time.monotonic() - stopped_at
        what, seconds = (await heard).split()
        self.assertEqual(what, "stall")
        self.assertLess(abs(float(seconds) - stood_still), 2 * TICK)
        await deferLater(reactor, 2 * TICK)
        self.assertEqual(self.child.lines, ["ready", f"{what} {seconds}"])

    async def test_short(self) -> None:
        """What a busy reactor misses is no stall."""
        jumps: list[float] = []
        watch = StallWatch(jumps.append, reactor)
        self.addCleanup(watch.close)
        time.sleep(SHORTEST_STALL / 2)
        await deferLater(reactor, 2 * TICK)
        self.assertEqual(jumps, [])


class SleepTests(TestCase):
    """A machine that sleeps. To put this one to sleep is too much for a test, so the two clocks are faked."""

    timeout = 10

    def setUp(self) -> None:
        """Watch a machine that has slept for 100 seconds since it started."""
        self.slept = 100.0
        self.jumps: list[float] = []
        self.watch = SleepWatch(self.jumps.append, reactor, lambda: self.slept)
        self.addCleanup(self.watch.close)

    def wake(self, slept: float) -> None:
        """Come back from a sleep: the descriptor becomes readable."""
        self.slept += slept
        self.watch.doRead()

    async def test_sleep(self) -> None:
        """Each sleep is reported once, with its length."""
        for seconds in SHORTEST_SLEEP, 3600.0:
            self.wake(seconds)
            self.wake(0.0)
        self.assertEqual(self.jumps, [SHORTEST_SLEEP, 3600.0])

    async def test_time_of_day(self) -> None:
        """That the time of day was set is no sleep, nor is the difference of two readings."""
        self.wake(0.0)
        self.wake(1e-5)
        self.wake(-1e-5)
        self.assertEqual(self.jumps, [])

    async def test_idle(self) -> None:
        """R9: while nothing happens nothing wakes the process; the kernel wakes it if the clock is set."""
        woken: list[None] = []
        self.watch.doRead = lambda: woken.append(None)  # type: ignore[method-assign]  # counts
        await deferLater(reactor, 0.1)
        self.assertEqual(woken, [])
        known = Path(f"/proc/self/fdinfo/{self.watch.fileno()}").read_text()
        fields = dict(line.split(": ", 1) for line in known.splitlines() if ": " in line)
        self.assertEqual(fields["clockid"], str(time.CLOCK_REALTIME))
        self.assertEqual(fields["settime flags"], "03")
        self.assertGreater(int(fields["it_value"].strip("()").split(",")[0]), 10**9)

    async def test_failing_receiver(self) -> None:
        """An exception of the receiver is logged, and the watch goes on."""

        def fail(seconds: float) -> None:
            raise RuntimeError("not today")

        self.watch._jumped = fail
        self.wake(1.0)
        self.watch._jumped = self.jumps.append
        self.wake(2.0)
        self.assertEqual(self.jumps, [2.0])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_real_clocks(self) -> None:
        """
        The clocks say how long this machine slept since it started: not negative, and the same a moment
        later.
        """
        before = suspended()
        self.assertGreater(before, -1e-3)
        self.assertAlmostEqual(suspended(), before, places=2)
