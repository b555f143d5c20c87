"""Super-packets are cut as a network card would, and hostile ones are refused."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import VNET_HEADER
from rvpn.datapath.offload import (
    CHECKSUM_OFFSET,
    CWR,
    FIN,
    FLAGS,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    PSH,
    TCP,
    UDP,
    Segmentation,
    VnetHeader,
    completed,
    is_partial,
    room_for,
    transport,
)
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.codec import sealed_size
from tests.unit.inner_packets import packet, partial, recomputed, vnet

KINDS = [(4, TCP), (4, UDP), (6, TCP), (6, UDP)]
kinds = st.sampled_from(KINDS)


def cut(data: bytes, size: int, *, complete: bool = False) -> list[bytes]:
    """Return the segments of a super-packet."""
    return Segmentation(vnet(data, size), memoryview(data)).segments(complete=complete)


class SegmentTests(SynchronousTestCase):
    """What comes out of a super-packet."""

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(
        kind=kinds,
        payload=st.binary(min_size=1, max_size=600),
        size=st.integers(1, 700),
        options=st.booleans(),
        identification=st.sampled_from((0, 1, 0xFFF0, 0xFFFF)),
        sequence=st.sampled_from((0, 0xFFFFFF80, 0xFFFFFFFF)),
        flags=st.sampled_from(("A", "PA", "FPA", "CA", "CPFA", "UA", "EA")),
    )
    def test_like_scapy(
        self,
        kind: tuple[int, int],
        payload: bytes,
        size: int,
        options: bool,
        identification: int,
        sequence: int,
        flags: str,
    ) -> None:
        """Each segment has the lengths, checksums, number and flags that scapy gives such a packet."""
        version, protocol = kind
        stamps = [("Timestamp", (7, 9)), ("NOP", None)]
        tcp = {"seq": sequence, "ack": 5, "flags": flags, "options": stamps} if protocol == TCP else {}
        ip = {"id": identification} if version == 4 else {}
        whole = partial(packet(version, protocol, payload, extended=options, **tcp, **ip))
        complete, half = cut(whole, size, complete=True), cut(whole, size)
        where, pieces = transport(whole), [payload[at : at + size] for at in range(0, len(payload), size)]
        self.assertEqual([segment[where.payload :] for segment in complete], pieces)
        for number, (segment, incomplete) in enumerate(zip(complete, half, strict=True)):
            self.assertEqual(recomputed(segment), segment)
            self.assertEqual(
                completed(incomplete, where.offset, CHECKSUM_OFFSET[protocol]).hex(), segment.hex()
            )
            if version == 4:
                self.assertEqual(int.from_bytes(segment[4:6]), (identification + number) % (1 << 16))
            if protocol == TCP:
                at = where.offset
                self.assertEqual(
                    int.from_bytes(segment[at + 4 : at + 8]), (sequence + number * size) % (1 << 32)
                )
                expected = whole[at + FLAGS]
                expected &= 0xFF if number == len(pieces) - 1 else ~(FIN | PSH)
                expected &= 0xFF if number == 0 else ~CWR
                self.assertEqual(segment[at + FLAGS], expected)

    def test_count_and_lengths(self) -> None:
        """`count`, `longest` and `octets` tell of the segments before they are cut."""
        for version, protocol in KINDS:
            for length in (1, 99, 100, 101, 1000):
                data = partial(packet(version, protocol, bytes(length)))
                plan = Segmentation(vnet(data, 100), memoryview(data))
                segments = plan.segments()
                self.assertEqual(plan.count, len(segments))
                self.assertEqual(plan.longest, max(map(len, segments)))
                self.assertEqual(plan.octets, sum(map(len, segments)))

    def test_trailers(self) -> None:
        """Each segment is followed by the trailer for its length."""
        data = partial(packet(4, UDP, bytes(207)))
        trailers = (b"0", b"1", b"2", b"3")
        for complete in (False, True):
            segments = Segmentation(vnet(data, 100), memoryview(data)).segments(trailers, complete=complete)
            self.assertEqual([segment[-1:] for segment in segments], [b"0", b"0", b"3"])

    def test_no_udp_checksum(self) -> None:
        """UDP over IPv4 may have no checksum at all; its segments then have none either."""
        data = bytearray(packet(4, UDP, bytes(300)))
        data[26:28] = b"\0\0"
        plan = Segmentation(VnetHeader(0, GSO_UDP, 28, 100, 0, 0), memoryview(data))
        self.assertFalse(plan.partial)
        self.assertEqual([segment[26:28] for segment in plan.segments(complete=True)], [b"\0\0"] * 3)

    def test_congestion_window_reduced(self) -> None:
        """The type may say that CWR is set, which is for the first segment (RFC 3168)."""
        data = partial(packet(4, TCP, bytes(300), flags="CA"))
        header = vnet(data, 100)
        header = header._replace(gso_type=header.gso_type | GSO_ECN)
        flags = [segment[20 + FLAGS] for segment in Segmentation(header, memoryview(data)).segments()]
        self.assertEqual([flag & CWR for flag in flags], [CWR, 0, 0])

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(kind=kinds, length=st.integers(1, 3000), size=st.integers(1, 3000))
    def test_room(self, kind: tuple[int, int], length: int, size: int) -> None:
        """What the segments take once sealed is no more than was said before."""
        data = partial(packet(*kind, bytes(length)))
        sealed = sum(sealed_size(len(segment)) for segment in cut(data, size))
        self.assertLessEqual(sealed, room_for(memoryview(vnet(data, size).encode() + data)))


class ChecksumTests(SynchronousTestCase):
    """Partial checksums of single packets."""

    @settings(derandomize=True, deadline=None, max_examples=50)
    @given(kind=kinds, payload=st.binary(max_size=100), options=st.booleans())
    def test_completed(self, kind: tuple[int, int], payload: bytes, options: bool) -> None:
        """A completed checksum is the one that scapy computes."""
        whole = packet(*kind, payload, extended=options)
        data = partial(whole)
        header = vnet(data)
        self.assertTrue(is_partial(memoryview(data), header.csum_start, header.csum_offset))
        self.assertEqual(completed(data, header.csum_start, header.csum_offset), whole)

    def test_zero(self) -> None:
        """A UDP checksum that comes out as 0 is sent as 0xffff (RFC 768)."""
        data = partial(packet(4, UDP, b"\0\0"))
        short = int.from_bytes(completed(data, 20, 6)[26:28])
        data = data[:28] + short.to_bytes(2)
        self.assertEqual(completed(data, 20, 6)[26:28], b"\xff\xff")

    def test_elsewhere(self) -> None:
        """A checksum that is not TCP's or UDP's is none that a receiver would find, but is completed."""
        data = memoryview(packet(4, UDP, bytes(40)))
        for start, offset in ((20, 16), (28, 6), (24, 2)):
            self.assertFalse(is_partial(data, start, offset))
            self.assertEqual(len(completed(data, start, offset)), len(data))
        for start, offset in ((20, 48), (0xFFFF, 0), (0, 0xFFFF)):
            self.assertRaises(RemoteError, completed, data, start, offset)


class HostileTests(SynchronousTestCase):
    """Headers that lie."""

    def assert_refused(self, header: VnetHeader, data: bytes) -> None:
        """The packet is malformed."""
        with self.assertRaises(RemoteError) as caught:
            Segmentation(header, memoryview(data))
        self.assertEqual(caught.exception.reason, DropReason.MALFORMED_PACKET)

    def test_lies(self) -> None:
        """A type of another protocol or version, no size, no payload, no or another checksum are refused."""
        for version, protocol in KINDS:
            data = partial(packet(version, protocol, bytes(300)))
            header = vnet(data, 100)
            lies = [
                header._replace(gso_size=0),
                header._replace(flags=0),
                header._replace(csum_start=header.csum_start + 2),
                header._replace(csum_offset=header.csum_offset + 2),
                header._replace(gso_type=0),
                header._replace(gso_type=3),
                *(
                    header._replace(gso_type=other)
                    for other in (GSO_TCPV4, GSO_TCPV6, GSO_UDP)
                    if other != header.gso_type
                ),
            ]
            for lie in lies:
                self.assert_refused(lie, data)
            self.assert_refused(header, partial(packet(version, protocol, b"")))

    def test_fragments(self) -> None:
        """No fragment is a super-packet, not even the first."""
        for flags in (0x2000, 0x2003, 3):
            data = bytearray(partial(packet(4, TCP, bytes(300))))
            header = vnet(bytes(data), 100)
            data[6:8] = flags.to_bytes(2)
            self.assert_refused(header, bytes(data))

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(
        kind=kinds,
        header=st.tuples(
            *[st.sampled_from((0, 1, 2, 3, 4, 5, 6, 20, 100, 255))] * 2, *[st.integers(0, 400)] * 4
        ),
        changes=st.dictionaries(st.integers(0, 80), st.integers(0, 255), max_size=3),
        length=st.integers(0, 200),
    )
    def test_garbage(
        self, kind: tuple[int, int], header: tuple[int, ...], changes: dict[int, int], length: int
    ) -> None:
        """Nothing but `RemoteError` is raised, and segments are never more than there is payload."""
        data = bytearray(partial(packet(*kind, bytes(100))))
        for at, value in changes.items():
            data[at % len(data)] = value
        data = data[: max(0, len(data) - length)] if length < 100 else data
        said = VnetHeader(*header)
        view = memoryview(said.encode() + data)
        try:
            self.assertEqual(VnetHeader.read(view), said)
            self.assertGreater(room_for(view), len(data))
            is_partial(view[VNET_HEADER:], said.csum_start, said.csum_offset)
            segments = Segmentation(said, view[VNET_HEADER:]).segments(complete=True)
            self.assertLessEqual(len(segments), len(data))
        except RemoteError as error:
            self.assertEqual(error.reason, DropReason.MALFORMED_PACKET)

    def test_huge_count(self) -> None:
        """A size of one byte makes many segments, whose room is told before any is made."""
        data = partial(packet(4, UDP, bytes(60000)))
        self.assertGreater(room_for(memoryview(vnet(data, 1).encode() + data)), 1 << 23)
