"""
ESP as it passes on a link after UDP_SEGMENT cut it, opened by another implementation.

    a program -> TUN device: super-packets -> `Client` -> UDP_SEGMENT -> link -> packet socket
        -> scapy -> inner packets -> another TUN device -> the program's peer; answers come back as they are

The link's interface is one without checksum offload, so that the kernel cuts the runs before it sends them,
as for a card that cannot do it itself.
"""

import logging
import random
import socket
import subprocess
import sys
from ipaddress import ip_address
from typing import Any

from twisted.internet import reactor, threads
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from rvpn.constants import BATCH_CAPACITY, VNET_HEADER, TransformID
from rvpn.esp.sa import OutboundSA
from rvpn.interfaces import DatagramBatch, PacketBatch
from rvpn.lab.namespaces import inside
from rvpn.net.netlink import Netlink, Route
from rvpn.net.tun import TunPort
from rvpn.net.udp import UDPPort, UDPPorts
from rvpn.net.udpsend import number_of
from rvpn.net.udpsocket import PathError, open_socket
from rvpn.session import sessions
from tests.integration.namespaces import NO_CHECKSUM_OFFLOAD, Namespace, NamespaceTestCase, receive_all
from tests.unit.simulation import CLIENT_ENDPOINT, INNER, TARGET, Network, udp_packet

# Importing scapy reads the machine's interfaces and warns about what it finds missing.
logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.ipsec import ESP, SecurityAssociation  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402

ETH_P_ALL, MAIN_TABLE = 3, 254
UDP_SEGMENT = 103


class Answers:
    """The far end's TUN device: what comes out of it goes back as it is."""

    near: TunPort

    def packetsReceived(self, packets: PacketBatch) -> None:
        """Take answers."""
        for start, end in packets.spans:
            self.near.writePacket(bytes(packets.view[start + VNET_HEADER : end]))

    def deviceLost(self, reason: Failure) -> None:
        """Fail."""
        reason.raiseException()


class ScapyReceivesTests(NamespaceTestCase):
    """A client with a session, whose gateway is scapy."""

    def setUp(self) -> None:
        super().setUp()
        self.keys: dict[int, bytes] = {}
        self.patch(sessions, "OutboundSA", self.remembered)
        network = Network(transforms=(TransformID.AES_GCM_16_256,))
        network.send(network.client, udp_packet(INNER, TARGET, b"for a session"))
        network.run(1)
        self.node, self.now = network.client.node, network.now
        self.gateway = network.gateways[0].endpoint
        self.longest_run = self.longest_packet = 0
        self.sealed = DatagramBatch(BATCH_CAPACITY)
        self.far = Namespace(self)
        self.join()
        received = DatagramBatch(BATCH_CAPACITY)
        self.udp = UDPPorts(
            [CLIENT_ENDPOINT.address],
            lambda _: UDPPort(open_socket(CLIENT_ENDPOINT, None), self, reactor, received),
        )
        self.addCleanup(self.udp.close)
        answers = Answers()
        with inside(self.far.descriptor):
            self.capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self.addCleanup(self.capture.close)
            self.capture.bind(("outside", 0))
            self.capture.setblocking(False)
            self.sink = open_socket(self.gateway, None)  # lest the kernel say that nobody is there
            self.addCleanup(self.sink.close)
            self.far_tun = self.device(answers, str(TARGET), str(INNER), offload=False)
        answers.near = self.tun = self.device(self, str(INNER), str(TARGET), offload=True)

    def remembered(self, spi: int, transform: TransformID, key: bytes, salt: bytes) -> OutboundSA:
        """Return an SA, and remember its keys by SPI."""
        self.keys[spi] = key + salt
        return OutboundSA(spi, transform, key, salt)

    def join(self) -> None:
        """Lay the link."""
        self.here.connect("outside", self.far, "outside")
        self.here.address("outside", f"{CLIENT_ENDPOINT.address}/24")
        self.far.address("outside", "192.0.2.254/24", f"{self.gateway.address}/32")
        self.here.route("198.51.100.0/24", "192.0.2.254")
        subprocess.run([sys.executable, "-c", NO_CHECKSUM_OFFLOAD, "outside"], check=True)

    def device(self, receiver: Any, address: str, beyond: str, offload: bool) -> TunPort:
        """Make a TUN device in the namespace that we are in."""
        tun = TunPort("rvpn0", receiver, reactor, offload)
        self.addCleanup(tun.close)
        netlink = Netlink()
        self.addCleanup(netlink.close)
        netlink.bring_up(tun.index, 1400)
        netlink.add_address(tun.index, ip_address(address))
        netlink.add_route(Route(beyond, MAIN_TABLE, "unicast", 9, tun.index))
        tun.startReading()
        return tun

    # --- the client ---------------------------------------------------------------------------------------

    def packetsReceived(self, packets: PacketBatch) -> None:
        """Seal and send, as the service does."""
        self.longest_packet = max((self.longest_packet, *(end - start for start, end in packets.spans)))
        while packets.taken < len(packets.spans):
            self.node.outbound(packets, self.sealed, self.now)
            self.longest_run = max((self.longest_run, *map(number_of, self.sealed.runs)))
            assert self.udp.send(self.sealed) == 0

    def deviceLost(self, reason: Failure) -> None:
        """Fail."""
        reason.raiseException()

    def batchReceived(self, batch: DatagramBatch) -> None:
        """Take nothing: there is nobody to say anything."""

    def pathErrorReceived(self, error: PathError) -> None:
        """Take no error."""

    def sendingResumed(self) -> None:
        """Never be full."""

    # --- scapy, the gateway -------------------------------------------------------------------------------

    def take(self) -> int:
        """Open what the link carried meanwhile, and pass it on; return how many packets that were."""
        count = 0
        while True:
            try:
                frame = self.capture.recv(1 << 16)
            except BlockingIOError:
                return count
            packet = Ether(frame)
            if (ESP not in packet and UDP not in packet) or packet[IP].dst != str(self.gateway.address):
                continue
            self.assertLessEqual(len(frame), 1514, "the kernel has not cut the run")
            inner = bytes(self.opened(packet[IP]))
            self.assertEqual(inner, with_own_checksums(inner))
            self.assertTrue(self.far_tun.writePacket(inner))
            count += 1

    def opened(self, packet: Any) -> Any:
        """Return the inner packet."""
        spi = packet[ESP].spi
        sa = SecurityAssociation(
            ESP,
            spi=spi,
            crypt_algo="AES-GCM",
            crypt_key=self.keys[spi],
            tunnel_header=IP(src=packet.src, dst=packet.dst),
            nat_t_header=UDP(sport=packet.sport, dport=packet.dport),
        )
        return sa.decrypt(packet)

    async def test_tcp(self) -> None:
        """A TCP stream of super-packets arrives through scapy, each packet of it with right checksums."""
        content = random.Random(1).randbytes(200_000)
        with inside(self.far.descriptor):
            listener = socket.create_server((str(TARGET), 0))
        self.addCleanup(listener.close)
        sent = threads.deferToThread(self.here.send_all, listener.getsockname(), content)
        received = threads.deferToThread(receive_all, listener)
        count = 0
        while not received.called:
            count += self.take()
            await deferLater(reactor, 0.001)
        self.assertEqual(await received, content)
        await sent
        self.assertGreaterEqual(count, len(content) // 1400)
        # Scapy takes its time, so the sender's window stays small.
        self.assertGreater(self.longest_packet, 1500)
        self.assertGreater(self.longest_run, 1)
        self.assertEqual(self.udp.refusals, {})

    async def test_udp(self) -> None:
        """So does a burst of datagrams that a program sent in one call."""
        with inside(self.far.descriptor), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind((str(TARGET), 0))
            receiver.settimeout(1)
            with inside(self.here.descriptor), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
                sender.sendto(bytes(20_500), receiver.getsockname())
            while not self.longest_run:
                await deferLater(reactor, 0.001)
            self.assertEqual((self.longest_run, self.take()), (21, 21))
            self.assertEqual([len(receiver.recv(2000)) for _ in range(21)], [1000] * 20 + [500])


def with_own_checksums(packet: bytes) -> bytes:
    """Return an IPv4 packet with the checksums that scapy computes."""
    fresh = IP(packet)
    for layer in IP, TCP, UDP:
        if layer in fresh:
            del fresh[layer].chksum
    return bytes(fresh)
