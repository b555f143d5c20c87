"""Packets that continue one another become what they were cut from, and all others stay as they are."""

from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import VNET_HEADER
from rvpn.datapath.coalesce import MOST_DATAGRAMS, Coalescer
from rvpn.datapath.offload import GSO_NONE, NEEDS_CSUM, TCP, UDP, Segmentation, VnetHeader, transport
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import PacketBatch
from tests.unit.inner_packets import packet, partial, vnet

BOTH = frozenset((TCP, UDP))
#: Padding and next header behind a packet, which mean nothing here.
BEHIND = b"\1\2\2\xfd"
kinds = st.sampled_from([(4, TCP), (4, UDP), (6, TCP), (6, UDP)])


def together(packets: Iterable[bytes], protocols: frozenset[int] = BOTH) -> list[bytes]:
    """Return what becomes of packets with partial checksums, each behind its virtio_net_hdr."""
    batch, coalescer = PacketBatch(1 << 18), Coalescer(protocols)
    coalescer.packets = batch
    for each in packets:
        if not coalescer.take(each + BEHIND, len(each)):
            coalescer.start(each + BEHIND, len(each))
    coalescer.flush()
    return [bytes(batch.view[start:end]) for start, end in batch.spans]


def apart(written: Iterable[bytes]) -> list[bytes]:
    """Return the packets that a kernel makes of these."""
    packets: list[bytes] = []
    for each in written:
        header, inner = VnetHeader.read(memoryview(each)), memoryview(each)[VNET_HEADER:]
        packets += Segmentation(header, inner).segments() if header.gso_type else [bytes(inner)]
    return packets


def alone(data: bytes) -> bytes:
    """Return a packet that was put together with no other, as it is written."""
    where = transport(data)
    return vnet(data)._replace(hdr_len=where.payload).encode() + data


def tcp(sequence: int, length: int = 100, **fields: Any) -> bytes:
    """Return a segment of one flow; `sequence` counts from its start, and so do identifications."""
    said: dict[str, Any] = {"id": sequence // 100, "flags": "A", "ack": 5, "seq": sequence} | fields
    return partial(packet(4, TCP, bytes(length), **said))


class IdentityTests(SynchronousTestCase):
    """What was cut is put together again."""

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(
        kind=kinds,
        payload=st.binary(min_size=2, max_size=600),
        size=st.integers(10, 300),
        options=st.booleans(),
        identification=st.sampled_from((0, 1, 0xFFFE, 0xFFFF)),
        sequence=st.sampled_from((0, 0xFFFFFF80, 0xFFFFFFFF)),
        flags=st.sampled_from(("A", "PA", "FPA", "EA")),
    )
    def test_identity(
        self,
        kind: tuple[int, int],
        payload: bytes,
        size: int,
        options: bool,
        identification: int,
        sequence: int,
        flags: str,
    ) -> None:
        """Cutting a super-packet and putting the segments together gives that very super-packet."""
        version, protocol = kind
        size = min(size, len(payload) - 1)
        stamps = [("Timestamp", (7, 9)), ("NOP", None)]
        fields: dict[str, Any] = {"id": identification} if version == 4 else {}
        if protocol == TCP:
            fields |= {"seq": sequence, "ack": 5, "flags": flags, "options": stamps}
        whole = partial(packet(version, protocol, payload, extended=options, **fields))
        header = vnet(whole, size)
        if -(-len(payload) // size) > MOST_DATAGRAMS:
            return
        segments = Segmentation(header, memoryview(whole)).segments()
        self.assertEqual(together(segments), [header.encode() + whole])

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(
        st.lists(
            st.builds(
                lambda kind, size, count, flags, shift: (kind, size, count, flags, shift),
                kinds,
                st.sampled_from((1, 50, 100)),
                st.integers(1, 6),
                st.sampled_from(("A", "PA", "FA", "SA", "RA", "UA", "CA", "EA")),
                st.sampled_from((0, 100, -100)),
            ),
            max_size=5,
        )
    )
    def test_any_traffic(self, flows: list[tuple[tuple[int, int], int, int, str, int]]) -> None:
        """Whatever comes, a kernel that cuts what was written gets the same packets in the same order."""
        packets: list[bytes] = []
        for (version, protocol), size, count, flags, shift in flows:
            for number in range(count):
                fields: dict[str, Any] = {"id": number} if version == 4 else {}
                if protocol == TCP:
                    fields |= {"seq": 1000 + number * size + shift * (number == 2), "flags": flags}
                packets.append(partial(packet(version, protocol, bytes([number] * size), **fields)))
        self.assertEqual(apart(together(packets)), packets)


class EndTests(SynchronousTestCase):
    """What ends a super-packet."""

    def assert_apart(self, first: bytes, second: bytes) -> None:
        """Both are written as they are."""
        self.assertEqual(together([first, second]), [alone(first), alone(second)])

    def test_together(self) -> None:
        """Segments that follow one another are put together: the other tests change one thing each."""
        self.assertEqual(len(together([tcp(0), tcp(100), tcp(200)])), 1)

    def test_differences(self) -> None:
        """Whatever else differs, the second segment begins anew."""
        changes: dict[str, dict[str, Any]] = {
            "acknowledgement": {"ack": 6},
            "window": {"window": 77},
            "a timestamp": {"options": [("Timestamp", (1, 2))]},
            "SYN": {"flags": "SA"},
            "RST": {"flags": "RA"},
            "URG": {"flags": "UA"},
            "ECE": {"flags": "EA"},
            "CWR": {"flags": "CA"},
            "congestion experienced": {"tos": 3},
            "identification": {"id": 9},
            "port": {"dport": 80},
            "urgent pointer": {"urgptr": 3},
        }
        for change in changes.values():
            self.assert_apart(tcp(0), tcp(100, **change))

    def test_timestamps(self) -> None:
        """A later timestamp begins anew."""
        first, second = (tcp(at, options=[("Timestamp", (at, 2))]) for at in (0, 100))
        self.assert_apart(first, second)

    def test_order(self) -> None:
        """So does a gap, a repetition, or one that comes too early."""
        for first, second in ((0, 200), (100, 0), (100, 100)):
            self.assert_apart(tcp(first), tcp(second, id=first // 100 + 1))

    def test_sizes(self) -> None:
        """A shorter segment is the last; a longer one begins anew."""
        self.assertEqual(len(together([tcp(0), tcp(100, 60), tcp(160, 100, id=2)])), 2)
        self.assert_apart(tcp(0), tcp(100, 101))

    def test_no_payload(self) -> None:
        """Acknowledgements alone are never put together."""
        self.assert_apart(tcp(0, 0), tcp(0, 0, id=1))

    def test_push(self) -> None:
        """PSH and FIN are for the last: nothing follows them, but they may follow."""
        for flags in ("PA", "FA"):
            self.assert_apart(tcp(0, flags=flags), tcp(100))
            (written,) = together([tcp(0), tcp(100, flags=flags)])
            self.assertEqual(apart([written]), [tcp(0), tcp(100, flags=flags)])
            self.assertEqual(len(together([tcp(0), tcp(100, flags=flags), tcp(200)])), 2)

    def test_flags_for_the_first(self) -> None:
        """A segment with SYN, RST, URG or CWR stays alone."""
        for flags in ("SA", "RA", "UA", "CA"):
            self.assert_apart(tcp(0, flags=flags), tcp(100, flags=flags))

    def test_other_flow(self) -> None:
        """Packets of two flows by turns are not sorted out."""
        packets = [tcp(at, sport=port) for at in (0, 100) for port in (1, 2)]
        self.assertEqual(together(packets), [alone(each) for each in packets])

    def test_longest(self) -> None:
        """No super-packet is longer than an IP packet can be, nor of more datagrams than kernels take."""
        segments = [tcp(number * 1400, 1400, id=number) for number in range(60)]
        self.assertEqual(
            [len(written) for written in together(segments)], [10 + 40 + 46 * 1400, 10 + 40 + 14 * 1400]
        )
        datagrams = [partial(packet(4, UDP, b"x", id=number)) for number in range(MOST_DATAGRAMS + 2)]
        first, second = together(datagrams)
        self.assertEqual((len(first), len(second)), (10 + 28 + MOST_DATAGRAMS, 10 + 28 + 2))

    def test_protocols(self) -> None:
        """Super-packets are made of the protocols that the device takes alone."""
        datagrams = [partial(packet(6, UDP, b"data")) for _ in range(3)]
        self.assertEqual(len(together(datagrams, frozenset((TCP,)))), 3)
        self.assertEqual(len(together([tcp(0), tcp(100)], frozenset())), 2)


class CompleteTests(SynchronousTestCase):
    """Packets whose checksum nobody has verified."""

    def test_no_transport(self) -> None:
        """A partial checksum of anything but a whole TCP or UDP packet is malformed."""
        fragment = bytearray(tcp(0))
        fragment[6] = 0x20
        for data in (bytes(fragment), tcp(0)[:9] + b"\1" + tcp(0)[10:], b"", b"\x45", tcp(0)[:30]):
            with self.assertRaises(RemoteError) as caught:
                together([data])
            self.assertEqual(caught.exception.reason, DropReason.MALFORMED_PACKET)

    def test_alone(self) -> None:
        """A packet that nothing continues keeps its partial checksum, and the header says where."""
        (written,) = together([tcp(0)])
        header = VnetHeader.read(memoryview(written))
        self.assertEqual((header.flags, header.gso_type, header.gso_size), (NEEDS_CSUM, GSO_NONE, 0))
        self.assertEqual((header.csum_start, header.csum_offset), (20, 16))

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(
        kinds, st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255), st.integers(0, 60)), max_size=6)
    )
    def test_hostile(self, kind: tuple[int, int], changes: list[tuple[int, int, int]]) -> None:
        """Changed and cut packets raise nothing but `RemoteError`, and fit into the batch."""
        segments = Segmentation(
            vnet(data := partial(packet(*kind, bytes(500))), 100), memoryview(data)
        ).segments()
        batch, coalescer = PacketBatch(sum(map(len, segments)) + VNET_HEADER * len(segments)), Coalescer(BOTH)
        coalescer.packets = batch
        for number, segment in enumerate(segments):
            mutant = bytearray(segment)
            cut = 0
            for at, value, shorter in changes[number : number + 1]:
                mutant[at % len(mutant)] = value
                cut = shorter
            length = len(mutant) - cut
            try:
                if not coalescer.take(bytes(mutant), length):
                    coalescer.start(bytes(mutant), length)
            except RemoteError as error:
                self.assertEqual(error.reason, DropReason.MALFORMED_PACKET)
        coalescer.flush()
        self.assertEqual(batch.length, sum(end - start for start, end in batch.spans))
