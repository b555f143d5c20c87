"""
What the kernel tells of links, addresses and routes, and how soon; the access server that AUTO finds (R15).
"""

import socket
import time
from ipaddress import ip_address

from twisted.internet import reactor
from twisted.internet.task import deferLater

from rvpn.constants import Role
from rvpn.net.host import TABLE
from rvpn.net.netlink import Netlink, Route
from rvpn.net.tun import TunDevice
from rvpn.net.watch import SETTLING, NetworkWatch
from tests.integration.namespaces import Namespace, NamespaceTestCase, until

#: Seconds within which a change is to be reported, and after which nothing more is expected.
SOON, QUIET = 0.05, 0.1 + SETTLING


class Recorder:
    """Remembers what it hears, links with the time."""

    def __init__(self) -> None:
        self.links: list[tuple[str, bool]] = []
        self.heard_at = 0.0
        self.addresses = self.routes = 0
        self.failing = False

    def linkChanged(self, name: str, up: bool) -> None:
        """Remember the link and the time."""
        self.links.append((name, up))
        self.heard_at = time.monotonic()
        if self.failing:
            raise RuntimeError("not today")

    def addressChanged(self) -> None:
        """Count."""
        self.addresses += 1

    def routeChanged(self) -> None:
        """Count."""
        self.routes += 1

    def forget(self) -> None:
        """Begin anew."""
        self.links.clear()
        self.addresses = self.routes = 0


class WatchTestCase(NamespaceTestCase):
    """A watch over `here`, which has eth0 to a neighbour."""

    def setUp(self) -> None:
        super().setUp()
        self.there = Namespace(self)
        # With the same index at both ends the kernel would take a lost carrier for one that can wait.
        self.there.connect("other0", self.there, "other1")
        self.here.connect("eth0", self.there, "eth0")
        self.netlink = Netlink()
        self.addCleanup(self.netlink.close)
        self.eth0 = self.netlink.index("eth0")
        self.recorder = Recorder()

    async def watch(self, without: tuple[int, ...] = ()) -> NetworkWatch:
        """Begin to watch, and forget what the start reports."""
        await until(lambda: self.netlink.links()[self.eth0].up)
        watch = NetworkWatch(self.recorder, reactor, self.netlink, without)
        self.addCleanup(watch.close)
        watch.startReading()
        await deferLater(reactor, QUIET)
        self.recorder.forget()
        return watch

    def set_link(self, where: Namespace, state: str) -> None:
        """Set eth0 up or down on one side."""
        with where.kernel() as kernel:
            kernel.link("set", ifname="eth0", state=state)


class LinkTests(WatchTestCase):
    """Links."""

    async def changed_within(self, where: Namespace, state: str) -> float:
        """Set one side up or down, and return the seconds until eth0 here was reported to follow."""
        self.recorder.forget()
        begun = time.monotonic()
        self.set_link(where, state)
        self.assertTrue(await until(lambda: ("eth0", state == "up") in self.recorder.links))
        return self.recorder.heard_at - begun

    async def test_start(self) -> None:
        """The start reports every link as it is."""
        watch = NetworkWatch(self.recorder, reactor, self.netlink)
        self.addCleanup(watch.close)
        watch.startReading()
        self.assertEqual(dict(self.recorder.links).keys(), {"lo", "eth0"})
        self.assertEqual((self.recorder.addresses, self.recorder.routes), (1, 0))
        self.assertTrue(await until(lambda: self.recorder.routes > 0, SETTLING + SOON))

    async def test_own_side(self) -> None:
        """R14: an interface that is set down or up is reported at once, and once."""
        await self.watch()
        taken = [await self.changed_within(self.here, state) for state in ("down", "up") * 3]
        self.assertLess(max(taken), SOON, taken)
        self.recorder.forget()
        self.set_link(self.here, "down")
        await deferLater(reactor, QUIET)
        self.assertEqual(self.recorder.links, [("eth0", False)])
        self.assertGreaterEqual(self.recorder.routes, 1)

    async def test_carrier(self) -> None:
        """R14: so is one whose other end goes down or comes back."""
        await self.watch()
        taken = [await self.changed_within(self.there, state) for state in ("down", "up") * 3]
        self.assertLess(max(taken), SOON, taken)

    async def test_removed(self) -> None:
        """An interface that is removed is down."""
        await self.watch()
        with self.here.kernel() as kernel:
            kernel.link("del", ifname="eth0")
        await until(lambda: bool(self.recorder.links))
        await deferLater(reactor, QUIET)
        self.assertEqual(set(self.recorder.links), {("eth0", False)})

    async def test_bridged(self) -> None:
        """To join a bridge and leave it does not look like being removed."""
        await self.watch()
        with self.here.kernel() as kernel:
            kernel.link("add", ifname="br0", kind="bridge")
            (bridge,) = kernel.link_lookup(ifname="br0")
            for master in bridge, 0:
                kernel.link("set", index=self.eth0, master=master)
        await deferLater(reactor, QUIET)
        self.assertNotIn(("eth0", False), self.recorder.links)

    async def test_failing_receiver(self) -> None:
        """An exception of the receiver is logged, and the watch goes on."""
        await self.watch()
        self.recorder.failing = True
        await self.changed_within(self.here, "down")
        self.recorder.failing = False
        await self.changed_within(self.here, "up")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_closed(self) -> None:
        """After `close`, which may come twice, nothing is reported, not even what was about to be."""
        self.here.address("eth0", "10.0.0.1/24")
        watch = await self.watch()
        self.here.route("10.1.0.0/16", "10.0.0.2")
        watch.doRead()
        watch.close()
        watch.close()
        self.set_link(self.here, "down")
        await deferLater(reactor, QUIET)
        self.assertEqual((self.recorder.links, self.recorder.routes, watch.fileno()), ([], 0, -1))


class AddressTests(WatchTestCase):
    """Addresses and routes."""

    async def test_address(self) -> None:
        """Addresses that come and go are reported, those renewed are not."""
        await self.watch()
        self.here.address("eth0", "10.0.0.1/24", "fd00::1/64")
        self.assertTrue(await until(lambda: self.recorder.addresses > 0))
        await deferLater(reactor, QUIET)
        self.recorder.forget()
        with self.here.kernel() as kernel:
            lease = {"ifa_preferred": 100, "ifa_valid": 200}
            kernel.addr("replace", index=self.eth0, address="10.0.0.1/24", IFA_CACHEINFO=lease)
        await deferLater(reactor, QUIET)
        self.assertEqual(self.recorder.addresses, 0)
        with self.here.kernel() as kernel:
            kernel.addr("del", index=self.eth0, address="10.0.0.1/24")
        self.assertTrue(await until(lambda: self.recorder.addresses > 0))

    async def test_default_route(self) -> None:
        """
        R15: a default route that comes, changes or goes is reported, and there is another access server.
        """
        self.here.address("eth0", "10.0.0.1/24")
        await self.watch()
        for step, gateway, now in (
            ("add", "10.0.0.2", "10.0.0.2"),
            ("replace", "10.0.0.3", "10.0.0.3"),
            ("del", "10.0.0.3", None),
        ):
            self.recorder.forget()
            with self.here.kernel() as kernel:
                kernel.route(step, dst="0.0.0.0/0", gateway=gateway)
            self.assertTrue(await until(lambda: self.recorder.routes > 0, SETTLING + SOON))
            found = self.netlink.access_server(())
            self.assertEqual(found, now and ip_address(now))

    async def test_silent_kernel(self) -> None:
        """
        Where the kernel drops a route with its link and does not say so, routes are reported nevertheless.
        """
        self.here.address("eth0", "10.0.0.1/24")
        self.here.route("0.0.0.0/0", "10.0.0.2")
        await self.watch()
        self.set_link(self.here, "down")
        self.assertTrue(await until(lambda: self.recorder.routes > 0, SETTLING + SOON))
        self.assertIsNone(self.netlink.access_server(()))

    async def test_own(self) -> None:
        """What rvpn sets on its TUN device and in its table is not reported."""
        tun = TunDevice("rvpn0")
        self.addCleanup(tun.close)
        await self.watch((tun.index,))
        self.netlink.bring_up(tun.index, 1400)
        self.netlink.add_address(tun.index, ip_address("10.9.0.1"))
        table = TABLE[Role.CLIENT]
        self.netlink.add_route(Route("10.1.0.0/16", table, "unicast", 2, tun.index))
        self.netlink.add_route(Route("10.1.0.0/16", table, "unreachable", 9))
        self.netlink.add_route(Route("fd01::/16", table, "throw", 1))
        await deferLater(reactor, QUIET)
        self.assertEqual((self.recorder.links, self.recorder.addresses, self.recorder.routes), ([], 0, 0))

    async def test_burst(self) -> None:
        """Many changes, each of which wakes the watch, are few reports, one of them after the last."""
        self.here.address("eth0", "10.0.0.1/24")
        watch = await self.watch()
        begun = time.monotonic()
        with self.here.kernel() as kernel:
            for third in range(100):
                kernel.route("add", dst=f"10.1.{third}.0/24", gateway="10.0.0.2")
                watch.doRead()
        await deferLater(reactor, 0)
        heard = self.recorder.routes
        self.assertLessEqual(heard, (time.monotonic() - begun) / SETTLING)
        await deferLater(reactor, QUIET)
        self.assertEqual(self.recorder.routes, heard + 1)


class OverrunTests(WatchTestCase):
    """More changes than the socket holds."""

    async def test_overrun(self) -> None:
        """Everything is reported as changed, links as they are now, and the watch goes on."""
        self.here.address("eth0", "10.0.0.1/24")
        self.here.connect("eth1", self.there, "eth1")
        watch = await self.watch()
        watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with self.here.kernel() as kernel:
            for third in range(20):
                kernel.route("add", dst=f"10.1.{third}.0/24", gateway="10.0.0.2")
            kernel.link("del", ifname="eth1")
        self.set_link(self.here, "down")
        await deferLater(reactor, QUIET)
        self.assertEqual(dict(self.recorder.links), {"lo": True, "eth0": False, "eth1": False})
        self.assertGreaterEqual(self.recorder.addresses, 1)
        self.recorder.forget()
        self.set_link(self.here, "up")
        self.assertTrue(await until(lambda: ("eth0", True) in self.recorder.links))


class AccessServerTests(WatchTestCase):
    """R15: the access server."""

    def setUp(self) -> None:
        super().setUp()
        self.here.address("eth0", "10.0.0.1/24", "2001:db8::1/64")

    def server(self, without: tuple[int, ...] = ()) -> str | None:
        """Return the access server as text."""
        found = self.netlink.access_server(without)
        return str(found) if found else None

    def route(self, gateway: str, metric: int = 0) -> None:
        """Add a default route."""
        family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
        with self.here.kernel() as kernel:
            kernel.route(
                "add", dst="default", family=family, gateway=gateway, oif=self.eth0, priority=metric or None
            )

    def modem(self, *addresses: tuple[str, str]) -> int:
        """Make a point-to-point link with addresses of ours and the peer's; return its index."""
        device = TunDevice("ppp0")
        self.addCleanup(device.close)
        with self.here.kernel() as kernel:
            kernel.link("set", index=device.index, state="up")
            for own, peer in addresses:
                length = 128 if ":" in own else 32
                kernel.addr("add", index=device.index, local=own, address=peer, prefixlen=length, flags=2)
        return device.index

    async def ready(self) -> None:
        """Wait for the carrier."""
        self.assertTrue(await until(lambda: self.netlink.links()[self.eth0].up))

    async def test_default_gateway(self) -> None:
        """Without a point-to-point link it is the default gateway of the lowest metric."""
        await self.ready()
        self.assertIsNone(self.server())
        for gateway, metric in ("10.0.0.9", 300), ("10.0.0.8", 100), ("10.0.0.7", 200):
            self.route(gateway, metric)
        self.assertEqual(self.server(), "10.0.0.8")
        self.route("10.0.0.6")
        self.assertEqual(self.server(), "10.0.0.6")

    async def test_ipv6(self) -> None:
        """IPv6 counts where IPv4 has none, be it by a link-local address."""
        await self.ready()
        self.route("fe80::1", 2000)
        self.assertEqual(self.server(), "fe80::1")
        self.route("2001:db8::2")
        self.assertEqual(self.server(), "2001:db8::2")
        self.route("10.0.0.2")
        self.assertEqual(self.server(), "10.0.0.2")

    async def test_multipath(self) -> None:
        """Of several next hops it is the first whose link is up."""
        await self.ready()
        self.here.connect("eth1", self.there, "eth1")
        self.here.address("eth1", "10.0.1.1/24")
        eth1 = self.netlink.index("eth1")
        self.assertTrue(await until(lambda: self.netlink.links()[eth1].up))
        hops = [{"gateway": "10.0.0.2", "oif": self.eth0}, {"gateway": "10.0.1.2", "oif": eth1}]
        with self.here.kernel() as kernel:
            kernel.route("add", dst="default", family=socket.AF_INET, multipath=hops)
        self.assertEqual(self.server(), "10.0.0.2")
        self.set_link(self.there, "down")
        self.assertTrue(await until(lambda: self.server() == "10.0.1.2"))

    async def test_point_to_point(self) -> None:
        """The peer of a point-to-point link comes before a default gateway of its IP version."""
        await self.ready()
        self.route("10.0.0.2")
        index = self.modem(("10.5.0.1", "10.5.0.9"), ("2001:db8:5::1", "2001:db8:5::9"))
        self.assertEqual(self.server(), "10.5.0.9")
        self.assertEqual(self.server(without=(index,)), "10.0.0.2")
        with self.here.kernel() as kernel:
            kernel.link("set", index=index, state="down")
        self.assertEqual(self.server(), "10.0.0.2")

    async def test_point_to_point_ipv6(self) -> None:
        """A peer of IPv6 gives way to a default gateway of IPv4."""
        await self.ready()
        self.modem(("2001:db8:5::1", "2001:db8:5::9"))
        self.assertEqual(self.server(), "2001:db8:5::9")
        self.route("10.0.0.2")
        self.assertEqual(self.server(), "10.0.0.2")

    async def test_peer_on_ethernet(self) -> None:
        """An address with a peer makes no point-to-point link."""
        await self.ready()
        with self.here.kernel() as kernel:
            kernel.addr("add", index=self.eth0, local="10.5.0.1", address="10.5.0.9", prefixlen=32)
        self.assertIsNone(self.server())

    async def test_no_peer(self) -> None:
        """A tunnel of others with an address but no peer is no access server."""
        self.modem(("10.5.0.1", "10.5.0.1"))
        self.assertIsNone(self.server())

    async def test_carrier(self) -> None:
        """A default gateway behind a link without a carrier does not count."""
        await self.ready()
        self.route("10.0.0.2")
        self.set_link(self.there, "down")
        self.assertTrue(await until(lambda: self.server() is None))
