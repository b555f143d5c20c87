"""What rvpn sets on a real kernel: where packets go by it, and that it is as before when they are gone."""

import errno
import select
import socket
import struct
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from pyroute2 import IPRoute

from rvpn.constants import VNET_HEADER, Role
from rvpn.errors import LocalError
from rvpn.files.state import StateDirectory
from rvpn.interfaces import Endpoint, IPAddress
from rvpn.lab.namespaces import inside
from rvpn.net.host import OUTER_MARK, HostChanges
from rvpn.net.netlink import Netlink, OuterPath
from rvpn.net.tun import LARGEST_READ, TunDevice
from rvpn.net.udpsocket import open_socket
from tests.integration.namespaces import Namespace, NamespaceTestCase, Snapshot, snapshot

PORT = 4500
#: A node that makes every kind of change and then waits to be killed.
VICTIM = """
import sys, time
from ipaddress import ip_address, ip_network
from rvpn.constants import Role
from rvpn.net.host import HostChanges
from rvpn.net.netlink import Netlink
from rvpn.net.tun import TunDevice
from rvpn.files.state import StateDirectory

tun = TunDevice("rvpn0")
host = HostChanges(StateDirectory(sys.argv[1]), Role.CLIENT, Netlink())
host.prepare_tun("rvpn0", [ip_address("10.8.0.1")], 1400)
host.set_routes([ip_network("10.9.0.0/16"), ip_network("fd09::/16")], bypass=[ip_address("10.9.0.1")])
host.enable_forwarding(["rvpn0", "lan"])
print("ready", flush=True)
time.sleep(60)
"""


def udp_packet(source: str, destination: str, payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram without checksum, from and to port 7."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 28 + len(payload), 0, 0, 64, socket.IPPROTO_UDP, 0),
        *(IPv4Address(source).packed, IPv4Address(destination).packed),
    )
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", 0xFFFF - total) + header[12:]
    return header + struct.pack("!4H", 7, 7, 8 + len(payload), 0) + payload


class HostTestCase(NamespaceTestCase):
    """A host with the interfaces `outside` (192.0.2.1, 2001:db8::1) and `lan` (10.1.0.1, fd01::1)."""

    role: Role

    def setUp(self) -> None:
        super().setUp()
        self.outside, self.lan = Namespace(self), Namespace(self)
        self.here.connect("outside", self.outside, "eth0")
        self.here.connect("lan", self.lan, "eth0")
        self.here.address("outside", "192.0.2.1/24", "2001:db8::1/64")
        self.here.address("lan", "10.1.0.1/24", "fd01::1/64")
        self.outside.address("eth0", "192.0.2.2/24", "2001:db8::2/64")
        self.lan.address("eth0", "10.1.0.2/24", "fd01::2/64")
        self.here.route("0.0.0.0/0", "192.0.2.2")
        self.here.route("::/0", "2001:db8::2")
        self.lan.route("0.0.0.0/0", "10.1.0.1")
        for interface in "all", "outside", "lan":
            self.here.sysctl(f"ipv4/conf/{interface}/rp_filter", "1")
        self.state_path = str(Path(self.mktemp()).absolute())

    def node(self) -> None:
        """Bring up a node with the device rvpn0."""
        self.state = StateDirectory(self.state_path)
        self.addCleanup(self.state.close)
        self.netlink = Netlink()
        self.addCleanup(self.netlink.close)
        self.tun = TunDevice("rvpn0")
        self.addCleanup(self.tun.close)
        self.host = HostChanges(self.state, self.role, self.netlink)

    def udp(
        self, address: str, number: int = 0, mark: int | None = None, where: Namespace | None = None
    ) -> socket.socket:
        """Open a UDP socket, here or elsewhere."""
        with inside((where or self.here).descriptor):
            opened = open_socket(Endpoint(ip_address(address), number), mark)
        self.addCleanup(opened.close)
        opened.settimeout(1)
        return opened

    def from_tun(self, destination: IPAddress) -> tuple[IPAddress, bytes]:
        """Wait for a UDP packet from the kernel to `destination`; return its source and its payload."""
        buffer = memoryview(bytearray(LARGEST_READ))
        while select.select([self.tun], [], [], 1)[0]:
            packet = bytes(buffer[VNET_HEADER : self.tun.read(buffer)])
            if packet[0] >> 4 == 4 and packet[16:20] == destination.packed:
                return IPv4Address(packet[12:16]), packet[28:]
            if packet[0] >> 4 == 6 and packet[24:40] == destination.packed:
                return IPv6Address(packet[8:24]), packet[48:]
        raise AssertionError(f"nothing for {destination} came to the TUN")

    def assert_unchanged(self, before: Snapshot) -> None:
        """Compare the host with what it was."""
        after = snapshot()
        self.assertEqual({key: before.get(key) for key in after if after[key] != before.get(key)}, {})
        self.assertEqual(set(before) - set(after), set())


class UndoTests(HostTestCase):
    """Whatever ends a node, the host is as it was."""

    role = Role.CLIENT

    def change_everything(self) -> None:
        """Make every kind of change."""
        self.node()
        self.host.prepare_tun("rvpn0", [ip_address("10.8.0.1"), ip_address("fd08::1")], 1400)
        self.host.set_routes(
            [ip_network("10.9.0.0/16"), ip_network("fd09::/16")], bypass=[ip_address("10.9.0.1")]
        )
        self.host.enable_forwarding(["rvpn0", "lan"])

    def test_undo(self) -> None:
        """After `undo` and the end of the device nothing is left."""
        before = snapshot()
        self.change_everything()
        self.host.undo()
        self.tun.close()
        self.assert_unchanged(before)

    def test_each_interface_gets_its_own_value_back(self) -> None:
        """IPv6 forwarding overwrites every interface's value; each gets its former one."""
        self.here.sysctl("ipv6/conf/outside/forwarding", "1")
        self.here.sysctl("ipv6/conf/lan/accept_ra", "0")
        before = snapshot()
        self.change_everything()
        values = Path("/proc/sys/net/ipv6/conf")
        self.assertEqual((values / "lan/forwarding").read_text(), "1\n")
        self.host.undo()
        self.tun.close()
        self.assert_unchanged(before)

    def test_forwarding_host_is_left_alone(self) -> None:
        """Where IPv6 was forwarded before, it is so afterwards."""
        self.here.sysctl("ipv6/conf/all/forwarding", "1")
        before = snapshot()
        self.change_everything()
        self.host.undo()
        self.tun.close()
        self.assert_unchanged(before)

    def test_advertised_routes_survive_forwarding(self) -> None:
        """A host that has its default route from a router's advertisements keeps it."""
        advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)  # RFC 4861 section 4.2
        with inside(self.outside.descriptor):
            router = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self.addCleanup(router.close)
            router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            router.sendto(advertisement, ("ff02::1%eth0", 0))
        self.assertTrue(self.advertised_routes())
        self.change_everything()
        self.assertTrue(self.advertised_routes())

    def advertised_routes(self) -> int:
        """Count the default routes that the kernel has from advertisements."""
        with self.here.kernel() as kernel:
            return sum(route["proto"] == 9 for route in kernel.get_routes(family=socket.AF_INET6, dst_len=0))

    def test_killed(self) -> None:
        """The next start takes back what a killed process left, and `recover` again does no harm."""
        before = snapshot()
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM, self.state_path],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert victim.stdout is not None
        self.addCleanup(victim.stdout.close)
        self.addCleanup(victim.wait)
        self.addCleanup(victim.kill)
        self.assertEqual(victim.stdout.readline(), b"ready\n")
        victim.kill()
        victim.wait()
        self.assertNotEqual(snapshot(), before)
        # Until then nothing for the tunnel leaves in clear.
        self.assertRaises(OSError, self.udp("0.0.0.0").sendto, b"secret", ("10.9.0.9", 9))
        self.node()
        self.tun.close()
        self.host.recover()
        self.assert_unchanged(before)
        self.host.recover()
        self.assert_unchanged(before)

    def test_second_life(self) -> None:
        """A node can start on the host that was recovered, as if nothing had been."""
        before = snapshot()
        self.change_everything()
        self.tun.close()
        self.state.close()
        self.node()
        self.host.recover()
        self.host.prepare_tun("rvpn0", [ip_address("10.8.0.1")], 1400)
        self.host.set_routes([ip_network("10.9.0.0/16")])
        self.host.undo()
        self.tun.close()
        self.assert_unchanged(before)

    def test_journal_comes_first(self) -> None:
        """What cannot be noted is not done."""
        self.node()
        self.host.prepare_tun("rvpn0", [], 1400)
        before = snapshot()
        Path(self.state_path, ".host-changes.json.new").mkdir()
        self.assertRaises(LocalError, self.host.set_routes, [ip_network("10.9.0.0/16")])
        self.assertRaises(LocalError, self.host.enable_forwarding, ["lan"])
        self.assert_unchanged(before)

    def test_missing_interface(self) -> None:
        """Forwarding on an interface that does not exist is refused by name."""
        self.node()
        error = self.assertRaises(LocalError, self.host.enable_forwarding, ["lan7"])
        self.assertEqual(str(error), "there is no network interface lan7")


class TunTests(HostTestCase):
    """The TUN's own settings, which vanish with it."""

    role = Role.CLIENT

    def test_prepared_again(self) -> None:
        """Addresses and MTU become exactly those asked for, at a reload too."""
        self.node()
        first, second, third = map(ip_address, ("10.8.0.1", "fd08::1", "10.8.0.2"))
        self.host.prepare_tun("rvpn0", [first, second], 1400)
        self.assertEqual(self.netlink.addresses(self.tun.index), {first, second})
        self.host.prepare_tun("rvpn0", [second, third], 1380)
        self.assertEqual(self.netlink.addresses(self.tun.index), {second, third})
        self.assertEqual(self.setting("mtu"), 1380)

    def test_queue(self) -> None:
        """More packets wait in the TUN than the kernel's 500."""
        self.node()
        self.host.prepare_tun("rvpn0", [], 1400)
        self.assertEqual(self.setting("txqlen"), 1000)

    def setting(self, name: str) -> int:
        """Return a setting of the TUN."""
        with self.here.kernel() as kernel:
            found: int = kernel.link("get", index=self.tun.index)[0].get(name)
        return found

    def test_refused(self) -> None:
        """What the kernel refuses comes back as one line."""
        self.node()
        error = self.assertRaises(LocalError, self.host.prepare_tun, "rvpn0", [], 7)
        self.assertIn("cannot set the link up with MTU 7", str(error))


class ClientRoutingTests(HostTestCase):
    """A client whose tunnel covers everything, its gateway 192.0.2.2 and 2001:db8::2 included."""

    role = Role.CLIENT

    def setUp(self) -> None:
        super().setUp()
        self.node()
        self.host.prepare_tun("rvpn0", [ip_address("10.8.0.1"), ip_address("fd08::1")], 1400)
        self.route("0.0.0.0/0", "::/0")

    def route(self, *networks: str) -> None:
        """Route these networks into the tunnel."""
        self.host.set_routes(
            map(ip_network, networks),
            map(ip_address, ("10.8.0.1", "fd08::1")),
            map(ip_address, ("192.0.2.2", "2001:db8::2")),
        )

    def test_into_the_tunnel(self) -> None:
        """What the host sends goes into the TUN, from the inner address."""
        for target, anywhere, inner in (
            ("203.0.113.5", "0.0.0.0", "10.8.0.1"),
            ("2001:db8:5::5", "::", "fd08::1"),
        ):
            self.udp(anywhere).sendto(b"inner", (target, 9))
            self.assertEqual(self.from_tun(ip_address(target)), (ip_address(inner), b"inner"))

    def test_gateway_stays_outside(self) -> None:
        """To and from the gateway's address everything goes past the tunnel, under strict rp_filter too."""
        for gateway, anywhere in ("192.0.2.2", "0.0.0.0"), ("2001:db8::2", "::"):
            remote = self.udp(gateway, PORT, where=self.outside)
            for mark in None, OUTER_MARK:
                ours = self.udp(anywhere, mark=mark)
                ours.sendto(b"out", (gateway, PORT))
                datagram, source = remote.recvfrom(100)
                self.assertEqual(datagram, b"out")
                remote.sendto(b"in", source[:2])
                self.assertEqual(ours.recv(100), b"in")

    def test_network_of_a_gateway(self) -> None:
        """A tunnel network that is nothing but the gateway's address does not outweigh the bypass."""
        self.route("192.0.2.2/32", "2001:db8::2/128")
        self.test_gateway_stays_outside()

    def test_link_local_stays_outside(self) -> None:
        """Link-local addresses are not routed into the tunnel, which covers them."""
        with self.outside.kernel() as kernel:
            neighbour = next(
                found.get("address")
                for found in kernel.get_addr()
                if found.get("address").startswith("fe80:")
            )
        remote = self.udp("::", PORT, where=self.outside)
        self.udp("::").sendto(b"hello", (f"{neighbour}%outside", PORT))
        self.assertEqual(remote.recv(100), b"hello")

    def test_dead_process(self) -> None:
        """Without the TUN nothing for the tunnel leaves in clear, and marked datagrams still leave."""
        self.tun.close()
        for target, anywhere in ("203.0.113.5", "0.0.0.0"), ("2001:db8:5::5", "::"):
            error = self.assertRaises(OSError, self.udp(anywhere).sendto, b"inner", (target, 9))
            self.assertIn(error.errno, (errno.EHOSTUNREACH, errno.ENETUNREACH))
        self.udp("0.0.0.0", mark=OUTER_MARK).sendto(b"outer", ("203.0.113.5", 9))

    def test_reload(self) -> None:
        """Routes that a reload leaves out go, those that it adds come, and the rest stays."""
        self.route("10.9.0.0/16", "10.11.0.0/16")
        self.route("10.11.0.0/16", "10.13.0.0/16")
        with IPRoute() as kernel:
            tables = list(kernel.get_routes(table=29300, family=socket.AF_INET))
        found = sorted(
            (route.get("dst"), route["type"])
            for route in tables
            if not route.get("dst").startswith(("169", "192"))
        )
        self.assertEqual(found, [("10.11.0.0", 1), ("10.11.0.0", 7), ("10.13.0.0", 1), ("10.13.0.0", 7)])
        self.udp("0.0.0.0").sendto(b"inner", ("10.13.0.9", 9))
        self.from_tun(ip_address("10.13.0.9"))

    def test_adjacent_networks_are_merged(self) -> None:
        """Overlapping networks need no routes of their own."""
        self.route("10.9.0.0/17", "10.9.128.0/17", "10.9.3.0/24")
        self.udp("0.0.0.0").sendto(b"inner", ("10.9.200.1", 9))
        self.from_tun(ip_address("10.9.200.1"))

    def test_path(self) -> None:
        """The path to a gateway is the outside one, with the smallest MTU known for it."""
        mine, gateway = ip_address("192.0.2.1"), ip_address("192.0.2.2")
        self.assertEqual(self.netlink.path_to(gateway, OUTER_MARK), OuterPath(mine, 1500))
        far = ip_address("203.0.113.5")
        self.assertEqual(self.netlink.path_to(far, OUTER_MARK), OuterPath(mine, 1500))
        with self.here.kernel() as kernel:
            kernel.route("add", dst="203.0.113.0/24", gateway="192.0.2.2", metrics={"mtu": 1350})
        self.assertEqual(self.netlink.path_to(far, OUTER_MARK), OuterPath(mine, 1350))

    def test_path_ipv6(self) -> None:
        """So for IPv6, where a router may have announced a smaller MTU."""
        mine, gateway = ip_address("2001:db8::1"), ip_address("2001:db8::2")
        self.assertEqual(self.netlink.path_to(gateway, OUTER_MARK), OuterPath(mine, 1500))
        self.here.sysctl("ipv6/conf/outside/mtu", "1400")
        self.assertEqual(self.netlink.path_to(gateway, OUTER_MARK), OuterPath(mine, 1400))

    def test_no_path(self) -> None:
        """Without a route there is no path."""
        with self.here.kernel() as kernel:
            kernel.flush_routes(table=254, family=socket.AF_INET)
            kernel.flush_routes(table=254, family=socket.AF_INET6)
        for target in "203.0.113.5", "2001:db8:5::5":
            self.assertIsNone(self.netlink.path_to(ip_address(target), OUTER_MARK))


class GatewayRoutingTests(HostTestCase):
    """A gateway whose client at 192.0.2.2 uses that outer address inside the tunnel too (R18)."""

    role = Role.GATEWAY

    def setUp(self) -> None:
        super().setUp()
        self.node()
        self.host.prepare_tun("rvpn0", [], 1400)
        self.host.set_routes([ip_network("192.0.2.2/32")], [ip_address("10.1.0.1")])
        self.host.enable_forwarding(["rvpn0", "lan"], [4])
        self.client = ip_address("192.0.2.2")

    def test_esp_stays_outside(self) -> None:
        """The client's ESP gets in by the outside interface, strict rp_filter or not, and the answer out."""
        remote, ours = self.udp("192.0.2.2", where=self.outside), self.udp("0.0.0.0", PORT, OUTER_MARK)
        remote.sendto(b"in", ("192.0.2.1", PORT))
        datagram, source = ours.recvfrom(100)
        self.assertEqual(datagram, b"in")
        ours.sendto(b"out", source)
        self.assertEqual(remote.recv(100), b"out")

    def test_outer_address_stays_outside(self) -> None:
        """What the client asks the gateway's outer address in clear is answered from there in clear."""
        remote, ours = self.udp("192.0.2.2", where=self.outside), self.udp("192.0.2.1", 7)
        remote.sendto(b"in", ("192.0.2.1", 7))
        ours.sendto(b"out", ours.recvfrom(100)[1])
        self.assertEqual(remote.recv(100), b"out")

    def test_own_packets_into_the_tunnel(self) -> None:
        """What the gateway's host itself sends to the client goes into the TUN, from its LAN address."""
        for address in "0.0.0.0", "10.1.0.1":
            self.udp(address).sendto(b"inner", ("192.0.2.2", 9))
            self.assertEqual(self.from_tun(self.client), (ip_address("10.1.0.1"), b"inner"))

    def test_from_the_lan(self) -> None:
        """The LAN's packets to the client go into the TUN, those from the port of ESP too."""
        for number in PORT, 7:
            self.udp("10.1.0.2", number, where=self.lan).sendto(b"inner", ("192.0.2.2", 9))
            self.assertEqual(self.from_tun(self.client), (ip_address("10.1.0.2"), b"inner"))

    def test_to_the_lan(self) -> None:
        """What the client sent through the tunnel is forwarded to the LAN, under strict rp_filter too."""
        target = self.udp("10.1.0.2", 7, where=self.lan)
        self.tun.write(bytes(VNET_HEADER) + udp_packet("192.0.2.2", "10.1.0.2", b"inner"))
        self.assertEqual(target.recvfrom(100), (b"inner", ("192.0.2.2", 7)))

    def test_ipv6_forwarding(self) -> None:
        """With IPv6 forwarded as well the LAN's packets reach the TUN."""
        self.host.set_routes([ip_network("fd08::1/128")], [ip_address("fd01::1")])
        self.host.enable_forwarding(["rvpn0", "lan"], [6])
        self.lan.route("fd08::/16", "fd01::1")
        self.udp("fd01::2", where=self.lan).sendto(b"inner", ("fd08::1", 9))
        self.assertEqual(self.from_tun(ip_address("fd08::1")), (ip_address("fd01::2"), b"inner"))

    def test_client_on_the_same_host(self) -> None:
        """A client on the gateway's host leaves the gateway's traffic alone."""
        state = StateDirectory(self.mktemp())
        self.addCleanup(state.close)
        tun = TunDevice("rvpn1")
        self.addCleanup(tun.close)
        client = HostChanges(state, Role.CLIENT, self.netlink)
        client.prepare_tun("rvpn1", [], 1400)
        client.set_routes([ip_network("203.0.113.0/24")])
        self.test_esp_stays_outside()
        self.test_from_the_lan()
        client.undo()
        self.test_own_packets_into_the_tunnel()
