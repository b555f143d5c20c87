"""Two gateways on a LAN of network namespaces answer for a client, and a host there learns who has it."""

import contextlib  # the name `suppress` means something to trial
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from random import Random
from time import perf_counter

from pyroute2.netlink.exceptions import NetlinkError
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs

from rvpn.errors import DropReason, LocalError
from rvpn.gateway.address_resolution import announcements, solicited_node
from rvpn.interfaces import IPAddress
from rvpn.lab.namespaces import inside
from rvpn.net.neighbours import MOST_WAITING, NeighbourPort
from tests.integration.namespaces import Namespace, NamespaceTestCase

INNER, INNER6 = ip_address("10.99.0.1"), ip_address("fd00:99::abcd:1")
BOTH = INNER, INNER6
HOST, HOST6 = "10.0.0.1/8", "fd00:10::1/16"
AT_FIRST = ip_address("10.0.0.21"), ip_address("fd00:10::21")
LAN = "lan0"
ROOT = Path(__file__).parents[2]
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
#: Neighbour cache entries with one of these states hold a MAC (NUD_ of linux/neighbour.h).
KNOWN = 0x02 | 0x04 | 0x08 | 0x10
#: IFF_PROMISC of linux/if.h, IFA_F_DADFAILED of linux/if_addr.h.
PROMISCUOUS, DUPLICATE = 0x100, 0x08
#: The frames in which a machine without an address asks for either.
QUESTIONS = (
    bytes(
        Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
        / ARP(hwsrc="02:00:00:00:00:01", psrc="0.0.0.0", pdst=str(INNER))
    ),
    bytes(
        Ether(src="02:00:00:00:00:01", dst="33:33:ff:cd:00:01")
        / IPv6(src="::", dst="ff02::1:ffcd:1", hlim=255)
        / ICMPv6ND_NS(tgt=str(INNER6))
    ),
)


class Gateway:
    """A gateway's namespace, its port on the LAN, and what that was told to own and heard."""

    def __init__(self, case: "NeighbourTests", name: str) -> None:
        self.namespace = Namespace(case)
        case.plug(self.namespace, name)
        with self.namespace.kernel() as kernel:
            (link,) = kernel.get_links(ifname=LAN)
            self.mac: str = link.get("address")
        self.owned: set[IPAddress] = set()
        self.heard: list[IPAddress] = []
        self.dropped: list[DropReason] = []
        self.failing = False

    def start(self, case: NamespaceTestCase, *owned: IPAddress) -> NeighbourPort:
        """Answer for addresses from now on."""
        self.owned = set(owned)
        with inside(self.namespace.descriptor):
            self.port = NeighbourPort(LAN, self, reactor)
        case.addCleanup(self.port.close)
        self.port.startReading()
        return self.port

    def owns(self, address: bytes) -> bool:
        """See `NeighbourReceiver`."""
        if self.failing:
            raise RuntimeError("not today")
        return ip_address(address) in self.owned

    def foreignAnnouncement(self, address: IPAddress) -> None:
        """See `NeighbourReceiver`. The address is given up."""
        self.heard.append(address)
        self.owned.discard(address)

    def drop(self, reason: DropReason) -> None:
        """See `NeighbourReceiver`."""
        self.dropped.append(reason)

    def announce(self, address: IPAddress) -> None:
        """Announce an address; the namespace is that of the sockets that are opened on the way."""
        with inside(self.namespace.descriptor):
            self.port.announce(address)

    def groups(self) -> set[str]:
        """Return the IPv6 groups, in hexadecimal, that the namespace is in."""
        with inside(self.namespace.descriptor):
            return {line.split()[2] for line in Path("/proc/thread-self/net/igmp6").read_text().splitlines()}

    def link(self, state: str) -> None:
        """Take the interface on the LAN up or down."""
        with self.namespace.kernel() as kernel:
            (index,) = kernel.link_lookup(ifname=LAN)
            kernel.link("set", index=index, state=state)


class NeighbourTests(NamespaceTestCase):
    """The test itself is the host, at a switch with the two gateways."""

    def setUp(self) -> None:
        super().setUp()
        self.switch = Namespace(self)
        with self.switch.kernel() as kernel:
            kernel.link("add", ifname="bridge", kind="bridge")
            kernel.link("set", ifname="bridge", state="up")
        self.plug(self.here, "host")
        self.here.address(LAN, HOST, HOST6)
        self.first, self.second = Gateway(self, "first"), Gateway(self, "second")
        self.frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.addCleanup(self.frames.close)
        self.frames.bind((LAN, 0))

    def plug(self, namespace: Namespace, name: str) -> None:
        """Join a machine to the switch."""
        namespace.connect(LAN, self.switch, name)
        with self.switch.kernel() as kernel:
            (bridge,), (cable,) = kernel.link_lookup(ifname="bridge"), kernel.link_lookup(ifname=name)
            kernel.link("set", index=cable, master=bridge)

    # --- what the host does and knows

    def send(self, address: IPAddress) -> None:
        """Send a datagram, for which the host has to resolve the address."""
        with socket.socket(FAMILY[address.version], socket.SOCK_DGRAM) as datagram:
            datagram.sendto(b"hello", (str(address), 9))

    def known(self, address: IPAddress) -> str | None:
        """Return the MAC that the host has for an address."""
        with self.here.kernel() as kernel:
            for entry in kernel.get_neighbours(family=FAMILY[address.version], dst=str(address)):
                if entry["state"] & KNOWN:
                    mac: str = entry.get("lladdr")
                    return mac
        return None

    def forget(self, address: IPAddress) -> None:
        """Take an address from the host's neighbour cache."""
        with self.here.kernel() as kernel, contextlib.suppress(NetlinkError):
            (index,) = kernel.link_lookup(ifname=LAN)
            kernel.neigh("del", dst=str(address), ifindex=index, family=FAMILY[address.version])

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> float:
        """Wait until something holds, and return how long that took; fail if it takes too long."""
        begun = perf_counter()
        while not condition():
            self.assertLess(perf_counter() - begun, seconds)
            await deferLater(reactor, 0.001)
        return perf_counter() - begun

    async def learns(self, address: IPAddress, mac: str) -> float:
        """Wait until the host has this MAC for an address."""
        return await self.until(lambda: self.known(address) == mac)

    async def asks(self, gateway: Gateway) -> None:
        """Let the host ask for both addresses, and learn that they are at that gateway."""
        for address in BOTH:
            self.forget(address)
            self.send(address)
            await self.learns(address, gateway.mac)

    async def asks_in_vain(self) -> None:
        """Let the host ask for both addresses, and learn nothing."""
        for address in BOTH:
            self.forget(address)
            self.send(address)
        await deferLater(reactor, 0.1)
        self.assertEqual([self.known(address) for address in BOTH], [None, None])

    # --- answers

    async def test_answers(self) -> None:
        """A host that asks, by ARP or neighbour discovery, gets the MAC of the owner."""
        self.first.start(self)
        self.second.start(self, *BOTH)
        await self.asks(self.second)

    async def test_nobody(self) -> None:
        """Nobody answers for an address that nobody owns."""
        self.first.start(self)
        await self.asks_in_vain()

    async def test_move(self) -> None:
        """An announcement moves an entry that the host has just learnt, and would keep for many seconds."""
        self.first.start(self, *BOTH)
        self.second.start(self)
        await self.asks(self.first)
        for address in BOTH:
            self.second.owned.add(address)
            self.second.announce(address)
            self.assertLess(await self.learns(address, self.second.mac), 1)

    async def test_foreign_announcement(self) -> None:
        """The former owner hears the announcement; its sender is not alarmed if it comes back."""
        self.first.start(self, *BOTH)
        self.second.start(self, *BOTH)
        for address in BOTH:
            self.second.announce(address)
            for frame in announcements(address.packed, bytes.fromhex(self.second.mac.replace(":", ""))):
                self.frames.send(frame)
        await self.until(lambda: set(self.first.heard) == set(BOTH))
        self.assertEqual(self.second.heard, [])

    async def test_question_that_waited(self) -> None:
        """An announcement counts before the questions that came earlier and wait: they get no answer."""
        self.first.start(self, *BOTH)
        self.second.start(self)
        for address in BOTH:
            self.send(address)
            self.second.announce(address)
        # All this waits at the first gateway: the test has not returned to the reactor.
        await deferLater(reactor, 0.1)
        self.assertEqual(self.first.heard, [INNER, INNER6])
        self.assertEqual([self.known(address) for address in BOTH], [self.second.mac] * 2)

    async def test_overflow(self) -> None:
        """Where an announcement may have been lost for want of room, questions that waited get no answer."""
        port = self.first.start(self, *BOTH)
        self.second.start(self)
        for address, question in zip(BOTH, QUESTIONS, strict=True):
            self.send(address)
            for _ in range(MOST_WAITING):
                self.frames.send(question)
            self.second.announce(address)
        port.doRead()
        self.assertEqual(select.select([port], [], [], 0)[0], [], "more waits than one wake-up reads")
        await deferLater(reactor, 0.05)
        self.assertEqual(self.first.heard, [])
        self.assertEqual([self.known(address) for address in BOTH], [self.second.mac] * 2)
        await self.asks(self.first)

    async def test_duplicate_address_detection(self) -> None:
        """A host that wants to take an owned address for itself learns that it is taken."""
        self.first.start(self, INNER6)
        for name in "accept_dad", "dad_transmits":
            self.here.sysctl(f"ipv6/conf/{LAN}/{name}", "1")
        with self.here.kernel() as kernel:
            (index,) = kernel.link_lookup(ifname=LAN)
            kernel.addr("add", index=index, address=str(INNER6), prefixlen=64)

        def failed() -> bool:
            with self.here.kernel() as kernel:
                found = kernel.get_addr(index=index, address=str(INNER6))
                return any(each["flags"] & DUPLICATE for each in found)

        await self.until(failed)

    # --- what it bears

    async def test_link_down_and_up(self) -> None:
        """The interface may go down and up; what cannot be announced meanwhile is a line in the log."""
        self.first.start(self, *BOTH)
        self.first.link("down")
        with capturedLogs() as events:
            for address in BOTH:
                self.first.announce(address)
            await deferLater(reactor, 0.05)
        self.assertEqual([event["address"] for event in events], list(map(str, BOTH)))
        self.first.link("up")
        await self.asks(self.first)

    async def test_traffic_that_passes(self) -> None:
        """No packet wakes it, and no question to another machine that a promiscuous interface lets in."""
        port = self.first.start(self, *BOTH)
        self.first.namespace.address(LAN, "10.0.0.21/8", "fd00:10::21/16")
        with self.first.namespace.kernel() as kernel:
            (index,) = kernel.link_lookup(ifname=LAN)
            kernel.link("set", index=index, flags=PROMISCUOUS, change=PROMISCUOUS)
        for address in AT_FIRST:
            self.send(address)
        await deferLater(reactor, 0.05)
        reactor.removeReader(port)
        for address in AT_FIRST:
            for _ in range(20):
                self.send(address)
        for question in QUESTIONS:
            self.frames.send(bytes.fromhex("020000000099") + question[6:])
        await deferLater(reactor, 0.05)
        self.assertEqual(select.select([port], [], [], 0)[0], [])
        self.frames.send(QUESTIONS[0])
        await self.until(lambda: select.select([port], [], [], 0)[0] == [port])

    async def test_rubbish(self) -> None:
        """Frames of every kind are counted or passed over, and the next question is answered."""
        self.first.start(self, *BOTH)
        random = Random(1)
        for _ in range(200):
            rubbish = bytearray(random.choice(QUESTIONS))
            for _ in range(random.randrange(1, 4)):
                rubbish[random.randrange(14, len(rubbish))] = random.randrange(256)
            self.frames.send(rubbish[: random.randrange(14, len(rubbish) + 1)])
        await self.asks(self.first)
        self.assertEqual(set(self.first.dropped), {DropReason.MALFORMED_NEIGHBOUR})

    async def test_failing_receiver(self) -> None:
        """An exception in the receiver is logged, and the next question is answered."""
        self.first.start(self, *BOTH)
        self.first.failing = True
        self.send(INNER)
        await self.until(lambda: bool(self.flushLoggedErrors(RuntimeError)))
        self.first.failing = False
        await self.asks(self.first)

    def test_groups(self) -> None:
        """However many IPv6 addresses are announced, the interface is in the group of each until the end."""
        port = self.first.start(self)
        addresses = [IPv6Address(int(INNER6) + number) for number in range(2500)]
        with capturedLogs() as events:
            for address in [INNER6, *addresses]:
                self.first.announce(address)
        self.assertEqual(list(events), [])
        groups = {solicited_node(address.packed).hex() for address in addresses}
        self.assertLessEqual(groups, self.first.groups())
        port.close()
        port.close()
        self.assertFalse(groups & self.first.groups())

    def test_refusals(self) -> None:
        """An interface that is not there or no Ethernet is refused in a sentence."""
        for interface, reason in ("missing0", "there is no such interface"), ("lo", "it is no Ethernet"):
            error = self.assertRaises(LocalError, NeighbourPort, interface, self.first, reactor)
            self.assertEqual(str(error), f"cannot answer for clients on {interface}: {reason}")

    # --- another process

    def responder(self, gateway: Gateway) -> "subprocess.Popen[bytes]":
        """Start a process in a gateway's namespace that owns both addresses."""
        command = [sys.executable, "-m", "tests.integration.neighbour_responder", LAN, *map(str, BOTH)]
        with inside(gateway.namespace.descriptor):
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.__exit__, None, None, None)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.assertTrue(select.select([process.stdout], [], [], 10)[0], "the process does not start")
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    async def test_stopped_process(self) -> None:
        """A stopped process answers nothing, and takes nothing back from who took over when it goes on."""
        process = self.responder(self.first)
        await self.asks(self.first)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        await self.asks_in_vain()
        self.second.start(self, *BOTH)
        for address in BOTH:
            self.second.announce(address)
            await self.learns(address, self.second.mac)
        process.send_signal(signal.SIGCONT)
        await deferLater(reactor, 0.2)
        self.assertEqual([self.known(address) for address in BOTH], [self.second.mac] * 2)
        await self.asks(self.second)

    async def test_killed_process(self) -> None:
        """A killed process answers nothing: the kernel was told nothing."""
        process = self.responder(self.first)
        await self.asks(self.first)
        process.kill()
        process.wait()
        await self.asks_in_vain()
