"""rtnetlink notifications, built by hand: what is a change, what is not, and whose."""

import struct
from ipaddress import ip_address

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.net.netlink import Link
from rvpn.net.notifications import Changes, NetworkState

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
UP, RUNNING, POINTOPOINT = 0x1, 0x40, 0x10
TENTATIVE, DADFAILED, PERMANENT, NOPREFIXROUTE = 0x40, 0x08, 0x80, 0x200
OURS, OUR_TABLE = 9, 29300


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes) -> bytes:
    """Return a message of the kernel."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link(kind: int, index: int, name: str, flags: int, family: int = 0, mtu: int = 1500) -> bytes:
    """Return a notification about a link, with an attribute before the name that does not matter."""
    fixed = struct.pack("=BxHiII", family, 1, index, flags, 0)
    attributes = attribute(1, bytes(6)) + attribute(4, struct.pack("=I", mtu))
    return message(kind, fixed + attributes + attribute(3, name.encode() + b"\0"))


def address(kind: int, index: int, own: str, flags: int = PERMANENT, peer: str = "") -> bytes:
    """Return a notification about an address; with a peer there are two, and flags beyond eight bits."""
    packed = ip_address(own).packed
    fixed = struct.pack("=BBBBI", 2, 24, flags & 0xFF, 0, index)
    addresses = attribute(1, ip_address(peer).packed) + attribute(2, packed) if peer else attribute(1, packed)
    return message(kind, fixed + addresses + attribute(8, struct.pack("=I", flags)))


def route(kind: int, device: int | None, table: int = 254) -> bytes:
    """Return a notification about a route."""
    body = struct.pack("=8BI", 2, 0, 0, 0, min(table, 252), 4, 0, 1, 0)
    body += attribute(15, struct.pack("=I", table))
    return message(kind, body + (attribute(4, struct.pack("=I", device)) if device is not None else b""))


class NotificationTestCase(SynchronousTestCase):
    """A state, and what it makes of notifications."""

    def setUp(self) -> None:
        """Begin with eth0 up and eth1 down."""
        self.state = NetworkState({OURS}, {OUR_TABLE})
        self.state.renew({1: Link("eth0", True, False, 1500), 2: Link("eth1", False, False, 1500)})

    def read(self, *messages: bytes) -> Changes:
        """Return what changed, read in one piece."""
        changes = Changes()
        self.state.read(b"".join(messages), changes)
        return changes

    def assert_nothing(self, *messages: bytes) -> None:
        """Check that nothing changed."""
        self.assertEqual(self.read(*messages), Changes())


class LinkTests(NotificationTestCase):
    """Links."""

    def test_up_takes_both(self) -> None:
        """A link is up only with both flags: set up, and with a carrier."""
        for flags, up in (
            (UP, False),
            (UP | RUNNING, True),
            (RUNNING, False),
            (UP | RUNNING, True),
            (0, False),
        ):
            self.assertEqual(self.read(link(NEWLINK, 1, "eth0", flags)).links, {"eth0": up})

    def test_nothing_new(self) -> None:
        """A link of which nothing changed that matters here, say who listens to it, is not reported."""
        self.assert_nothing(link(NEWLINK, 1, "eth0", UP | RUNNING | 0x11000), link(NEWLINK, 2, "eth1", UP))

    def test_mtu(self) -> None:
        """A link that carries less or more than before is reported, and so are the routes through it."""
        for mtu in 1400, 9000:
            changes = self.read(link(NEWLINK, 1, "eth0", UP | RUNNING, mtu=mtu))
            self.assertEqual(changes, Changes({"eth0": True}, routes=True))
            self.assert_nothing(link(NEWLINK, 1, "eth0", UP | RUNNING, mtu=mtu))

    def test_flap(self) -> None:
        """A link that went down and up again is one report: it is up, but something happened."""
        changes = self.read(link(NEWLINK, 1, "eth0", UP), link(NEWLINK, 1, "eth0", UP | RUNNING))
        self.assertEqual(changes.links, {"eth0": True})

    def test_new_link(self) -> None:
        """A new link is reported, up or not."""
        changes = self.read(link(NEWLINK, 5, "ppp0", UP | RUNNING | POINTOPOINT), link(NEWLINK, 6, "eth2", 0))
        self.assertEqual(changes.links, {"ppp0": True, "eth2": False})

    def test_gone(self) -> None:
        """A link that is removed is down, also one that nobody had heard of; coming back it is new."""
        changes = self.read(link(DELLINK, 1, "eth0", UP | RUNNING), link(DELLINK, 7, "eth7", 0))
        self.assertEqual(changes.links, {"eth0": False, "eth7": False})
        self.assertEqual(self.read(link(NEWLINK, 8, "eth0", UP | RUNNING)).links, {"eth0": True})

    def test_renamed(self) -> None:
        """A link with a new name is down by its old one."""
        changes = self.read(link(NEWLINK, 1, "lan0", UP | RUNNING))
        self.assertEqual(changes.links, {"eth0": False, "lan0": True})

    def test_bridge_port(self) -> None:
        """A bridge that loses a port says so in a message that is not about the link itself."""
        self.assert_nothing(link(DELLINK, 1, "eth0", UP | RUNNING, family=7))

    def test_routes_with_links(self) -> None:
        """IPv4 routes go with a link, without a word of the kernel."""
        self.assertTrue(self.read(link(NEWLINK, 1, "eth0", 0)).routes)


class AddressTests(NotificationTestCase):
    """Addresses."""

    def test_come_and_go(self) -> None:
        """A new address and a removed one are changes, and may change routes; one never seen can go too."""
        for notification in (
            address(NEWADDR, 1, "10.0.0.1"),
            address(DELADDR, 1, "10.0.0.1"),
            address(DELADDR, 1, "10.0.0.9"),
        ):
            self.assertEqual(self.read(notification), Changes({}, True, True))

    def test_renewed(self) -> None:
        """A lease that is renewed is no change, on the same interface that is."""
        self.read(address(NEWADDR, 1, "10.0.0.1"))
        self.assert_nothing(address(NEWADDR, 1, "10.0.0.1"), address(NEWADDR, 1, "10.0.0.1", NOPREFIXROUTE))
        self.assertTrue(self.read(address(NEWADDR, 2, "10.0.0.1")).addresses)

    def test_tentative(self) -> None:
        """An IPv6 address counts once it was found to be unique, and never if it was not (RFC 4862)."""
        self.assert_nothing(address(NEWADDR, 1, "fd00::1", TENTATIVE | NOPREFIXROUTE))
        self.assertTrue(self.read(address(NEWADDR, 1, "fd00::1")).addresses)
        self.assert_nothing(
            address(NEWADDR, 1, "fd00::2", TENTATIVE), address(NEWADDR, 1, "fd00::2", DADFAILED)
        )

    def test_peers(self) -> None:
        """Two addresses of our own towards one peer are two addresses."""
        self.assertTrue(self.read(address(NEWADDR, 1, "10.0.0.1", peer="10.9.9.9")).addresses)
        self.assertTrue(self.read(address(NEWADDR, 1, "10.0.0.2", peer="10.9.9.9")).addresses)
        self.assert_nothing(address(NEWADDR, 1, "10.0.0.2", peer="10.9.9.9"))


class RouteTests(NotificationTestCase):
    """Routes."""

    def test_come_and_go(self) -> None:
        """A route that comes or goes is a change, in whatever table, with or without one device."""
        for notification in (
            route(NEWROUTE, 1),
            route(DELROUTE, 1),
            route(NEWROUTE, None),
            route(NEWROUTE, 1, 100),
        ):
            self.assertEqual(self.read(notification), Changes({}, False, True))

    def test_local_table(self) -> None:
        """The table `local` follows the addresses and says nothing new."""
        self.assert_nothing(route(NEWROUTE, 1, 255))


class OwnTests(NotificationTestCase):
    """What rvpn itself changes is not reported."""

    def test_device(self) -> None:
        """The TUN device, its addresses and the routes into it."""
        self.assert_nothing(
            link(NEWLINK, OURS, "rvpn0", UP | RUNNING),
            address(NEWADDR, OURS, "10.9.0.1"),
            route(NEWROUTE, OURS),
            address(DELADDR, OURS, "10.9.0.1"),
            link(DELLINK, OURS, "rvpn0", 0),
        )

    def test_table(self) -> None:
        """Routes in our own table."""
        self.assert_nothing(route(NEWROUTE, None, OUR_TABLE), route(DELROUTE, 1, OUR_TABLE))


class RenewTests(NotificationTestCase):
    """Notifications were lost."""

    def test_everything(self) -> None:
        """Everything is reported as changed: links as they are, and those that are no more as down."""
        links = {
            2: Link("eth1", False, False, 1500),
            3: Link("eth2", True, False, 1500),
            OURS: Link("rvpn0", True, True, 1434),
        }
        self.assertEqual(
            self.state.renew(links), Changes({"eth0": False, "eth1": False, "eth2": True}, True, True)
        )

    def test_addresses_forgotten(self) -> None:
        """What was known of addresses may be old."""
        self.read(address(NEWADDR, 1, "10.0.0.1"))
        self.state.renew({})
        self.assertTrue(self.read(address(NEWADDR, 1, "10.0.0.1")).addresses)


class FormTests(NotificationTestCase):
    """Bytes that are no notification we know."""

    def test_others(self) -> None:
        """Messages of other kinds are passed over, and those behind them read."""
        changes = self.read(message(2, bytes(20)), message(28, bytes(4)), link(NEWLINK, 1, "eth0", 0))
        self.assertEqual(changes.links, {"eth0": False})

    @example(bytes(64), NEWLINK)
    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.binary(max_size=200), st.sampled_from([NEWLINK, NEWADDR, NEWROUTE]))
    def test_garbage(self, data: bytes, kind: int) -> None:
        """Cut or senseless bytes end the reading, without an exception and in bounded time."""
        self.read(data)
        self.read(message(kind, data))
        self.read(message(kind, data)[:-1])
