"""ARP and neighbour discovery against scapy, the rules of the RFCs, and bytes of every kind."""

from ipaddress import IPv6Address, ip_address
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from twisted.trial.unittest import SynchronousTestCase

from rvpn.datapath.packet import checksum
from rvpn.errors import DropReason, RemoteError
from rvpn.gateway.address_resolution import Heard, announcements, answer, group_mac, read, solicited_node

OUR_MAC, HOST_MAC = "02:00:00:00:00:21", "02:00:00:00:00:01"
INNER, HOST = "10.99.0.1", "10.0.0.1"
INNER6, HOST6 = "fd00:99::abcd:1", "fd00:10::1"
NOBODY, NOBODY6, ALL_NODES = "0.0.0.0", "::", "ff02::1"
GROUP, GROUP_MAC, EVERYBODY = "ff02::1:ffcd:1", "33:33:ff:cd:00:01", "33:33:00:00:00:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"


def packed(address: str) -> bytes:
    """Pack an IP address or a MAC."""
    if address.count(":") == 5 and "::" not in address:
        return bytes.fromhex(address.replace(":", ""))
    return ip_address(address).packed


def arp(**fields: Any) -> Any:
    """Return the request that asks for INNER, but for some fields."""
    question = {"op": 1, "hwsrc": HOST_MAC, "psrc": HOST, "hwdst": "00:00:00:00:00:00", "pdst": INNER}
    return Ether(src=HOST_MAC, dst=BROADCAST) / ARP(**{**question, **fields})


def solicitation(source: str = HOST6, destination: str = GROUP, options: Any = None, **fields: Any) -> Any:
    """Return the solicitation that asks for INNER6; `fields` are those of its IPv6 header."""
    if options is None:
        options = ICMPv6NDOptSrcLLAddr(lladdr=HOST_MAC)
    header = IPv6(**{"src": source, "dst": destination, "hlim": 255, **fields})
    return Ether(src=HOST_MAC, dst=GROUP_MAC) / header / ICMPv6ND_NS(tgt=INNER6) / options


def advertisement(destination: str = ALL_NODES, solicited: int = 0, options: Any = None) -> Any:
    """Return the advertisement that HOST_MAC has INNER6."""
    if options is None:
        options = ICMPv6NDOptDstLLAddr(lladdr=HOST_MAC)
    message = ICMPv6ND_NA(R=0, S=solicited, O=1, tgt=INNER6)
    return Ether(src=HOST_MAC, dst=EVERYBODY) / IPv6(src=HOST6, dst=destination, hlim=255) / message / options


def with_length(length: int) -> bytes:
    """Return a solicitation whose header says that it has `length` bytes, with a checksum that fits."""
    frame = bytearray(bytes(solicitation()))
    frame[18:20] = length.to_bytes(2)
    frame[56:58] = bytes(2)
    pseudo_header = frame[22:54] + length.to_bytes(4) + (58).to_bytes(4)
    frame[56:58] = checksum(bytes(pseudo_header + frame[54 : 54 + length])).to_bytes(2)
    return bytes(frame)


def heard(frame: Any) -> Heard | None:
    """Read a frame of scapy's."""
    return read(memoryview(bytes(frame)))


NO_OPTIONS = b""


class ReadTests(SynchronousTestCase):
    """What frames say."""

    def test_request(self) -> None:
        """An ARP request tells where its sender is, and for whom it asks."""
        expected = Heard(packed(HOST), packed(HOST_MAC), packed(INNER))
        self.assertEqual(heard(arp()), expected)
        self.assertEqual(heard(bytes(arp()) + bytes(18)), expected, "padded to Ethernet's 60 bytes")

    def test_reply(self) -> None:
        """An ARP reply asks for nobody."""
        self.assertEqual(heard(arp(op=2)), Heard(packed(HOST), packed(HOST_MAC)))

    def test_announcement(self) -> None:
        """Gratuitous ARP (RFC 5227 section 2.3) is no question, in either form."""
        for operation in 1, 2:
            frame = arp(op=operation, psrc=INNER)
            self.assertEqual(heard(frame), Heard(packed(INNER), packed(HOST_MAC)))

    def test_probe(self) -> None:
        """A probe (RFC 5227 section 2.1.1) asks, and claims no address."""
        self.assertEqual(heard(arp(psrc=NOBODY)), Heard(bytes(4), packed(HOST_MAC), packed(INNER)))

    def test_other_frames(self) -> None:
        """Other operations, other protocols over ARP and other frames say nothing to us."""
        others = [
            arp(op=3),
            arp(hwtype=6),
            arp(ptype=0x86DD),
            Ether(src=HOST_MAC, dst=BROADCAST, type=0x0800) / bytes(46),
        ]
        others += [bytes(solicitation()).replace(b"\x87\x00", b"\x80\x00", 1), solicitation(nh=17)]
        for frame in others:
            self.assertIsNone(heard(frame))

    def test_solicitation(self) -> None:
        """A solicitation tells where its sender is, by its option or else its frame, and for whom it asks."""
        expected = Heard(packed(HOST6), packed(HOST_MAC), packed(INNER6))
        self.assertEqual(heard(solicitation()), expected)
        self.assertEqual(heard(solicitation(options=NO_OPTIONS)), expected)
        other = ICMPv6NDOptMTU() / ICMPv6NDOptSrcLLAddr(lladdr=OUR_MAC)
        self.assertEqual(heard(solicitation(options=other)), expected._replace(mac=packed(OUR_MAC)))

    def test_duplicate_address_detection(self) -> None:
        """A solicitation from nobody (RFC 4862 section 5.4.2) asks whether the address is free."""
        frame = solicitation(NOBODY6, options=NO_OPTIONS)
        self.assertEqual(heard(frame), Heard(bytes(16), packed(HOST_MAC), packed(INNER6)))

    def test_advertisement(self) -> None:
        """An advertisement tells where its target is, by its option or else its frame."""
        expected = Heard(packed(INNER6), packed(HOST_MAC))
        for options in None, NO_OPTIONS:
            self.assertEqual(heard(advertisement(options=options)), expected)
        self.assertEqual(heard(advertisement(HOST6, solicited=1)), expected)

    def test_invalid(self) -> None:
        """What RFC 4861 sections 7.1.1 and 7.1.2, RFC 826 or RFC 1812 section 3.3.2 forbid is refused."""
        ethernet, ip = Ether(src=HOST_MAC, dst=GROUP_MAC), IPv6(src=HOST6, dst=GROUP, hlim=255)
        invalid = {
            "a forwarded message": solicitation(hlim=254),
            "a wrong checksum": bytes(solicitation())[:-1] + b"\0",
            "code 1": ethernet / ip / ICMPv6ND_NS(code=1, tgt=INNER6),
            "a group as target": ethernet / ip / ICMPv6ND_NS(tgt=ALL_NODES),
            "a group as source": solicitation(ALL_NODES),
            "from nobody to one": solicitation(NOBODY6, INNER6, NO_OPTIONS),
            "from nobody with an address": solicitation(NOBODY6),
            "solicited by all": advertisement(solicited=1),
            "an option of length 0": solicitation(options=ICMPv6NDOptSrcLLAddr(len=0)),
            "an option beyond the end": solicitation(options=ICMPv6NDOptMTU(len=2)),
            "half an option": solicitation(options=b"\1"),
            "a long MAC": solicitation(options=ICMPv6NDOptSrcLLAddr(len=2) / bytes(8)),
            "a length beyond the end": with_length(40),
            "a length before the target": with_length(23),
            "a group as an ARP sender": arp(hwsrc="01:00:5e:00:00:01"),
            "everybody as an ARP sender": arp(hwsrc=BROADCAST),
            "half an ARP packet": bytes(arp())[:41],
            "half a solicitation": bytes(solicitation())[:77],
            "half a header": bytes(arp())[:13],
        }
        for what, frame in invalid.items():
            error = self.assertRaises(RemoteError, heard, frame)
            self.assertIs(error.reason, DropReason.MALFORMED_NEIGHBOUR, what)

    @settings(derandomize=True, deadline=None)
    @given(
        st.binary(max_size=120),
        st.sampled_from([bytes(arp()), bytes(solicitation()), bytes(advertisement())]),
    )
    @example(b"", b"")
    def test_any_bytes(self, rubbish: bytes, frame: bytes) -> None:
        """Whatever arrives, alone or where a frame should go on, it is read or refused, nothing else."""
        cut = len(rubbish) * len(frame) // 120
        for received in rubbish, frame[:12] + rubbish, frame[:cut] + rubbish, frame[:cut]:
            try:
                heard(received)
            except RemoteError as error:
                self.assertIs(error.reason, DropReason.MALFORMED_NEIGHBOUR)

    @settings(derandomize=True, deadline=None)
    @given(st.sampled_from([arp(), solicitation(), advertisement()]), st.data())
    def test_changed_frames(self, frame: Any, data: st.DataObject) -> None:
        """A changed frame is read, refused or passed over; discovery notices a change by its checksum."""
        original = bytes(frame)
        place = data.draw(st.integers(12, len(original) - 1))
        changed = bytearray(original)
        changed[place] ^= data.draw(st.integers(1, 255))
        try:
            found = heard(changed)
        except RemoteError:
            return
        if original[12:14] == b"\x86\xdd" and place >= 22:
            self.assertIsNone(found)


class WriteTests(SynchronousTestCase):
    """What we say, read by scapy."""

    def test_arp_answer(self) -> None:
        """A question is answered to its sender alone (RFC 826)."""
        question = heard(arp())
        assert question is not None
        frame = Ether(answer(question, packed(OUR_MAC)))
        self.assertEqual((frame.src, frame.dst), (OUR_MAC, HOST_MAC))
        self.assertEqual((frame.op, frame.hwsrc, frame.psrc), (2, OUR_MAC, INNER))
        self.assertEqual((frame.hwdst, frame.pdst), (HOST_MAC, HOST))

    def test_advertisement(self) -> None:
        """A solicitation is answered to its sender, solicited and overriding (RFC 4861 section 7.2.4)."""
        question = heard(solicitation())
        assert question is not None
        frame = Ether(answer(question, packed(OUR_MAC)))
        self.check_advertisement(frame, HOST_MAC, HOST6, solicited=1)

    def test_advertisement_to_nobody(self) -> None:
        """Who asks whether the address is free hears among all others that it is not."""
        question = heard(solicitation(NOBODY6, options=NO_OPTIONS))
        assert question is not None
        self.check_advertisement(Ether(answer(question, packed(OUR_MAC))), EVERYBODY, ALL_NODES, solicited=0)

    def check_advertisement(self, frame: Any, mac: str, destination: str, solicited: int) -> None:
        """Check a frame that says to `destination` at `mac` that INNER6 is at OUR_MAC."""
        self.assertEqual((frame.src, frame.dst), (OUR_MAC, mac))
        self.assertEqual((frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim), (INNER6, destination, 255))
        message = frame[ICMPv6ND_NA]
        self.assertEqual((message.tgt, message.R, message.S, message.O), (INNER6, 0, solicited, 1))
        self.assertEqual(frame[ICMPv6NDOptDstLLAddr].lladdr, OUR_MAC)
        proof = message.cksum
        del message.cksum
        self.assertEqual(Ether(bytes(frame))[ICMPv6ND_NA].cksum, proof)
        self.assertEqual(heard(frame), Heard(packed(INNER6), packed(OUR_MAC)))

    def test_arp_announcements(self) -> None:
        """An IPv4 address is announced by a request and a reply, each to everybody (RFC 5227)."""
        request, reply = map(Ether, announcements(packed(INNER), packed(OUR_MAC)))
        for operation, frame in (1, request), (2, reply):
            self.assertEqual((frame.dst, frame.src, frame.op), (BROADCAST, OUR_MAC, operation))
            self.assertEqual((frame.psrc, frame.pdst, frame.hwsrc), (INNER, INNER, OUR_MAC))
            self.assertEqual(heard(frame), Heard(packed(INNER), packed(OUR_MAC)))

    def test_discovery_announcement(self) -> None:
        """An IPv6 address is announced by an overriding advertisement (RFC 4861 section 7.2.6)."""
        (frame,) = map(Ether, announcements(packed(INNER6), packed(OUR_MAC)))
        self.check_advertisement(frame, EVERYBODY, ALL_NODES, solicited=0)

    def test_groups(self) -> None:
        """The solicited-node group has the last 24 bits of the address, its MAC the last 32 of the group."""
        group = solicited_node(packed(INNER6))
        self.assertEqual(IPv6Address(group), IPv6Address(GROUP))
        self.assertEqual(group_mac(group), packed(GROUP_MAC))
