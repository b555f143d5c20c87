"""
What leaves the tunnel when kernel and node do the work of many packets at once: the same packets, finished.

A veth passes packets with checksums left out, and super-packets, on to its peer as they are. So the gateway's
LAN interface is made one without checksum offload: the kernel then finishes each packet before it leaves, as
for a card that cannot, and a capture there sees what a cable would. Whatever has a wrong checksum by then was
given to the kernel as finished.
"""

import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

from rvpn.constants import IP_HEADER, Role
from rvpn.lab import services
from rvpn.lab.capture import OUTSIDE_LINK, Capture, Tap
from rvpn.lab.payload import ECHO_PORT
from rvpn.lab.pcap import frames
from rvpn.lab.topology import LAN
from rvpn.net.offloads import IN_USE, OFF
from tests.integration.lab_case import LabTestCase
from tests.integration.namespaces import NO_CHECKSUM_OFFLOAD, wrong_checksums

ETHERNET = 14
TCP, UDP = 6, 17
#: Where the checksum stands in the header.
CHECKSUM_AT = {TCP: 16, UDP: 6}
TARGETS = "10.0.0.1", "fd00:10::1"
#: Bytes of a TCP stream, each way.
SIZE = 1 << 20

#: Sends datagrams of several sizes in bursts of one call (UDP_SEGMENT); ends well if all are echoed.
DATAGRAMS = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
echoing = socket.socket(family, socket.SOCK_DGRAM)
echoing.connect((address, port))
echoing.settimeout(5)
for size in (1, 2, 99, 100, 1000, 1301, 1350) * 5:
    burst = b"".join(bytes([number + size % 7]) * size for number in range(1, 21)) + b"end"[: size]
    sent = [burst[start : start + size] for start in range(0, len(burst), size)]
    echoing.setsockopt(socket.IPPROTO_UDP, 103, size)
    echoing.send(burst)
    echoed = [echoing.recv(2000) for _ in sent]
    assert sorted(echoed) == sorted(sent), size
"""

_ADDRESSES = {4: slice(12, 20), 6: slice(8, 40)}
_LENGTH = Struct("!H")


def finished(packet: bytes) -> bool:
    """Tell whether an IP packet of TCP or UDP is whole, and all its checksums are there and right."""
    version = packet[0] >> 4
    length, header = (2, (packet[0] & 15) * 4) if version == 4 else (4, IP_HEADER[6])
    (total,) = _LENGTH.unpack_from(packet, length)
    if total + (IP_HEADER[6] if version == 6 else 0) != len(packet):
        return False
    if version == 4 and remainder(packet[:header]):
        return False
    protocol, segment = packet[9 if version == 4 else 6], packet[header:]
    (checksum,) = _LENGTH.unpack_from(segment, CHECKSUM_AT[protocol])
    pseudo = packet[_ADDRESSES[version]] + _LENGTH.pack(protocol) + _LENGTH.pack(len(segment))
    # RFC 768: a checksum of 0 says that there is none. With TCP it is one like any other.
    return bool(checksum or protocol == TCP) and not remainder(pseudo + segment)


def remainder(octets: bytes) -> int:
    """Return the one's complement sum of RFC 1071: 0 if the checksum among them is right."""
    return int.from_bytes(octets + bytes(len(octets) % 2)) % 0xFFFF


def packets(pcap: Path) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield the source, the protocol and the whole of the TCP and UDP packets of a capture."""
    for _, frame in frames(pcap):
        packet = frame[ETHERNET:]
        version = packet[0] >> 4
        if frame[12:14] in (b"\x08\x00", b"\x86\xdd"):
            protocol = packet[9 if version == 4 else 6]
            if protocol in CHECKSUM_AT:
                source = packet[_ADDRESSES[version]][: 4 if version == 4 else 16]
                yield source, protocol, packet


class OffloadTests(LabTestCase):
    """One gateway and one target, and traffic of all kinds under all settings of `Offload`."""

    def setUp(self) -> None:
        self.lab = self.start_lab(gateways=1, targets=1, proxy_arp=True)
        settings = {"Offload": "auto"}
        services.configure(self.lab, {Role.CLIENT: settings, Role.GATEWAY: settings})
        self.lab.serve_targets()
        self.finish_what_leaves("gateway1")

    def finish_what_leaves(self, node: str) -> None:
        """Have the kernel finish what leaves this node into the LAN."""
        done = self.lab.run(node, [sys.executable, "-c", NO_CHECKSUM_OFFLOAD, LAN])
        self.assertEqual(done.code, 0, done.errors)

    def start(self, client: str, gateway: str) -> None:
        """Start the services with these settings of `Offload`."""
        running = self.lab.status()["processes"]
        for name, setting in ("client", client), ("gateway1", gateway):
            if name in running:
                self.lab.signal(name, signal.SIGTERM)
                services.wait_ended(self.lab, name, 10)
            file = self.lab.directory / f"{name}.policy"
            file.write_text(re.sub("Offload = .*", f"Offload = {setting}", file.read_text()))
        services.start_all(self.lab)
        for name, setting in ("client", client), ("gateway1", gateway):
            offloads = services.ask_status(self.lab, name)["offloads"].values()
            told = {how for each in offloads for how in each.values()}
            self.assertEqual(told, {IN_USE if setting == "auto" else OFF})

    def traffic(self) -> None:
        """Send TCP and UDP to the target and back, over IPv4 and IPv6."""
        for target in TARGETS:
            result = self.lab.traffic("client", "stream", target, "--size", SIZE, "--echo", timeout=60)
            self.assertTrue(result["ok"], result)
            done = self.lab.run("client", [sys.executable, "-c", DATAGRAMS, target, str(ECHO_PORT)])
            self.assertEqual(done.code, 0, done.errors)

    def assert_finished(self, pcap: Path) -> None:
        """Assert that all that the client sent to the target left the gateway in whole, right packets."""
        inner = {address.packed: address.version for address in self.lab.topology.inner_addresses}
        counts: Counter[tuple[int, int]] = Counter()
        for source, protocol, packet in packets(pcap):
            if source in inner:
                self.assertTrue(finished(packet), packet.hex())
                counts[inner[source], protocol] += 1
        for version in 4, 6:
            self.assertEqual(counts[version, UDP], 35 * 21, "datagrams are missing")
            self.assertGreater(counts[version, TCP], SIZE / 1400)

    def assert_no_wrong_checksum(self) -> None:
        """Assert that neither the client nor the target got a packet with a wrong checksum."""
        for node in "client", "target1":
            tables = self.lab.run(node, ["cat", "/proc/net/snmp", "/proc/net/snmp6"]).output.decode()
            self.assertEqual(wrong_checksums(tables), 0, node)

    def holds(self, client: str, gateway: str) -> None:
        self.start(client, gateway)
        with (
            Capture.start(self.lab, Tap("gateway1", LAN)) as leaving,
            Capture.start(self.lab, OUTSIDE_LINK) as outside,
        ):
            self.traffic()
            for capture in leaving, outside:
                self.assertEqual(capture.stop().missed, 0)
        for node in "client", "gateway1":
            (session,) = services.ask_status(self.lab, node)["sessions"]
            self.assertEqual(session["trains"], (client, gateway) == ("auto", "auto"))
        self.assert_finished(leaving.pcap)
        self.assert_no_wrong_checksum()
        # A run of ESP packets passes the veth as the one packet that it is for the kernel.
        runs = any(len(frame) > 1514 for _, frame in frames(outside.pcap))
        self.assertEqual(runs, "auto" in (client, gateway))

    def test_every_packet_is_finished(self) -> None:
        """Whichever end has offloads, every packet leaves the gateway whole and with right checksums."""
        for client in "auto", "off":
            for gateway in "auto", "off":
                self.holds(client, gateway)

    def test_finished_on_the_lan_already(self) -> None:
        """So if the packets of the target come with checksums that nobody has verified yet."""
        self.finish_what_leaves("target1")
        self.holds("auto", "auto")
