"""Echo requests on a real LAN, and how soon a gateway notices that its target is gone (R14)."""

import os
import time
from collections.abc import Iterable
from ipaddress import ip_address

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs

from rvpn.agenda import Agenda
from rvpn.constants import PROBE_TRIES
from rvpn.gateway.lanwatch import LanWatch
from rvpn.interfaces import Action, IPAddress, Probe
from rvpn.lab.namespaces import inside
from rvpn.net.alarm import Alarm, now
from rvpn.net.host import OUTER_MARK
from rvpn.net.netlink import Netlink, Route, Rule
from rvpn.net.probe import Prober
from tests.integration.namespaces import Namespace, NamespaceTestCase, until

TARGET4, TARGET6 = ip_address("10.0.0.2"), ip_address("fd00::2")
BEHIND = ip_address("10.7.0.1")
#: Seconds after which nothing more is expected.
QUIET = 0.05


class ProbeTestCase(NamespaceTestCase):
    """A prober `here` on lan0, and a target on the same LAN."""

    def setUp(self) -> None:
        super().setUp()
        self.lan = Namespace(self)
        self.here.connect("lan0", self.lan, "lan0")
        self.here.address("lan0", "10.0.0.1/24", "fd00::1/64")
        self.lan.address("lan0", "10.0.0.2/24", "fd00::2/64")
        self.answers: list[tuple[IPAddress, int]] = []
        self.failing = False

    def prober(self, interface: str | None = "lan0") -> Prober:
        """Make a prober."""
        prober = Prober(interface, self, reactor, OUTER_MARK)
        self.addCleanup(prober.close)
        return prober

    def probeAnswered(self, target: IPAddress, sequence: int) -> None:
        """Remember the answer."""
        self.answers.append((target, sequence))
        if self.failing:
            raise RuntimeError("not today")


class ProberTests(ProbeTestCase):
    """`Prober` alone."""

    async def asked(self, prober: Prober, target: IPAddress, sequence: int) -> bool:
        """Send a request and return whether it was answered."""
        prober.send(target, sequence)
        return await until(lambda: (target, sequence) in self.answers, 1)

    async def test_answers(self) -> None:
        """Targets of both IP versions answer, one after the other, bound to the LAN interface or not."""
        for first, interface in (1, "lan0"), (0xFFFD, None):
            prober = self.prober(interface)
            for sequence, target in enumerate((TARGET4, TARGET6, TARGET4), start=first):
                self.assertTrue(await self.asked(prober, target, sequence), target)
        await deferLater(reactor, QUIET)
        self.assertEqual(len(self.answers), 6)

    async def test_link_local(self) -> None:
        """A link-local address is enough, as the interface is known."""
        with self.lan.kernel() as kernel:
            (found,) = [a for a in kernel.get_addr(family=10, scope=253) if a["index"] != 1]
        self.assertTrue(await self.asked(self.prober(), ip_address(found.get("address")), 1))

    def put_behind_router(self) -> None:
        """Have the target be the router to another one, which no ARP reaches."""
        self.lan.sysctl("ipv4/conf/all/arp_ignore", "1")
        self.lan.address("lo", f"{BEHIND}/32")
        self.here.route(f"{BEHIND}/32", str(TARGET4))

    async def test_behind_a_router(self) -> None:
        """A target behind a router of the LAN answers too."""
        self.put_behind_router()
        self.assertTrue(await self.asked(self.prober(), BEHIND, 1))

    async def test_interface(self) -> None:
        """A target that is reached by another interface than the LAN's is not reached."""
        self.here.connect("eth0", self.lan, "eth0")
        self.here.address("eth0", "10.8.0.1/24")
        self.lan.address("eth0", "10.8.0.2/24")
        outside = ip_address("10.8.0.2")
        self.assertTrue(await self.asked(self.prober("eth0"), outside, 1))
        self.lan.sysctl("ipv4/conf/all/arp_ignore", "1")
        self.assertFalse(await self.asked(self.prober("lan0"), outside, 2))

    async def test_past_the_tunnel(self) -> None:
        """The mark leads past the routes of a client on the same host, whose tunnel covers the target."""
        netlink = Netlink()
        self.addCleanup(netlink.close)
        netlink.add_route(Route(f"{BEHIND}/32", 999, "unreachable", 1))
        netlink.add_rule(Rule(4, 100, table=999, mark=OUTER_MARK, inverted=True))
        self.put_behind_router()
        self.assertTrue(await self.asked(self.prober(), BEHIND, 1))

    async def test_no_idle_work(self) -> None:
        """Requests of others, which every host on a LAN may send, do not wake the process."""
        prober = self.prober()
        await self.asked(prober, TARGET4, 1)
        woken: list[None] = []
        prober.doRead = lambda: woken.append(None)  # type: ignore[method-assign]  # counts
        with inside(self.lan.descriptor):
            stranger = self.prober()
            stranger.send(ip_address("10.0.0.1"), 7)
        self.assertTrue(await until(lambda: (ip_address("10.0.0.1"), 7) in self.answers))
        self.assertEqual(woken, [])

    async def test_not_ours(self) -> None:
        """Two probers on one LAN do not take each other's answers."""
        self.prober().send(TARGET4, 1)
        other = self.prober()
        self.assertTrue(await self.asked(other, TARGET4, 2))
        await deferLater(reactor, QUIET)
        self.assertEqual(sorted(self.answers), [(TARGET4, 1), (TARGET4, 2)])

    async def test_silent(self) -> None:
        """A target that is not there does not answer, and the kernel's word for it is no answer."""
        prober = self.prober()
        prober.send(ip_address("10.0.0.99"), 1)
        await deferLater(reactor, QUIET)
        self.assertEqual(self.answers, [])

    async def test_interface_comes_and_goes(self) -> None:
        """An interface that is gone, replaced or down costs answers, no more; it is logged, but once."""
        prober = self.prober()
        self.assertTrue(await self.asked(prober, TARGET4, 0))
        with self.here.kernel() as kernel:
            kernel.link("del", ifname="lan0")
        with capturedLogs() as logged:
            for sequence in 1, 2, 3:
                prober.send(TARGET4, sequence)
        self.assertEqual([event["refusal"] for event in logged], ["No such device"])
        await deferLater(reactor, QUIET)
        self.assertEqual(self.answers, [(TARGET4, 0)])
        self.here.connect("lan0", self.lan, "lan0")
        self.here.address("lan0", "10.0.0.1/24")
        self.lan.address("lan0", "10.0.0.2/24")
        self.assertTrue(await self.asked(prober, TARGET4, 4))
        with self.here.kernel() as kernel:
            kernel.link("set", ifname="lan0", state="down")
        prober.send(TARGET4, 5)
        with self.here.kernel() as kernel:
            kernel.link("set", ifname="lan0", state="up")
        self.assertTrue(await self.asked(prober, TARGET4, 6))

    async def test_failing_receiver(self) -> None:
        """An exception of the receiver is logged, and the prober goes on."""
        prober = self.prober()
        self.failing = True
        await self.asked(prober, TARGET4, 1)
        self.failing = False
        self.assertTrue(await self.asked(prober, TARGET4, 2))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_closed(self) -> None:
        """`close`, which may come twice, leaves no descriptor, and no answer comes after it."""
        prober = self.prober()
        prober.send(TARGET4, 1)
        descriptor = prober.fileno()
        prober.close()
        prober.close()
        self.assertRaises(OSError, os.fstat, descriptor)
        await deferLater(reactor, QUIET)
        self.assertEqual((self.answers, prober.fileno()), ([], -1))


class DetectionTests(ProbeTestCase):
    """`LanWatch` with `Prober` and `Alarm`, as a gateway has them."""

    interval = 0.05

    def setUp(self) -> None:
        super().setUp()
        self.agenda = Agenda()
        self.watch = LanWatch(self.agenda, self.decided)
        self.decisions: list[tuple[float, bool]] = []
        self.target = self.prober()
        self.alarm = Alarm(lambda: self.act(self.agenda.advance(now())), reactor)
        self.addCleanup(self.alarm.close)

    def decided(self, down: bool, reason: str, now: float) -> Iterable[Action]:
        """Remember the decision."""
        self.decisions.append((time.monotonic(), down))
        return ()

    def act(self, actions: Iterable[Action]) -> None:
        """Send probes and set the alarm, as the service does."""
        for action in actions:
            assert isinstance(action, Probe)
            self.target.send(action.target, action.sequence)
        self.alarm.set(self.agenda.deadline())

    def probeAnswered(self, target: IPAddress, sequence: int) -> None:
        """Tell the watch."""
        super().probeAnswered(target, sequence)
        self.act(self.watch.answered(target, sequence, now()))

    def set_answering(self, answering: bool) -> float:
        """Have the target answer or not, the link being up all the time, and return when it began to."""
        self.lan.sysctl("ipv4/icmp_echo_ignore_all", "0" if answering else "1")
        return time.monotonic()

    async def test_vanishes(self) -> None:
        """R14: the LAN is down after PROBE_TRIES to PROBE_TRIES + 1 intervals, and up after one less."""
        self.act(self.watch.probe(TARGET4, self.interval, now()))
        await deferLater(reactor, 3 * self.interval)
        for round_number in range(3):
            vanished = self.set_answering(False)
            await until(lambda: self.watch.down)
            back = self.set_answering(True)
            await until(lambda: not self.watch.down)
            (down_at, down), (up_at, up) = self.decisions[2 * round_number :]
            self.assertEqual((down, up), (True, False))
            slack = self.interval / 2
            self.assertLess(PROBE_TRIES * self.interval - slack, down_at - vanished)
            self.assertLess(down_at - vanished, (PROBE_TRIES + 1) * self.interval + slack)
            self.assertLess((PROBE_TRIES - 1) * self.interval - slack, up_at - back)
            self.assertLess(up_at - back, PROBE_TRIES * self.interval + slack)
            await deferLater(reactor, self.interval / 3)
