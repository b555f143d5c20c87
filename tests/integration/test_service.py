"""The services as an operator meets them: they end in order, survive a kill, read their policy again."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

from pyroute2.netlink.rtnl import rt_type

from rvpn.lab.namespaces import inside
from tests.integration.nodes import INNER, TARGET, TARGET6, Node, NodesTestCase, wait_until

SECOND_TARGET = "10.0.0.2"
#: Seconds for what should take half of one, on a busy machine.
PROMPT = 3.0


class Wire:
    """Sees what passes the client's outside link from now on."""

    _EVERYTHING = 0x0003  # ETH_P_ALL

    def __init__(self, case: NodesTestCase) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        case.addCleanup(self._socket.close)
        self._socket.bind(("outside", self._EVERYTHING))
        self._socket.setblocking(False)

    def clear(self, *addresses: str) -> int:
        """Count the IPv4 packets since the last call that were from or to one of these addresses."""
        packed = {ip_address(address).packed for address in addresses}
        return sum(not packed.isdisjoint((packet[12:16], packet[16:20])) for packet in self._packets())

    def _packets(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._socket.recv(1 << 16)
            except BlockingIOError:
                return


class EndTests(NodesTestCase):
    """However a service ends, its peer and its host are told, at the latest at the next start."""

    timeout = 60

    def test_terminated(self) -> None:
        """SIGTERM ends the session at both ends at once, takes everything back, and the exit code is 0."""
        before = self.client.host, self.gateway.host
        self.start_both()
        self.assertEqual(self.ping(), 3)
        self.assertEqual(len(self.gateway.status()["sessions"]), 1)
        self.client.signal(signal.SIGTERM)
        wait_until(lambda: self.gateway.status()["sessions"] == [], "the gateway's session ends", PROMPT)
        self.assertEqual(self.client.wait(PROMPT), 0)
        self.assertFalse(self.client.socket.exists())
        self.assertSameHost(self.client, before[0])
        self.gateway.signal(signal.SIGINT)
        self.assertEqual(self.gateway.wait(PROMPT), 0)
        self.assertSameHost(self.gateway, before[1])

    def test_dead_peer(self) -> None:
        """A service whose peer is silent waits no longer than a second, and no signal hurries it."""
        self.start_both()
        self.assertEqual(self.ping(), 3)
        self.client.signal(signal.SIGSTOP)
        for number in signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            self.gateway.signal(number)
            time.sleep(0.01)
        self.assertEqual(self.gateway.wait(PROMPT), 0)
        self.assertNotIn("Traceback", self.gateway.log)

    def test_killed(self) -> None:
        """
        Services that were killed let no packet for the tunnel out in clear, and the next start takes back
        what they left behind.
        """
        self.here.route("0.0.0.0/0", "192.0.2.2")
        self.beyond.route("10.99.0.0/24", "192.0.2.1")
        before = self.client.host, self.gateway.host
        wire = Wire(self)
        self.start_both()
        self.assertEqual((self.ping(), self.ping(TARGET6)), (3, 3))
        for node in self.client, self.gateway:
            node.kill()
        self.assertEqual(self.ping(wait=0.05), 0)
        with inside(self.lan.descriptor):
            self.assertEqual(self.ping(INNER, wait=0.05), 0)
        self.assertEqual(wire.clear(TARGET, INNER), 0)
        self.start_both()
        self.assertEqual(self.ping(), 3)
        self.assertEqual(wire.clear(TARGET, INNER), 0)
        for node, host in zip((self.client, self.gateway), before, strict=True):
            self.assertIn("left by a process that was killed: route unreachable", node.log)
            self.assertEqual(node.stop(), 0)
            self.assertSameHost(node, host)
        # The capture does see what leaves in clear, and without the service it does.
        self.ping(wait=0.05)
        self.assertNotEqual(wire.clear(TARGET), 0)

    def test_lost_keys(self) -> None:
        """Without heartbeats too, a gateway that is back does not pass for one that has its keys (R16)."""
        self.start_both()
        self.assertEqual(self.ping(), 3)
        starts = self.gateway.directory / "node.state/starts"
        before = starts.read_bytes()
        self.gateway.kill()
        self.gateway.start()
        wait_until(lambda: self.ping(wait=0.2) == 3, "the client has new keys")
        # One secret for all starts, and the number of this one (X3).
        self.assertEqual(starts.read_bytes(), before[:32] + (int.from_bytes(before[32:]) + 1).to_bytes(8))

    def test_full_disk(self) -> None:
        """Where the state directory takes nothing more, a stop still gives everything back, and says so."""
        before = self.client.host
        self.start_both()
        self.assertEqual(self.ping(), 3)
        for name in "generation", "host-changes.json":
            (self.client.directory / "node.state" / f".{name}.new").mkdir()
        self.assertEqual(self.client.stop(), 0)
        self.assertSameHost(self.client, before)
        self.assertIn("the ownership generation is not saved: cannot write", self.client.log)
        self.assertIn("the journal of changes to this host stays as it is: cannot", self.client.log)
        self.assertIn("rvpn client has stopped", self.client.log)
        self.assertNotIn("Traceback", self.client.log)

    def test_device_removed(self) -> None:
        """A node whose TUN device somebody removes ends with exit code 1, and takes everything back."""
        before = self.client.host
        self.client.start()
        with self.here.kernel() as kernel:
            kernel.link("del", ifname="rvpn0")
        self.assertEqual(self.client.wait(), 1)
        self.assertSameHost(self.client, before)
        self.assertIn("somebody removed the TUN device rvpn0: this node stops", self.client.log)
        self.assertNotIn("Traceback", self.client.log)


class ReloadTests(NodesTestCase):
    """`rvpn reload` and SIGHUP."""

    timeout = 60

    def setUp(self) -> None:
        super().setUp()
        self.lan.address("lan", f"{SECOND_TARGET}/24")

    def reload(self, node: Node, **sections: dict[str, str]) -> tuple[int, str, str]:
        """Write a policy with these sections changed, and have it read again."""
        node.policy |= {name.upper(): keys for name, keys in sections.items()}
        node.write_policy()
        return node.command("reload")

    def routed(self) -> set[str]:
        """Return the IPv4 targets that the client routes into the tunnel."""
        with self.here.kernel() as kernel:
            routes = kernel.get_routes(table=29300, type=rt_type["unicast"], family=socket.AF_INET)
            return {route.get("dst") for route in routes}

    def test_tunnels(self) -> None:
        """A new range is routed, a removed one no more; sessions of unchanged tunnels do not notice."""
        self.start_both()
        self.assertEqual(self.ping(), 3)
        tunnels = self.client.policy["TUNNEL"]
        outcome = self.reload(self.client, tunnel={**tunnels, "Tunnel3": f"{SECOND_TARGET} Cluster 1"})
        self.assertEqual(outcome, (0, "client: policy read again\n", ""))
        self.assertEqual(self.routed(), {TARGET, SECOND_TARGET})
        self.assertEqual(self.ping(SECOND_TARGET), 3)
        outcome = self.reload(self.client, tunnel={"Tunnel3": f"{SECOND_TARGET} Cluster 1"})
        self.assertEqual(self.routed(), {SECOND_TARGET})
        self.assertEqual(self.ping(SECOND_TARGET), 3)
        (session,) = self.client.status()["sessions"]
        self.assertEqual((session["packets_out"], session["packets_in"]), (9, 9))
        self.assertEqual(self.client.status()["exchanges"]["established"], 1)
        # A gateway's reload ends the sessions of clients that it no longer lists, and no others.
        self.assertEqual(self.reload(self.gateway, lan={"Interface": "lan", "Networks": "10.0.0.0/8"})[0], 0)
        self.assertEqual(len(self.gateway.status()["sessions"]), 1)
        self.assertEqual(self.reload(self.gateway, clients={})[0], 0)
        wait_until(lambda: not self.client.status()["sessions"], "the session ends")

    def test_link_mtu(self) -> None:
        """DESIGN 3: with one more gateway, the way to which carries less, the TUN device has a lower MTU."""
        with self.here.kernel() as kernel:
            kernel.route("add", dst="203.0.113.0/24", gateway="192.0.2.2", metrics={"mtu": 1400})
        self.start_both()
        before = self.client.status()["mtu"]
        both = {"192.0.2.2": self.gateway.public_key, "203.0.113.2": self.client.public_key}
        outcome = self.reload(self.client, cluster={"Cluster 1": " ".join(both)}, peers=both)
        self.assertEqual(outcome[0], 0)
        self.assertEqual(self.client.status()["mtu"], before - 100)
        self.assertEqual(self.ping(size=before - 100 - 28), 3)

    def test_refused(self) -> None:
        """A policy with errors, or with changes that take a restart, changes nothing and is told in full."""
        self.start_both()
        self.assertEqual(self.ping(), 3)
        host, good = self.client.host, dict(self.client.policy)
        code, output, errors = self.reload(self.client, tunnel={"Tunnel1": "cat", "Tunnel3": "dog"})
        self.assertEqual((code, output), (1, ""))
        self.assertRegex(errors, r"\A(rvpn: error: .*/node.policy:[0-9]+: error: Tunnel.*\n){2}\Z")
        for line in errors.splitlines():
            self.assertIn(line.replace("rvpn: error: ", "the policy was not read again: "), self.client.log)
        self.client.policy = good
        code, output, errors = self.reload(
            self.client,
            general={"Port": "4501"},
            device={"InnerAddress": "10.99.0.2", "Name": "rvpn1"},
            control={"Socket": "new.sock", "StateDirectory": "new.state"},
        )
        self.assertEqual((code, output), (1, ""))
        names = "Port, Name of [DEVICE], InnerAddress, Socket, StateDirectory"
        self.assertIn(f"{names} changed, which takes a restart; nothing was changed", errors)
        self.assertSameHost(self.client, host)
        self.assertEqual(self.ping(), 3)
        self.assertEqual(self.client.status()["exchanges"]["established"], 1)

    def test_by_signal(self) -> None:
        """SIGHUP does the same; what is wrong goes to the log."""
        self.client.start()
        self.client.file.write_text("nonsense\n")
        self.client.signal(signal.SIGHUP)
        wait_until(lambda: "not read again" in self.client.log, "the fault is logged")
        self.client.policy["TUNNEL"]["Tunnel3"] = f"{SECOND_TARGET} Cluster 1"
        self.client.write_policy()
        self.client.signal(signal.SIGHUP)
        wait_until(lambda: "the policy was read again" in self.client.log, "the policy is read")
        self.assertEqual(self.routed(), {TARGET, SECOND_TARGET})
        self.assertNotIn("Traceback", self.client.log)


class AddressTests(NodesTestCase):
    """Which packet goes inside and which outside, whatever the addresses."""

    timeout = 60

    def be_strict(self) -> None:
        """Switch strict reverse path filtering on everywhere, for interfaces to come too."""
        for namespace, interfaces in (self.here, ["outside"]), (self.beyond, ["outside", "lan"]):
            for interface in ("all", "default", *interfaces):
                namespace.sysctl(f"ipv4/conf/{interface}/rp_filter", "1")

    def test_own_address(self) -> None:
        """R18: the client has one address, 192.0.2.1, outside and inside; rp_filter does not mind."""
        self.be_strict()
        self.client.policy["DEVICE"]["InnerAddress"] = "own"
        self.gateway.policy["CLIENTS"]["Client1"] = f"{self.client.public_key} 192.0.2.1"
        wire = Wire(self)
        self.start_both()
        self.assertEqual(self.ping(), 3)
        with inside(self.lan.descriptor):
            self.assertEqual(self.ping("192.0.2.1"), 3)
        (session,) = self.gateway.status()["sessions"]
        self.assertEqual((session["packets_in"], session["packets_out"]), (6, 6))
        self.assertEqual(self.client.status()["drops"], {})
        self.assertEqual(wire.clear(TARGET), 0)
        # The gateway's own address is reached past the tunnel.
        self.assertEqual(self.ping("192.0.2.2"), 3)
        self.assertEqual(self.gateway.status()["sessions"][0]["packets_in"], 6)

    def test_everything_tunnelled(self) -> None:
        """A range that covers the gateway's own address sends neither ESP nor anything else there inside."""
        self.be_strict()
        self.client.policy["TUNNEL"]["Tunnel1"] = "0.0.0.0/0 Cluster 1"
        wire = Wire(self)
        self.start_both()
        self.assertEqual(self.ping(), 3)
        self.assertEqual(self.ping("192.0.2.2"), 3)
        (session,) = self.client.status()["sessions"]
        self.assertEqual((session["packets_in"], session["packets_out"]), (3, 3))
        self.assertEqual(wire.clear(TARGET, INNER), 0)

    def test_listen_addresses(self) -> None:
        """A gateway answers from the address, IPv4 or IPv6, that the client spoke to."""
        self.beyond.address("outside", "192.0.2.3/24", "2001:db8::3/64")
        self.gateway.policy["GENERAL"] = {"Listen": "192.0.2.2 192.0.2.3 2001:db8::2"}
        self.gateway.start()
        for address in "192.0.2.3", "2001:db8::2":
            self.assertReached(address)
        self.assertEqual(self.gateway.stop(), 0)
        del self.gateway.policy["GENERAL"]
        self.gateway.start()
        for address in "192.0.2.3", "2001:db8::3":
            self.assertReached(address)

    def assertReached(self, gateway: str) -> None:
        """Assert that a client of this gateway address has its tunnel."""
        self.client.policy["CLUSTER"]["Cluster 1"] = gateway
        self.client.policy["PEERS"] = {gateway: self.gateway.public_key}
        self.client.start()
        self.assertEqual(self.ping(), 3)
        (session,) = self.client.status()["sessions"]
        self.assertEqual(ip_address(session["gateway"]), ip_address(gateway))
        self.assertEqual(self.client.stop(), 0)


class LogTests(NodesTestCase):
    """What is logged."""

    timeout = 60

    def test_json(self) -> None:
        """Each line of the JSON log is an object with time, level, origin and text; no log holds a key."""
        self.start_both("--json-log", "log.json")
        self.assertEqual(self.ping(), 3)
        self.reload_nonsense()
        for node in self.client, self.gateway:
            self.assertEqual(node.stop(), 0)
            lines = (node.directory / "log.json").read_text().splitlines()
            for line in lines:
                event = json.loads(line)
                self.assertEqual(list(event)[:4], ["time", "level", "origin", "text"])
                self.assertLess(abs(event["time"] - time.time()), 60)
                self.assertIn(event["text"].splitlines()[0], node.log)
            secret = (node.directory / "node.key").read_text().strip()
            self.assertNotIn(secret, node.log + "".join(lines))
            self.assertNotIn("Traceback", node.log)
            self.assertIn(f"rvpn {node.role} has stopped", [json.loads(line)["text"] for line in lines])

    def reload_nonsense(self) -> None:
        """Have the client complain of a policy."""
        self.client.file.write_text("nonsense\n")
        self.assertEqual(self.client.command("reload")[0], 1)
