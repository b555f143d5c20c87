"""A real TUN device in a network namespace: packets to and from the kernel, and how the device ends."""

import contextlib
import errno
import fcntl
import random
import socket
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet import reactor, threads
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from rvpn.constants import VNET_HEADER
from rvpn.errors import LocalError
from rvpn.interfaces import PacketBatch
from rvpn.lab.namespaces import inside
from rvpn.net.netlink import Netlink, Route
from rvpn.net.offloads import IN_USE, OFF
from rvpn.net.tun import PACKETS_PER_WAKEUP, TunPort
from tests.integration.namespaces import Namespace, NamespaceTestCase, receive_all, wrong_checksums

ECHO = struct.Struct("!BBHHH")
MAIN_TABLE = 254
FAMILY = {False: socket.AF_INET, True: socket.AF_INET6}
# linux/if_tun.h, linux/virtio_net.h, linux/udp.h
TUNSETOFFLOAD = 0x400454D0
NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 1, 1, 4, 5
UDP_SEGMENT = 103


def echo_answer(packet: bytes) -> bytes:
    """Answer an ICMP or ICMPv6 echo request; one's complement sums do not care about swapped addresses."""
    answer = bytearray(packet)
    size, start, header = (4, 12, 20) if packet[0] >> 4 == 4 else (16, 8, 40)
    answer[start : start + size], answer[start + size : start + 2 * size] = (
        packet[start + size : start + 2 * size],
        packet[start : start + size],
    )
    kind, code, checksum, identifier, sequence = ECHO.unpack_from(packet, header)
    reply = 0 if kind == 8 else 129
    checksum = (checksum + ((kind - reply) << 8)) % 0xFFFF
    ECHO.pack_into(answer, header, reply, code, checksum, identifier, sequence)
    return bytes(answer)


class Echo:
    """Answers pings, and remembers every packet and the loss of the device."""

    port: TunPort

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: Deferred[None] = Deferred()
        self.failing = False

    def packetsReceived(self, packets: PacketBatch) -> None:
        """Answer the packets that are pings."""
        for start, end in packets.spans:
            assert packets.buffer[start : start + VNET_HEADER] == bytes(VNET_HEADER)
            self.received.append(bytes(packets.view[start + VNET_HEADER : end]))
        if self.failing:
            raise RuntimeError("not today")
        for packet in self.received[-len(packets.spans) :]:
            self.port.writePacket(echo_answer(packet))

    def deviceLost(self, reason: Failure) -> None:
        """Remember it."""
        self.lost.errback(reason)


class TunPortTests(NamespaceTestCase):
    """The device `rvpn0` with 10.0.0.1 and fd00::1, and all of 10.9.0.0/16 and fd09::/16 behind it."""

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.port = self.echo.port = TunPort("rvpn0", self.echo, reactor)
        self.addCleanup(self.port.close)
        self.netlink = Netlink()
        self.addCleanup(self.netlink.close)
        self.netlink.bring_up(self.port.index, 1400)
        for address in "10.0.0.1", "fd00::1":
            self.netlink.add_address(self.port.index, ip_address(address))
        for network in "10.9.0.0/16", "fd09::/16":
            self.netlink.add_route(Route(network, MAIN_TABLE, "unicast", 9, self.port.index))

    def ping(self, address: str) -> socket.socket:
        """Send one ping to `address` and return the socket that gets the answer."""
        version6 = ":" in address
        family = socket.AF_INET6 if version6 else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if version6 else socket.IPPROTO_ICMP
        kind = 128 if version6 else 8
        checksum = 0xFFFF - ((kind << 8) + 77 + 1)  # ICMPv6: the kernel overwrites it
        ping = socket.socket(family, socket.SOCK_RAW, protocol)
        self.addCleanup(ping.close)
        ping.setblocking(False)
        ping.sendto(ECHO.pack(kind, 0, checksum, 77, 1), (address, 0))
        return ping

    async def answered(self, address: str) -> tuple[int, int]:
        """Ping `address` until it answers; return the identifier and sequence number of the answer."""
        for _ in range(100):
            # Again and again: the kernel needs a moment to receive for a new IPv6 address.
            ping = self.ping(address)
            await deferLater(reactor, 0.01)
            while True:
                try:
                    answer = ping.recv(1500)
                except BlockingIOError:
                    break
                kind, _, _, identifier, sequence = ECHO.unpack_from(answer, 0 if ":" in address else 20)
                if kind in (0, 129):
                    return identifier, sequence
        raise AssertionError(f"{address} did not answer")

    async def test_ping(self) -> None:
        """A ping of the kernel reaches the receiver, and its answer the socket that asked."""
        self.port.startReading()
        self.assertEqual(await self.answered("10.9.0.9"), (77, 1))

    async def test_ping_ipv6(self) -> None:
        """IPv6 goes the same way."""
        self.port.startReading()
        self.assertEqual(await self.answered("fd09::9"), (77, 1))

    async def test_failing_receiver(self) -> None:
        """An exception in the receiver is logged, and the next packet is still delivered."""
        self.port.startReading()
        self.echo.failing = True
        self.ping("10.9.0.9")
        await deferLater(reactor, 0.02)
        self.assertGreater(len(self.flushLoggedErrors(RuntimeError)), 0)
        self.echo.failing = False
        await self.answered("10.9.0.9")

    def test_bounded_reading(self) -> None:
        """One wake-up reads a bounded number of packets; the rest waits for the next."""
        self.port.startReading()
        for _ in range(PACKETS_PER_WAKEUP + 4):
            self.ping("10.9.0.9")
        self.port.doRead()
        self.assertEqual(len(self.echo.received), PACKETS_PER_WAKEUP)
        self.port.doRead()
        self.assertGreaterEqual(len(self.echo.received), PACKETS_PER_WAKEUP + 4)

    async def test_stopped_reading(self) -> None:
        """After `stopReading` packets wait in the kernel, and `startReading` brings them."""
        self.port.startReading()
        self.port.stopReading()
        self.ping("10.9.0.9")
        await deferLater(reactor, 0.02)
        self.assertEqual(self.echo.received, [])
        self.port.startReading()
        await self.answered("10.9.0.9")

    async def test_device_removed(self) -> None:
        """Whoever deletes the device ends the port, and the receiver is told once."""
        self.port.startReading()
        with self.here.kernel() as kernel:
            kernel.link("del", index=self.port.index)
        await self.assertFailure(self.echo.lost, LocalError)
        self.assertEqual(self.port.fileno(), -1)
        self.assertFalse(self.port.writePacket(b"\x45"))

    def test_link_down(self) -> None:
        """While the link is down a write says so by its result, and works again afterwards."""
        packet = bytes.fromhex("4500001c00000000400100000a0900090a000001") + bytes(8)
        with self.here.kernel() as kernel:
            kernel.link("set", index=self.port.index, state="down")
        self.assertFalse(self.port.writePacket(packet))
        self.netlink.bring_up(self.port.index, 1400)
        self.assertTrue(self.port.writePacket(packet))

    def test_not_a_packet(self) -> None:
        """The kernel refuses what is no IP packet, and that raises nothing."""
        self.assertFalse(self.port.writePacket(b"\xff" * 40))

    def test_closed(self) -> None:
        """`close` removes the device from the kernel, tells nobody, and may come twice; nothing follows."""
        self.port.startReading()
        self.port.close()
        self.port.close()
        self.assertRaises(OSError, socket.if_nametoindex, "rvpn0")
        self.assertFalse(self.echo.lost.called)
        one, other = socket.socketpair()  # of which one has the descriptor's number now
        with one, other:
            self.assertFalse(self.port.writePacket(b"packet"))

    def test_name_in_use(self) -> None:
        """A device of that name is left alone, and one line says so."""
        error = self.assertRaises(LocalError, TunPort, "rvpn0", self.echo, reactor)
        self.assertIn("rvpn0: a device of that name exists", str(error))
        self.assertNotIn("\n", str(error))

    def test_impossible_names(self) -> None:
        """A name that no interface can have is refused, not cut."""
        for name in "a" * 16, "a/b", "a b":
            self.assertRaises(LocalError, TunPort, name, self.echo, reactor)

    def test_receiver_that_closes(self) -> None:
        """A receiver may close the port while it reads."""
        self.port.startReading()
        self.echo.packetsReceived = lambda packets: self.port.close()  # type: ignore[method-assign]
        self.ping("10.9.0.9")
        self.port.doRead()
        self.assertEqual(self.port.fileno(), -1)


class Wire:
    """One end of a cable between two TUN devices: what comes out of one goes into the other as it is."""

    port: TunPort
    other: "Wire"

    def __init__(self) -> None:
        self.headers: set[tuple[int, int]] = set()
        self.longest = 0

    def packetsReceived(self, packets: PacketBatch) -> None:
        """Pass packets on, and remember what the kernel left to do."""
        for start, end in packets.spans:
            flags, kind = packets.buffer[start : start + 2]
            self.headers.add((flags, kind))
            self.longest = max(self.longest, end - start - VNET_HEADER)
        assert self.other.port.write(packets) == 0, self.other.port.refusals

    def deviceLost(self, reason: Failure) -> None:
        """Fail."""
        reason.raiseException()


class SuperPacketTests(NamespaceTestCase):
    """Two hosts with a TUN device each, and a cable of Python between them."""

    here_addresses, far_addresses = ("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2")
    mtu = 1400

    def connect(self, offload_here: bool = True, offload_far: bool = True) -> None:
        """Lay the cable."""
        self.far = Namespace(self)
        self.ends = Wire(), Wire()
        self.ends[0].other, self.ends[1].other = reversed(self.ends)
        for end, namespace, addresses, beyond, offload in (
            (self.ends[0], self.here, self.here_addresses, self.far_addresses, offload_here),
            (self.ends[1], self.far, self.far_addresses, self.here_addresses, offload_far),
        ):
            with inside(namespace.descriptor):
                end.port = TunPort("rvpn0", end, reactor, offload)
                self.addCleanup(end.port.close)
                netlink = Netlink()
                self.addCleanup(netlink.close)
                netlink.bring_up(end.port.index, self.mtu)
                for address in addresses:
                    netlink.add_address(end.port.index, ip_address(address))
                for address in beyond:
                    netlink.add_route(Route(address, MAIN_TABLE, "unicast", 9, end.port.index))
            end.port.startReading()

    def wrong_checksums(self) -> int:
        """Return how many TCP and UDP packets with wrong checksums the far host got."""
        with inside(self.far.descriptor):
            return wrong_checksums("".join(Path("/proc/net", name).read_text() for name in ("snmp", "snmp6")))

    async def stream(self, address: str) -> None:
        """Send a mebibyte by TCP to the far host."""
        content = random.Random(1).randbytes(1 << 20)
        with inside(self.far.descriptor):
            listener = socket.create_server((address, 0), family=FAMILY[":" in address])
        self.addCleanup(listener.close)
        sent = threads.deferToThread(self.here.send_all, listener.getsockname()[:2], content)
        received = await threads.deferToThread(receive_all, listener)
        await sent
        self.assertEqual(received, content)
        self.assertEqual(self.wrong_checksums(), 0)

    async def datagrams(self, address: str) -> None:
        """Send datagrams to the far host in one call."""
        with inside(self.far.descriptor):
            receiver = socket.socket(FAMILY[":" in address], socket.SOCK_DGRAM)
            receiver.bind((address, 0))
        self.addCleanup(receiver.close)
        receiver.settimeout(0)
        with socket.socket(receiver.family, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sender.sendto(bytes(20_500), receiver.getsockname())
        received: list[int] = []
        for _ in range(200):
            await deferLater(reactor, 0.005)
            with contextlib.suppress(BlockingIOError):
                while True:
                    received.append(len(receiver.recv(1 << 16)))
            if len(received) == 21:
                break
        self.assertEqual(received, [1000] * 20 + [500])
        self.assertEqual(self.wrong_checksums(), 0)

    async def test_super_packets(self) -> None:
        """
        TCP and UDP of both IP versions come in packets far longer than the MTU, and go into the other kernel
        as they are, which completes checksums and cuts.
        """
        self.connect()
        self.assertEqual(set(self.ends[0].port.offloads.values()), {IN_USE})
        for address, tcp in zip(self.far_addresses, (GSO_TCPV4, GSO_TCPV6), strict=True):
            self.ends[0].headers.clear()
            await self.stream(address)
            await self.datagrams(address)
            self.assertLessEqual({(NEEDS_CSUM, tcp), (NEEDS_CSUM, GSO_UDP_L4)}, self.ends[0].headers)
        self.assertGreater(self.ends[0].longest, 10 * self.mtu)

    async def test_off(self) -> None:
        """Without offloads the kernel leaves nothing to do: finished packets, none longer than the MTU."""
        self.connect(offload_here=False)
        self.assertEqual(set(self.ends[0].port.offloads.values()), {OFF})
        for address in self.far_addresses:
            await self.stream(address)
            await self.datagrams(address)
        self.assertEqual(self.ends[0].headers, {(0, 0)})
        self.assertEqual(self.ends[0].longest, self.mtu)

    async def test_receiver_off(self) -> None:
        """A device takes super-packets from us even where it is not to give any."""
        self.connect(offload_far=False)
        for address in self.far_addresses:
            await self.stream(address)
            await self.datagrams(address)
        self.assertEqual(self.ends[1].headers, {(0, 0)})

    def test_older_kernel(self) -> None:
        """A kernel that refuses some offloads is asked for fewer; what is not in use has its reason."""
        ioctl = fcntl.ioctl

        def refusing(descriptor: int, request: int, argument: Any) -> Any:
            if request == TUNSETOFFLOAD and argument & self.unknown:
                raise OSError(errno.EINVAL, "Invalid argument")
            return ioctl(descriptor, request, argument)

        self.patch(fcntl, "ioctl", refusing)
        refusal = "refused by the kernel: Invalid argument"
        for self.unknown, accepted in (
            (0x60, {"checksum", "TSO4", "TSO6"}),
            (0x62, {"checksum"}),
            (0x7F, set()),
        ):
            port = TunPort("rvpn0", Wire(), reactor)
            self.assertEqual({name for name, how in port.offloads.items() if how == IN_USE}, accepted)
            self.assertLessEqual(set(port.offloads.values()), {IN_USE, refusal})
            port.close()

    def test_header_that_does_not_fit(self) -> None:
        """The kernel refuses a header that speaks of another packet, which counts with its reason."""
        self.connect()
        batch = PacketBatch(100)
        batch.buffer[:30] = bytes([1, GSO_TCPV4, 0, 0, 0, 0, 200, 0, 16, 0]) + b"\x45" + bytes(19)
        batch.add(30)
        self.assertEqual(self.ends[0].port.write(batch), 1)
        self.assertEqual(self.ends[0].port.refusals, {"packet EINVAL": 1})
