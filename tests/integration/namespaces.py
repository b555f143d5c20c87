"""
Network namespaces for tests: made by the test, gone with it, and without a way to the real network.

The test itself runs in the first one, `NamespaceTestCase.here`. Where the machine cannot do this, every
test of such a class is skipped, with the reason.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from rvpn.lab.namespaces import inside, new_network

#: Takes the checksum offload for sending from an interface (ETHTOOL_STXCSUM, <linux/ethtool.h>).
NO_CHECKSUM_OFFLOAD = """
import array, fcntl, socket, struct, sys
value = array.array("I", [0x17, 0])
request = struct.pack("16sP16x", sys.argv[1].encode(), value.buffer_info()[0])
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8946, request)
"""


#: What `snapshot` found.
Snapshot = dict[str, object]


class Namespace:
    """A network namespace with its loopback up, for as long as `case` runs."""

    def __init__(self, case: TestCase) -> None:
        self.descriptor = new_network()
        case.addCleanup(os.close, self.descriptor)
        with self.kernel() as kernel:
            kernel.link("set", index=1, state="up")
        # No duplicates to look for, which would keep new links silent for two seconds.
        self.sysctl("ipv6/conf/default/accept_dad", "0")
        self.sysctl("ipv6/conf/default/dad_transmits", "0")

    @contextmanager
    def kernel(self) -> Iterator[Any]:
        """Enter the namespace, with a netlink socket."""
        with inside(self.descriptor), IPRoute() as kernel:
            yield kernel

    def connect(self, name: str, other: "Namespace", other_name: str, mtu: int = 1500) -> None:
        """Join the two by a cable between these interfaces, both up."""
        with self.kernel() as kernel:
            kernel.link(
                "add", ifname=name, kind="veth", peer={"ifname": other_name, "net_ns_fd": other.descriptor}
            )
        for end, interface in (self, name), (other, other_name):
            with end.kernel() as kernel:
                kernel.link("set", ifname=interface, mtu=mtu, state="up")

    def address(self, interface: str, *addresses: str) -> None:
        """Give the interface addresses in CIDR, and wait until the kernel receives for them."""
        with self.kernel() as kernel:
            (index,) = kernel.link_lookup(ifname=interface)
            for address in addresses:
                kernel.addr("add", index=index, address=address, flags=0x02)  # IFA_F_NODAD
            wanted = {str(ip_interface(address).ip) for address in addresses}
            for _ in range(200):
                if wanted <= {route.get("dst") for route in kernel.get_routes(table=255)}:
                    return
                time.sleep(0.005)
            raise AssertionError(f"the kernel does not receive for all of {wanted}")

    def route(self, destination: str, gateway: str) -> None:
        """Add a route to a network in CIDR."""
        with self.kernel() as kernel:
            kernel.route("add", dst=destination, gateway=gateway)

    def send_all(self, address: tuple[str, int], content: bytes) -> None:
        """Send by TCP from here. Blocks: to be called in a thread."""
        with inside(self.descriptor):
            connection = socket.create_connection(address, timeout=10)
        with connection:
            connection.sendall(content)

    def sysctl(self, path: str, value: str) -> None:
        """Set a kernel parameter, named by its path below /proc/sys/net."""
        with inside(self.descriptor):
            (Path("/proc/sys/net") / path).write_text(value)


def receive_all(listener: socket.socket) -> bytes:
    """Receive what one TCP connection brings. Blocks: to be called in a thread."""
    listener.settimeout(10)
    connection, _ = listener.accept()
    received = bytearray()
    with connection:
        connection.settimeout(10)
        while data := connection.recv(1 << 20):
            received += data
    return bytes(received)


def snapshot() -> Snapshot:
    """Return rules, routes, addresses, links and network parameters of the namespace we are in."""
    found: Snapshot = {}
    with IPRoute() as kernel:
        messages = (*kernel.get_rules(), *kernel.get_routes(), *kernel.get_addr(), *kernel.get_links())
    for message in messages:
        attributes = dict(message["attrs"])
        for volatile in "RTA_CACHEINFO", "IFA_CACHEINFO", "IFLA_STATS", "IFLA_STATS64", "IFLA_AF_SPEC":
            attributes.pop(volatile, None)
        found[f"{message['event']} {attributes}"] = message.get("flags")
    for version in "ipv4", "ipv6":
        for file in (Path("/proc/sys/net") / version / "conf").rglob("*"):
            try:
                found[str(file)] = file.read_text()
            except OSError:  # a directory, or a secret that is not set
                continue
    return found


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for the condition, and return whether it came true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        await deferLater(reactor, 0.001)
    return condition()


def wrong_checksums(tables: str) -> int:
    """Return how many packets with wrong checksums the kernel counted in /proc/net/snmp and snmp6."""
    count = sum(int(number) for number in re.findall(r"^Udp6InCsumErrors\s+(\d+)", tables, re.MULTILINE))
    for title in "Tcp", "Udp":
        names, values = re.findall(rf"^{title}: (.*)", tables, re.MULTILINE)
        count += int(values.split()[names.split().index("InCsumErrors")])
    return count


def _obstacle() -> str | None:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened"
    try:
        os.close(new_network())
    except OSError as error:
        return f"network namespaces take root (or `unshare -rn`): {error.strerror}"
    return None


class NamespaceTestCase(TestCase):
    """A test that runs in a network namespace of its own, `here`."""

    skip = _obstacle()
    timeout = 20

    def setUp(self) -> None:
        self.here = Namespace(self)
        entered = inside(self.here.descriptor)
        entered.__enter__()
        self.addCleanup(entered.__exit__, None, None, None)
