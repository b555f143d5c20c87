"""The laboratory without the services: its network, faults, bad paths, captures and traffic."""

import logging
import sys
import time
from signal import SIGKILL

from rvpn.errors import LocalError
from rvpn.lab import faults, requirements
from rvpn.lab.capture import LAN_LINK, OUTSIDE_LINK, Capture, gateway_link
from rvpn.lab.classify import Kind
from rvpn.lab.impairment import Impairment
from rvpn.lab.topology import BACK, INNER_ADDRESSES, OUT
from tests.integration.lab_case import LabTestCase

# Importing scapy reads the machine's interfaces and warns about what it finds missing.
logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers import inet, inet6, l2  # noqa: E402, F401 (what rdpcap can read)
from scapy.utils import rdpcap  # noqa: E402


class NetworkTests(LabTestCase):
    """The network as built."""

    def test_paths(self) -> None:
        """The client reaches every gateway, and every gateway every target, in both families."""
        for family in (4, 6):
            lab = self.start_lab(family)
            for gateway in lab.topology.gateway_names:
                address = lab.topology.gateway_address(gateway)
                self.assertEqual(self.ping(lab, "client", address)["lost"], 0, gateway)
            for address in lab.topology.lan_addresses("target3"):
                self.assertEqual(self.ping(lab, "gateway3", address)["lost"], 0, address)

    def test_no_short_cut(self) -> None:
        """
        Gateways do not forward by themselves, so that no packet reaches a target but through the tunnel.
        """
        lab = self.start_lab()
        result = lab.traffic("client", "ping", "10.0.0.1", "--count", 2, "--wait", 0.2)
        self.assertEqual(result["received"], 0)

    def test_no_way_out(self) -> None:
        """No namespace has an interface that is not the laboratory's, and the router no default route."""
        lab = self.start_lab()
        for node in lab.topology.nodes:
            lines = lab.run(node.name, ["cat", "/proc/net/dev"]).output.decode().splitlines()[2:]
            found = {line.split(":")[0].strip() for line in lines}
            expected = {"lo", *(interface.name for interface in node.interfaces)}
            self.assertEqual(found, expected | {node.bridge} if node.bridge else expected)
        routes = lab.run("router", ["cat", "/proc/net/route"]).output.decode().splitlines()[1:]
        self.assertEqual([route for route in routes if int(route.split()[7], 16) == 0], [])

    def test_sizes(self) -> None:
        """There are as many gateways and targets as were asked for."""
        lab = self.start_lab(6, gateways=1, targets=1)
        self.assertEqual(self.ping(lab, "client", lab.topology.gateway_address("gateway1"))["lost"], 0)
        with self.assertRaisesRegex(LocalError, "no node gateway2"):
            lab.run("gateway2", ["true"])

    def test_user_namespace(self) -> None:
        """In a user namespace, as without root, everything is as it is for root."""
        in_user_namespace = requirements.UNSHARE + requirements.AS_USER
        self.patch(requirements, "unshare_command", lambda: in_user_namespace)
        lab = self.start_lab()
        faults.impair(lab, Impairment(delay=0.02))
        with Capture.start(lab, OUTSIDE_LINK) as capture:
            result = self.ping(lab, "client", lab.topology.gateway_address("gateway1"))
            self.assertEqual(capture.stop().packets[Kind.ICMP], 10)
        self.assertEqual(result["lost"], 0)
        self.assertGreaterEqual(result["rtt"]["min"], 40)


class ProcessTests(LabTestCase):
    """Commands in the nodes."""

    def setUp(self) -> None:
        self.lab = self.start_lab(gateways=1, targets=1)

    def test_run(self) -> None:
        """A command's exit code and both outputs come back."""
        done = self.lab.run("client", ["sh", "-c", "echo out; echo err >&2; exit 7"])
        self.assertEqual((done.code, done.output, done.errors), (7, b"out\n", b"err\n"))

    def test_killed(self) -> None:
        """A command that a signal ended says which."""
        self.assertEqual(self.lab.run("client", ["sh", "-c", "kill -9 $$"]).code, -SIGKILL)

    def test_missing(self) -> None:
        """A command or node that does not exist is named."""
        with self.assertRaisesRegex(LocalError, "nosuchcommand"):
            self.lab.run("client", ["nosuchcommand"])
        with self.assertRaisesRegex(LocalError, "no node nowhere; the nodes are client, router"):
            self.lab.run("nowhere", ["true"])

    def test_too_long(self) -> None:
        """A command that takes too long is killed."""
        with self.assertRaisesRegex(LocalError, "took more than 0.2 s"):
            self.lab.run("client", ["sleep", "86399"], timeout=0.2)
        self.assertNotIn(b"86399", self.lab.run("client", ["sh", "-c", "cat /proc/[0-9]*/cmdline"]).output)

    def test_named(self) -> None:
        """A named process outlives who started it, can be signalled by its name, and there is only one."""
        self.lab.spawn("gateway1", ["sleep", "60"], name="gateway1").close()
        self.assertBecomes("running")
        with self.assertRaisesRegex(LocalError, "gateway1 runs already"):
            self.lab.spawn("gateway1", ["sleep", "60"], name="gateway1")
        faults.freeze(self.lab, "gateway1")
        self.assertBecomes("frozen")
        faults.thaw(self.lab, "gateway1")
        self.assertBecomes("running")
        faults.kill(self.lab, "gateway1")
        with self.assertRaisesRegex(LocalError, "gateway1 is not running"):
            for _ in range(100):
                faults.kill(self.lab, "gateway1")

    def assertBecomes(self, state: str) -> None:
        """Assert that gateway1's process soon is in that state."""
        for _ in range(100):
            if (found := self.lab.status()["processes"]["gateway1"]["state"]) == state:
                return
            time.sleep(0.01)
        self.assertEqual(found, state)

    def test_orphans(self) -> None:
        """A process whose parent died is collected: none stays a zombie."""
        self.lab.run("client", ["sh", "-c", "sleep 0.05 & exit 0"])
        for _ in range(200):
            states = self.lab.run("client", ["sh", "-c", "cat /proc/[0-9]*/stat"]).output
            if b"(sleep)" not in states:
                return
            time.sleep(0.01)
        self.assertNotIn(b"(sleep)", states)


class FaultTests(LabTestCase):
    """Faults of links and paths, each with its undo."""

    def reaches(self, node: str, address: object) -> bool:
        """Tell whether the last of a few pings got an answer."""
        result = self.ping(self.lab, node, address)
        return bool(result["received"])

    def test_cut(self) -> None:
        """A path is cut in one direction alone or in both, in silence, and the other paths are not."""
        for family in (4, 6):
            self.lab = self.start_lab(family)
            first, second = (self.lab.topology.gateway_address(f"gateway{number}") for number in (1, 2))
            for directions, arriving in (((OUT,), 0), ((BACK,), 10), ((OUT, BACK), 0)):
                faults.cut(self.lab, "gateway1", directions)
                with Capture.start(self.lab, gateway_link("gateway1")) as capture:
                    self.assertFalse(self.reaches("client", first))
                    self.assertEqual(capture.stop().packets[Kind.ICMP], arriving, directions)
                self.assertTrue(self.reaches("client", second))
                faults.mend(self.lab, "gateway1")
                self.assertTrue(self.reaches("client", first))

    def test_outside_interface(self) -> None:
        """The outside interface goes down, and comes up with its addresses and routes, usable at once."""
        for family in (4, 6):
            self.lab = self.start_lab(family)
            address = self.lab.topology.gateway_address("gateway1")
            faults.set_outside(self.lab, "gateway1", up=False)
            self.assertFalse(self.reaches("client", address))
            self.assertTrue(self.reaches("client", self.lab.topology.gateway_address("gateway2")))
            self.assertEqual(self.lab.status()["network"]["down"], ["gateway1 outside"])
            faults.set_outside(self.lab, "gateway1", up=True)
            self.assertEqual(self.ping(self.lab, "client", address, 50)["longest_gap"], 0)

    def test_lan_interface(self) -> None:
        """The same holds for the LAN interface, in both families."""
        self.lab = self.start_lab()
        for address in self.lab.topology.lan_addresses("gateway1"):
            self.assertTrue(self.reaches("target1", address))
            faults.set_lan(self.lab, "gateway1", up=False)
            self.assertFalse(self.reaches("target1", address))
            faults.set_lan(self.lab, "gateway1", up=True)
            self.assertEqual(self.ping(self.lab, "target1", address, 50)["longest_gap"], 0)

    def test_targets_answer_through(self) -> None:
        """The targets send what is for the client's inner addresses to the gateway that was said."""
        self.lab = self.start_lab(targets=1)
        for gateway in ("gateway2", "gateway3"):
            self.lab.change("point_targets_at", gateway)
            self.assertEqual(self.lab.status()["network"]["inner_gateway"], gateway)
            for inner in INNER_ADDRESSES:
                counter = ["sh", "-c", "grep -h lan: /proc/net/dev | tr -s ' ' | cut -d ' ' -f 4"]
                before = int(self.lab.run(gateway, counter).output)
                self.lab.traffic("target1", "ping", inner, "--count", 20, "--interval", 0.001, "--wait", 0)
                self.assertGreaterEqual(int(self.lab.run(gateway, counter).output) - before, 20)

    def test_unknown(self) -> None:
        """A change that does not exist, or of what does not exist, is refused."""
        self.lab = self.start_lab()
        for change in (
            ("set_fire",),
            ("set_link", "gateway1", "inside", False),
            ("set_cut", "gateway9", OUT, True),
        ):
            self.assertRaises(LocalError, self.lab.change, *change)


class ImpairmentTests(LabTestCase):
    """Bad paths, in both families."""

    def setUp(self) -> None:
        self.labs = [self.start_lab(family) for family in (4, 6)]

    def test_delay(self) -> None:
        """A delay shows twice in the round trip, on the chosen path alone, until it is undone."""
        for lab in self.labs:
            first, second = (lab.topology.gateway_address(f"gateway{number}") for number in (1, 2))
            faults.impair(lab, Impairment(delay=0.03), ["gateway1"])
            self.assertGreaterEqual(self.ping(lab, "client", first)["rtt"]["min"], 60)
            self.assertLess(self.ping(lab, "client", second)["rtt"]["min"], 30)
            faults.clear(lab)
            self.assertLess(self.ping(lab, "client", first)["rtt"]["min"], 30)

    def test_loss(self) -> None:
        """What the impairment says it lost is what is missing; nothing else is."""
        for lab in self.labs:
            address = lab.topology.gateway_address("gateway1")
            faults.impair(lab, Impairment(loss=0.2), ["gateway1"], [BACK])
            result = self.ping(lab, "client", address, 500)
            status = faults.impairment_status(lab)
            assert status is not None
            (direction,) = status["directions"]
            self.assertEqual((direction["seen"], direction["lost"]), (500, result["lost"]))
            self.assertTrue(60 <= result["lost"] <= 140, result["lost"])

    def test_duplicates_and_disorder(self) -> None:
        """Duplicates arrive as such, and overtaken datagrams out of order."""
        for lab in self.labs:
            self.serve(lab, "gateway1")
            address = lab.topology.gateway_address("gateway1")
            faults.impair(lab, Impairment(duplicate=0.2, reorder=0.2), directions=[OUT])
            result = lab.traffic("client", "udp", address, "--count", 500, "--interval", 0.001, "--wait", 0.5)
            self.assertEqual(result["lost"], 0)
            self.assertTrue(60 <= result["duplicates"] <= 140, result)
            self.assertTrue(result["reordered"] >= 60, result)

    def test_stream(self) -> None:
        """TCP gets its data through a path that loses, reorders and duplicates."""
        for lab in self.labs:
            self.serve(lab, "gateway1")
            faults.impair(lab, Impairment(loss=0.02, reorder=0.05, duplicate=0.02))
            address = lab.topology.gateway_address("gateway1")
            self.assertTrue(lab.traffic("client", "stream", address, "--size", 1 << 20, "--echo")["ok"])

    def test_thousands_per_second(self) -> None:
        """Nothing of 2,000 datagrams in half a second passes the impairment by or gets lost in it."""
        lab = self.labs[0]
        self.serve(lab, "gateway1")
        faults.impair(lab, Impairment())
        address = lab.topology.gateway_address("gateway1")
        result = lab.traffic("client", "udp", address, "--count", 2000, "--interval", 0.00025, "--size", 1000)
        status = faults.impairment_status(lab)
        assert status is not None
        self.assertEqual((status["overflowed"], status["refused"]), (0, 0))
        seen = {path["direction"]: path["seen"] for path in status["directions"] if path["seen"]}
        self.assertEqual(seen[OUT], 2000)
        self.assertGreaterEqual(seen[BACK], result["received"])

    def test_nat(self) -> None:
        """
        A gateway sees the NAT's address, another one after each rebinding, and the client does not notice.
        """
        for lab in self.labs:
            self.serve(lab, "gateway1")
            address = lab.topology.gateway_address("gateway1")
            seen = []
            for _ in range(2):
                seen.append(faults.rebind(lab))
                with Capture.start(lab, gateway_link("gateway1")) as capture:
                    result = lab.traffic("client", "udp", address, "--interval", 0.001)
                    capture.stop()
                packets = [packet for packet in rdpcap(str(capture.pcap)) if packet.haslayer("UDP")]
                sources = {packet.payload.src for packet in packets}
                self.assertEqual(sources, {seen[-1], str(address)})
                self.assertEqual((result["lost"], len(packets)), (0, 10))
            self.assertNotEqual(*seen)

    def test_mtu(self) -> None:
        """
        Both ends learn a lowered path MTU from ICMP errors: plainly, through the impairment, through a NAT.
        """
        for lab in self.labs:
            for gateway in lab.topology.gateway_names:
                self.serve(lab, gateway)
                if gateway == "gateway2":
                    faults.impair(lab, Impairment(), [gateway])
                if gateway == "gateway3":
                    faults.rebind(lab)
                faults.set_mtu(lab, 1300, [gateway])
                address = lab.topology.gateway_address(gateway)
                # The first datagram from each end is lost: it draws the ICMP error.
                size = ("--size", 1390, "--count", 6, "--interval", 0.05, "--wait", 0.2)
                self.assertEqual(lab.traffic("client", "udp", address, *size)["received"], 4, gateway)
                self.assertTrue(lab.traffic("client", "stream", address, "--echo", "--timeout", 5)["ok"])
            faults.clear(lab)
            self.assertEqual(lab.status()["network"]["mtu"], {})

    def test_repeated(self) -> None:
        """An impairment replaces the one before; to clear twice does no harm."""
        lab = self.labs[0]
        for _ in range(2):
            faults.impair(lab, Impairment(loss=1.0))
            faults.impair(lab, Impairment())
            self.assertEqual(self.ping(lab, "client", lab.topology.gateway_address("gateway2"))["lost"], 0)
            faults.clear(lab)
            faults.clear(lab)
        self.assertEqual(lab.status()["network"]["impaired"], [])

    def test_killed(self) -> None:
        """Where the impairment's process dies, packets take the ordinary way, and it can be started anew."""
        lab = self.labs[0]
        address = lab.topology.gateway_address("gateway1")
        faults.impair(lab, Impairment(delay=0.05))
        lab.signal(faults.IMPAIRER, SIGKILL)
        self.assertLess(self.ping(lab, "client", address)["rtt"]["min"], 50)
        faults.impair(lab, Impairment(delay=0.05))
        self.assertGreaterEqual(self.ping(lab, "client", address)["rtt"]["min"], 100)


class CaptureTests(LabTestCase):
    """Captures see every frame, from the moment they are started."""

    def test_outside(self) -> None:
        """Each ping is counted twice, request and answer, from the first one on; the capture file agrees."""
        for family in (4, 6):
            lab = self.start_lab(family)
            address = lab.topology.gateway_address("gateway1")
            with Capture.start(lab, OUTSIDE_LINK) as capture:
                self.ping(lab, "client", address, 100)
                counts = capture.stop()
            self.assertEqual((counts.packets[Kind.ICMP], counts.missed), (200, 0))
            self.assertEqual(len(rdpcap(str(capture.pcap))), sum(counts.packets.values()))

    def test_lan(self) -> None:
        """On the LAN, what passes from port to port is seen once."""
        lab = self.start_lab()
        with Capture.start(lab, LAN_LINK) as capture:
            for address in lab.topology.lan_addresses("target1"):
                self.ping(lab, "gateway1", address, 10)
            counts = capture.stop()
        self.assertEqual(counts.packets[Kind.ICMP], 40)
        self.assertEqual(counts.packets[Kind.CLEAR], 0)

    def test_burst(self) -> None:
        """A stream at full speed overruns no capture."""
        lab = self.start_lab()
        self.serve(lab, "gateway1")
        with Capture.start(lab, OUTSIDE_LINK) as capture:
            size = 16 << 20
            lab.traffic("client", "stream", lab.topology.gateway_address("gateway1"), "--size", size)
            counts = capture.stop()
        self.assertEqual(counts.missed, 0)
        self.assertGreater(counts.octets[Kind.OTHER], size)

    def test_no_such_interface(self) -> None:
        """A capture that cannot start says why."""
        lab = self.start_lab()
        with self.assertRaisesRegex(LocalError, "rvpn.lab.sniffer in router did not get ready"):
            Capture.start(lab, gateway_link("gateway9"))


class TrafficTests(LabTestCase):
    """The tools themselves, on an unspoilt LAN."""

    def setUp(self) -> None:
        self.lab = self.start_lab(targets=1)
        self.lab.serve_targets()

    def test_all(self) -> None:
        """Everything arrives as it was sent, in both families."""
        for address in self.lab.topology.lan_addresses("target1"):
            for tool in (("fetch",), ("stream",), ("stream", "--echo")):
                result = self.lab.traffic("gateway1", tool[0], address, *tool[1:], "--size", 200_001)
                self.assertTrue(result["ok"], (tool, result))
                self.assertEqual(result["bytes"], 200_001)
            datagrams = self.lab.traffic("gateway1", "udp", address, "--interval", 0.001)
            self.assertEqual((datagrams["received"], datagrams["lost"]), (5, 0))

    def test_seed(self) -> None:
        """Other seeds are other data."""
        address = self.lab.topology.lan_addresses("target1")[0]
        sums = {self.lab.traffic("gateway1", "fetch", address, "--seed", seed)["sha256"] for seed in (1, 2)}
        self.assertEqual(len(sums), 2)

    def test_nobody_listens(self) -> None:
        """Where nothing could be measured, the reason is told."""
        address = self.lab.topology.lan_addresses("gateway2")[0]
        for tool in ("fetch", "stream"):
            with self.assertRaisesRegex(LocalError, f"{tool} {address}: Connection refused"):
                self.lab.traffic("gateway1", tool, address)

    def test_gaps(self) -> None:
        """An interruption shows as one gap of its length."""
        address = self.lab.topology.gateway_address("gateway1")
        pings = self.lab.start_traffic(
            "client", "ping", address, "--count", 400, "--interval", 0.005, "--wait", 0.2
        )
        time.sleep(0.8)
        faults.cut(self.lab, "gateway1")
        time.sleep(0.2)
        faults.mend(self.lab, "gateway1")
        result = pings.result()
        self.assertEqual(len(result["gaps"]), 1, result)
        self.assertTrue(0.15 <= result["longest_gap"] <= 0.6, result)

    def test_command_line(self) -> None:
        """The exit code is 0 if everything arrived and 1 if not."""
        for address, code in (("10.0.0.1", 0), ("10.0.0.9", 1)):
            tool = ["-m", "rvpn.lab.traffic", "ping", address, "--count", "1", "--wait", "0.2"]
            self.assertEqual(self.lab.run("gateway1", [sys.executable, *tool]).code, code)
