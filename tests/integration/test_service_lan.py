"""A gateway on a LAN whose interface comes and goes."""

from tests.integration.nodes import INNER, INNER6, TARGET, TARGET6, NodesTestCase, wait_until


class InterfaceTests(NodesTestCase):
    """A LAN interface that is removed and made again, with another index and MAC (R14)."""

    timeout = 60

    def setUp(self) -> None:
        super().setUp()
        self.gateway.policy["LAN"]["Presence"] = "proxy-arp"
        self.look_for_the_client()

    def look_for_the_client(self) -> None:
        """Have the target ask the LAN who has the client's inner addresses."""
        with self.lan.kernel() as kernel:
            (index,) = kernel.link_lookup(ifname="lan")
            for address in INNER, INNER6:
                kernel.route("add", dst=address, oif=index)

    def make_anew(self) -> None:
        """Remove the cable of the LAN, and lay another."""
        with self.beyond.kernel() as kernel:
            kernel.link("del", ifname="lan")
        wait_until(lambda: "the LAN interface is down" in self.gateway.log, "the gateway notices")
        self.beyond.connect("lan", self.lan, "lan")
        self.beyond.address("lan", "10.0.0.21/24", "fd00:10::21/64")
        self.lan.address("lan", f"{TARGET}/24", f"{TARGET6}/64")
        self.look_for_the_client()

    def test_made_anew(self) -> None:
        """Without a reload packets pass as before, and the gateway answers on the LAN; the log says so."""
        self.start_both()
        self.assertEqual((self.ping(), self.ping(TARGET6)), (3, 3))
        before = self.gateway.host
        self.make_anew()
        wait_until(lambda: "the LAN is reached again" in self.gateway.log, "the gateway is of use again")
        self.assertIn("lan was made anew", self.gateway.log)
        wait_until(lambda: self.ping(wait=0.5) == 3, "the LAN answers")
        wait_until(lambda: self.ping(TARGET6, wait=0.5) == 3, "it answers by IPv6 too")
        switch = "/proc/sys/net/ipv4/conf/lan/forwarding"
        self.assertEqual((before[switch], self.gateway.host[switch]), ("1\n", "1\n"))
        self.assertEqual(self.gateway.stop(), 0)
        self.assertEqual(self.gateway.host[switch], "0\n")

    def test_reload(self) -> None:
        """A reload switches forwarding on where somebody else switched it off."""
        self.start_both()
        self.beyond.sysctl("ipv4/conf/lan/forwarding", "0")
        self.assertEqual(self.gateway.command("reload")[0], 0)
        self.assertEqual(self.ping(), 3)
