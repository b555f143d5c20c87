"""A client whose own code or whose kernel fails at something: the log has it, and the service lives."""

import socket
from collections.abc import Callable
from typing import NoReturn

from pyroute2.netlink.rtnl import rt_type
from twisted.internet import reactor
from twisted.internet.task import deferLater

from rvpn.errors import LocalError
from rvpn.interfaces import Action
from rvpn.lab.namespaces import inside
from rvpn.net.netlink import Netlink, Route
from rvpn.service.client import ClientService
from tests.integration.nodes import TARGET, NodesTestCase

SECOND_TARGET = "10.0.0.2"


def fail(*_arguments: object) -> NoReturn:
    """Stand for a mistake of ours."""
    raise RuntimeError("a mistake")


class ServiceTestCase(NodesTestCase):
    """A client in this process."""

    def serve(self) -> ClientService:
        """Start it."""
        service = ClientService(str(self.client.write_policy()), reactor)
        service.open()
        service.startService()
        self.addCleanup(service.stopService)
        return service

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the reactor run until `condition` holds."""
        for _ in range(200):
            if condition():
                return
            await deferLater(reactor, 0.01)
        raise AssertionError("waited in vain")

    def send(
        self, address: str, payload: bytes = b"hello", port: int = 9, *, from_beyond: bool = False
    ) -> None:
        """Send one UDP datagram, from this host or from the gateway's."""
        with inside((self.beyond if from_beyond else self.here).descriptor):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            sender.sendto(payload, (address, port))


class MistakeTests(ServiceTestCase):
    """An exception that nobody expected."""

    async def test_inner_packet(self) -> None:
        """A packet from the TUN device that raises is one packet; the next one is served."""
        service = self.serve()
        failing = self.patch(service.node, "outbound", fail)
        self.send(TARGET)
        await self.until(lambda: len(self.flushLoggedErrors(RuntimeError)) == 1)
        failing.restore()
        self.send(TARGET)
        await self.until(lambda: service.status()["exchanges"]["running"] == 1)

    async def test_datagram(self) -> None:
        """So for datagrams, of the data path and of the key exchange."""
        service = self.serve()
        for what, datagram, drop in (
            ("inbound", b"\1\2\3\4ESP", "unknown-spi"),
            ("key_exchange", bytes(8), "malformed-key-exchange"),
        ):
            failing = self.patch(service.node, what, fail)
            self.send("192.0.2.1", datagram, 4500, from_beyond=True)
            await self.until(lambda: len(self.flushLoggedErrors(RuntimeError)) == 1)
            failing.restore()
            self.send("192.0.2.1", datagram, 4500, from_beyond=True)
            await self.until(lambda drop=drop: service.status()["drops"].get(drop) == 1)  # type: ignore[misc]

    async def test_action(self) -> None:
        """A mistake while an action is carried out loses no deadline: the exchange still ends in its time."""
        self.client.policy["GENERAL"] = {"ExchangeTime": "0.1"}
        service = self.serve()
        with self.here.kernel() as kernel:
            kernel.link("set", ifname="outside", state="down")
        self.patch(service.node, "unreachable", fail)
        self.send(TARGET)
        await self.until(lambda: service.status()["exchanges"]["failed"] == 1)
        self.assertTrue(self.flushLoggedErrors(RuntimeError))

    async def test_deadline(self) -> None:
        """What is due after an appointment that raises still happens."""
        service, rung = self.serve(), []

        def ring(now: float) -> list[Action]:
            rung.append(now)
            return []

        now = service.now()
        for when, act in (now, fail), (now, ring), (now + 0.02, fail), (now + 0.04, ring):
            service.node.agenda.at(when, act)
        service.perform(lambda _: ())
        await self.until(lambda: len(rung) == 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)


class HalfWayTests(ServiceTestCase):
    """A reload to which the kernel says no after some of it is done."""

    def setUp(self) -> None:
        super().setUp()
        self.service = self.serve()
        self.before = self.client.host
        self.client.policy["TUNNEL"]["Tunnel1"] = f"{SECOND_TARGET} Cluster 1"
        self.client.write_policy()

    def refuse(self, kind: str, *networks: str) -> Callable[[Netlink, Route], None]:
        """Return what takes the place of `Netlink.add_route` and refuses such routes to these networks."""
        add_route = Netlink.add_route

        def add(kernel: Netlink, route: Route) -> None:
            if route.network in networks and route.kind == kind:
                raise LocalError(f"cannot add {route}: no memory")
            add_route(kernel, route)

        return add

    def test_gone_back(self) -> None:
        """The host is as before, and so is the node; a later reload succeeds."""
        for kind in "unicast", "unreachable":
            refusing = self.patch(Netlink, "add_route", self.refuse(kind, f"{SECOND_TARGET}/32"))
            error = self.assertRaises(LocalError, self.service.reload)
            self.assertRegex(str(error), rf"^cannot add route {kind} {SECOND_TARGET}/32 .*: no memory$")
            self.assertSameHost(self.client, self.before)
            refusing.restore()
        self.service.reload()
        self.assertEqual(self.routed("unicast"), [SECOND_TARGET])
        self.assertEqual(self.routed("unreachable"), [SECOND_TARGET])

    def test_not_gone_back(self) -> None:
        """Where the kernel does not take the former routes either, that is said; a later reload mends it."""
        former = self.client.file.read_text().replace(SECOND_TARGET, TARGET)
        for kind in "unicast", "unreachable":
            self.client.write_policy()
            add = self.refuse(kind, f"{SECOND_TARGET}/32", f"{TARGET}/32")
            refusing = self.patch(Netlink, "add_route", add)
            error = self.assertRaises(LocalError, self.service.reload)
            self.assertRegex(str(error), r"(?s)^cannot add .*\nand the former routes could not be restored: ")
            self.assertEqual(self.routed(kind), [])
            refusing.restore()
            self.client.file.write_text(former)
            self.service.reload()
            self.assertSameHost(self.client, self.before)

    def routed(self, kind: str) -> list[str]:
        """Return the IPv4 targets to which the client has routes of this kind."""
        with self.here.kernel() as kernel:
            routes = kernel.get_routes(table=29300, type=rt_type[kind], family=socket.AF_INET)
            return [route.get("dst") for route in routes]
