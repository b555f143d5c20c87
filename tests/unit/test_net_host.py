"""The journal of changes to the host, and what HostChanges asks of a kernel in memory."""

from ipaddress import ip_address, ip_network
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.files.state import StateDirectory
from rvpn.interfaces import IPAddress
from rvpn.net import changes
from rvpn.net.changes import Change, Sysctl, decode, encode
from rvpn.net.host import JOURNAL, OUTER_MARK, HostChanges
from rvpn.net.netlink import Netlink, Route, Rule

CHANGES: list[Change] = [
    Sysctl("net/ipv4/conf/lan/forwarding", "0", "1"),
    Rule(4, 29310, table=29310, incoming="lo", inverted=True),
    Route("10.9.0.0/16", 29300, "unreachable", 9),
]


class FakeNetlink(Netlink):
    """A kernel in memory: it keeps rules and routes, but neither adds nor removes what is in `stuck`."""

    def __init__(self) -> None:
        self.present: list[Route | Rule] = []
        self.stuck: set[Route | Rule] = set()

    def index(self, interface: str) -> int:
        """Every interface exists."""
        return 7

    def bring_up(self, device: int, mtu: int) -> None:
        """Any MTU will do."""

    def addresses(self, device: int) -> set[IPAddress]:
        """There are none."""
        return set()

    def add_route(self, route: Route) -> None:
        """Keep a route."""
        self._add(route)

    def remove_route(self, route: Route) -> None:
        """Forget a route."""
        self._remove(route)

    def add_rule(self, rule: Rule) -> None:
        """Keep a rule."""
        self._add(rule)

    def remove_rule(self, rule: Rule) -> None:
        """Forget a rule."""
        self._remove(rule)

    def _add(self, change: Route | Rule) -> None:
        if change in self.stuck:
            raise LocalError("no")
        self.present.append(change)

    def _remove(self, change: Route | Rule) -> None:
        if change in self.stuck:
            raise LocalError("no")
        if change in self.present:
            self.present.remove(change)


class JournalTests(SynchronousTestCase):
    """Bytes that outlive the process."""

    def test_round_trip(self) -> None:
        """Every kind of change is read as it was written, in order."""
        self.assertEqual(decode(encode(CHANGES)), CHANGES)

    def test_after_a_reboot(self) -> None:
        """A journal of another boot or namespace names changes that no longer exist."""
        journal = encode(CHANGES)
        self.patch(changes, "_scope", lambda: "another boot")
        self.assertEqual(decode(journal), [])

    def test_damaged(self) -> None:
        """Whatever else stands there is refused."""
        good = encode(CHANGES)
        misnamed = good.replace(b"priority", b"prio"), good.replace(b"Rule", b"Ruin")
        for damaged in b"", b"[]", good[:-9], *misnamed:
            self.assertRaises(ValueError, decode, damaged)


class HostChangesTests(SynchronousTestCase):
    """A client on a kernel in memory."""

    def setUp(self) -> None:
        self.patch(changes, "PROC_SYS", Path(self.mktemp()))
        self.state = StateDirectory(Path(self.mktemp()))
        self.addCleanup(self.state.close)
        self.kernel = FakeNetlink()
        self.host = self.started()

    def started(self) -> HostChanges:
        """Start a client, as if the one before had been killed."""
        host = HostChanges(self.state, Role.CLIENT, self.kernel)
        host.recover()
        host.prepare_tun("rvpn0", [], 1400)
        return host

    def route(self, *networks: str) -> None:
        """Route networks into the tunnel."""
        self.host.set_routes(map(ip_network, networks), bypass=[ip_address("192.0.2.1")])

    def test_families_in_use(self) -> None:
        """A family without tunnel networks gets neither rules nor routes."""
        self.route("10.9.0.0/16")
        rules = [change for change in self.kernel.present if isinstance(change, Rule)]
        self.assertEqual(rules, [Rule(4, 29302, table=29300, mark=OUTER_MARK, inverted=True)])
        routes = [change.network for change in self.kernel.present if isinstance(change, Route)]
        self.assertEqual([network for network in routes if ":" in network], [])

    def test_safe_order(self) -> None:
        """The rule comes last, when there is something behind it to stop what the TUN does not take."""
        self.route("10.9.0.0/16")
        kinds = [change.kind if isinstance(change, Route) else "rule" for change in self.kernel.present]
        self.assertLess(kinds.index("unreachable"), kinds.index("rule"))

    def test_no_networks_left(self) -> None:
        """A policy without tunnels leaves nothing."""
        self.route("10.9.0.0/16", "fd09::/16")
        self.route()
        self.assertEqual(self.kernel.present, [])

    def test_same_again(self) -> None:
        """Setting what is set changes nothing."""
        self.route("10.9.0.0/16")
        before = list(self.kernel.present)
        self.route("10.9.0.0/16")
        self.assertEqual(self.kernel.present, before)

    def test_refused_change(self) -> None:
        """Where the kernel refuses one of several changes, those before it are taken back."""
        self.kernel.stuck.add(Route("10.11.0.0/16", 29300, "unreachable", 0xFFFFFFFF))
        self.assertRaises(LocalError, self.route, "10.8.0.0/16", "10.11.0.0/16")
        self.assertEqual(self.kernel.present, [])

    def test_refused_undo(self) -> None:
        """What the kernel does not take back is left, alone, for the next start."""
        self.route("10.9.0.0/16")
        rule = self.kernel.present[-2]
        assert isinstance(rule, Rule)
        self.kernel.stuck.add(rule)
        self.host.undo()
        self.assertEqual([found for found in self.kernel.present if isinstance(found, Rule)], [rule])
        self.kernel.stuck.clear()
        self.started()
        self.assertEqual([found for found in self.kernel.present if isinstance(found, Rule)], [])

    def test_full_disk(self) -> None:
        """Everything is taken back although that cannot be noted; the next start does no harm."""
        self.route("10.9.0.0/16")
        (self.state.path / f".{JOURNAL}.new").mkdir()
        self.host.undo()
        (left,) = self.kernel.present  # goes with the TUN device
        self.assertEqual(left, Route("10.9.0.0/16", 29300, "unicast", 2, 7))
        (self.state.path / f".{JOURNAL}.new").rmdir()
        self.started()
        self.assertEqual(self.kernel.present, [left])

    def test_interface_made_anew(self) -> None:
        """Forwarding is switched on again on an interface that was removed and made anew."""
        switch = changes.PROC_SYS / "net/ipv4/conf/lan/forwarding"
        switch.parent.mkdir(parents=True)
        for _ in range(2):
            switch.write_text("0")
            self.host.enable_forwarding(["lan"], [4])
            self.assertEqual(switch.read_text(), "1")
        self.host.undo()
        self.assertEqual(switch.read_text(), "0")

    def test_damaged_journal(self) -> None:
        """A journal that cannot be read stops the start: nobody knows what is to be taken back."""
        self.state.write(JOURNAL, b"?")
        error = self.assertRaises(LocalError, self.started)
        self.assertIn(f"{self.state.path / JOURNAL} is damaged", str(error))
