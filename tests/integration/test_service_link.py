"""An outside link that gets another MTU while the services run, and a way that moves to another link."""

import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from rvpn.esp.codec import inner_mtu
from rvpn.lab.namespaces import inside
from rvpn.lab.records import Log, Progress
from rvpn.net.watch import SETTLING
from tests.integration.namespaces import Namespace
from tests.integration.nodes import TARGET, Node, NodesTestCase, wait_until

#: Bytes per second of the transfer, each way, and bytes after which it is known to go on.
RATE, ENOUGH = 4_000_000, 2_000_000
#: The gateway's address behind either of two links.
ELSEWHERE = "203.0.113.2"


class LinkTests(NodesTestCase):
    """A TCP transfer, both ways, whose bytes are verified, goes on; nobody reads a policy again."""

    timeout = 60

    def carry(self) -> None:
        """Start the services and the transfer."""
        self.transfer = Log(self.client.directory / "transfer", Progress)
        self.start_both()
        self.run_tool(self.lan, "servers")
        self.run_tool(self.here, "monitor", "transfer", TARGET, str(self.transfer.path), "--rate", str(RATE))
        self.assertGoesOn()

    def run_tool(self, namespace: Namespace, *words: str) -> None:
        """Run a tool of the laboratory until the end of the test; return when it is ready."""
        with inside(namespace.descriptor):
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", f"rvpn.lab.{words[0]}", *words[1:]],
                stdout=subprocess.PIPE,
            )
        assert process.stdout is not None
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        self.assertTrue(process.stdout.readline())

    def assertGoesOn(self) -> None:
        """Assert that the transfer brings enough from now on, unharmed."""
        begun = self.verified()
        wait_until(lambda: self.verified() > begun + ENOUGH, "the transfer stands still")
        last = self.transfer.read()[-1]
        self.assertEqual((last.broken, last.wrong), (0, 0))

    def verified(self) -> int:
        """Return how many bytes came back as they were sent."""
        return max((each.verified for each in self.transfer.read()[-1:]), default=0)

    def fragments(self) -> int:
        """Return how many fragments both ends made."""
        made = 0
        for namespace in self.here, self.beyond:
            with inside(namespace.descriptor):
                names, values = re.findall(r"^Ip: (.*)", Path("/proc/net/snmp").read_text(), re.MULTILINE)
            made += int(values.split()[names.split().index("FragCreates")])
        return made

    def set_mtu(self, mtu: int) -> None:
        """Let both ends of the outside link carry so many bytes."""
        for namespace in self.here, self.beyond:
            with namespace.kernel() as kernel:
                kernel.link("set", ifname="outside", mtu=mtu)

    @staticmethod
    def fits(node: Node, mtu: int) -> bool:
        """Tell whether the TUN device of a node is made for a link of this MTU."""
        fitting: bool = node.status()["mtu"] == inner_mtu(mtu, 4)
        return fitting

    def assertFits(self, mtu: int) -> None:
        """Assert that both ends follow a link of this MTU, and then send no fragments."""
        for node in self.client, self.gateway:
            wait_until(partial(self.fits, node, mtu), f"{node.role}: {mtu}")
        # What was under way before may still be cut.
        self.assertGoesOn()
        before = self.fragments()
        self.assertGoesOn()
        self.assertEqual(self.fragments(), before)
        self.assertEqual(self.ping(size=inner_mtu(mtu, 4) - 28), 3)
        self.assertEqual(self.client.status()["exchanges"]["established"], 1)

    def test_another_mtu(self) -> None:
        """DESIGN 3: TUN devices and sessions follow a link that carries less and then more."""
        self.carry()
        for mtu in 1400, 1500:
            self.set_mtu(mtu)
            self.assertFits(mtu)
        for node in self.client, self.gateway:
            self.assertIn(f"another MTU: that of rvpn0 is {inner_mtu(1400, 4)} now", node.log)

    def test_another_link(self) -> None:
        """The client's way to its gateway moves to a link that carries less, which the gateway has, too."""
        self.here.connect("narrow", self.beyond, "narrow")
        self.here.address("narrow", "198.51.100.1/24")
        self.beyond.address("narrow", "198.51.100.2/24")
        self.beyond.address("lo", f"{ELSEWHERE}/32")
        self.here.route(f"{ELSEWHERE}/32", "192.0.2.2")
        self.client.policy["CLUSTER"] = {"Cluster 1": ELSEWHERE}
        self.client.policy["PEERS"] = {ELSEWHERE: self.gateway.public_key}
        self.carry()
        for namespace in self.here, self.beyond:
            with namespace.kernel() as kernel:
                kernel.link("set", ifname="narrow", mtu=1400)
        self.assertTrue(self.fits(self.client, 1500), "that is not its way")
        with self.here.kernel() as kernel:
            kernel.route("replace", dst=f"{ELSEWHERE}/32", gateway="198.51.100.2")
        self.assertFits(1400)

    def test_no_link(self) -> None:
        """While no way leads outside, everything stays as it was."""
        self.set_mtu(1400)
        self.start_both()
        for namespace in self.here, self.beyond:
            with namespace.kernel() as kernel:
                kernel.link("set", ifname="outside", state="down")
        time.sleep(3 * SETTLING)
        for node in self.client, self.gateway:
            self.assertTrue(self.fits(node, 1400))
            self.assertNotIn("another MTU", node.log)
