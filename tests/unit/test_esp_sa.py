"""Security associations: vectors, tampering, replays, exhaustion, and buffers of the caller."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import HARD_LIMIT_PACKETS, NextHeader, TransformID
from rvpn.errors import DropReason, RemoteError, SAExhausted
from rvpn.esp.codec import HEADER, ICV_SIZE, KEPT_RUNS, SHORTEST, TRAILERS, KeptSlots, Slots, sealed_size
from rvpn.esp.sa import InboundSA, OutboundSA
from rvpn.esp.transforms import KEY_SIZE, SALT_SIZE, cipher
from tests.unit.esp_ends import opened

SPI = 0x1234ABCD
KEY = bytes(range(KEY_SIZE))
SALT = b"salt"
PACKET = bytes(range(100, 161))


def pair(transform: TransformID) -> tuple[OutboundSA, InboundSA]:
    """Return both ends of one direction."""
    return OutboundSA(SPI, transform, KEY, SALT), InboundSA(SPI, transform, KEY, SALT)


def trailed(*packets: bytes) -> list[bytes]:
    """Return the packets with their trailers."""
    return [packet + TRAILERS[NextHeader.IPV4][len(packet) & 3] for packet in packets]


def room_for(count: int) -> tuple[Slots, bytearray]:
    """Return the slots for so many times PACKET, and their buffer."""
    buffer = bytearray(count * sealed_size(len(PACKET)))
    return KeptSlots().of(memoryview(buffer), 0, sealed_size(len(PACKET)), 0, count), buffer


class EspTestCase(SynchronousTestCase):
    """Asserts for what an inbound SA refuses."""

    def assert_refused(self, reason: DropReason, sa: InboundSA, datagram: bytes) -> None:
        """The datagram is refused for the reason."""
        with self.assertRaises(RemoteError) as caught:
            opened(sa, datagram)
        self.assertEqual(caught.exception.reason, reason)


class Vectors(EspTestCase):
    """Published packets open."""

    def test_rfc_7634_appendix_a(self) -> None:
        """ChaCha20-Poly1305: the ICMP echo request of RFC 7634 appendix A."""
        key = bytes(range(0x80, 0xA0))
        packet = bytes.fromhex(
            "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f1011121314"
            "15161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"
        )
        datagram = bytes.fromhex(
            "0102030400000005101112131415161724039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614"
            "ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165"
            "b82829f641e076aaa8266b7fb0f7b11b369907e1ad43"
        )
        sa = InboundSA(0x01020304, TransformID.CHACHA20_POLY1305, key, bytes.fromhex("a0a1a2a3"))
        self.assertEqual(opened(sa, datagram), (packet, NextHeader.IPV4))
        self.assertEqual(sa.window.highest, 5)

    def test_gcm_esp_256(self) -> None:
        """AES-GCM with a 256-bit key: a TCP SYN of draft-mcgrew-gcm-test-01 (whose next header is 1)."""
        packet = bytes.fromhex(
            "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf0000020405b401010402"
        )
        datagram = bytes.fromhex(
            "4a2cbfe3000000020102030405060708ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d76374"
            "8a637985771d347f0545659f14e99def842d8eb335f4eecfdbf831824b4c4915956c96"
        )
        key = bytes.fromhex("abbccddef00112233445566778899aab") * 2
        sa = InboundSA(0x4A2CBFE3, TransformID.AES_GCM_16_256, key, bytes.fromhex("11223344"))
        self.assertEqual(opened(sa, datagram), (packet, 1))


class RoundTrip(EspTestCase):
    """What one end seals the other opens."""

    @settings(derandomize=True, deadline=None)
    @given(
        transform=st.sampled_from(TransformID),
        packets=st.lists(st.tuples(st.binary(max_size=1500), st.sampled_from(NextHeader)), max_size=5),
    )
    def test_round_trip(self, transform: TransformID, packets: list[tuple[bytes, NextHeader]]) -> None:
        """Packets of every length and next header pass, and both ends count them alike."""
        outbound, inbound = pair(transform)
        for packet, next_header in packets:
            datagram = outbound.seal(packet, next_header)
            self.assertEqual(len(datagram), sealed_size(len(packet)))
            self.assertEqual(opened(inbound, datagram), (packet, next_header))
        self.assertEqual((outbound.packets, inbound.window.highest), (len(packets), len(packets)))

    def test_header(self) -> None:
        """The header has the SPI, the sequence number from 1, and the same number as IV."""
        outbound, _ = pair(TransformID.AES_GCM_16_256)
        headers = [HEADER.unpack_from(outbound.seal(PACKET, NextHeader.IPV4)) for _ in range(2)]
        self.assertEqual(headers, [(SPI, 1, 1), (SPI, 2, 2)])

    @settings(derandomize=True, deadline=None)
    @given(
        transform=st.sampled_from(TransformID),
        packets=st.lists(st.binary(min_size=77, max_size=77), max_size=9),
        last=st.binary(max_size=76),
    )
    def test_run(self, transform: TransformID, packets: list[bytes], last: bytes) -> None:
        """Packets of a run, the last shorter, are sealed into their slots as they would be one by one."""
        outbound, inbound = pair(transform)
        size, buffer = sealed_size(77), bytearray(4096)
        slots = KeptSlots().of(memoryview(buffer), 16, size, 0, len(packets))
        end = 16 + size * len(packets) + sealed_size(len(last))
        slots.add(memoryview(buffer), 16 + size * len(packets), end)
        outbound.seal_run(outbound.spend(len(packets) + 1), trailed(*packets, last), buffer, slots)
        one_by_one = OutboundSA(SPI, transform, KEY, SALT)
        self.assertEqual(
            buffer[16:end], b"".join(one_by_one.seal(p, NextHeader.IPV4) for p in (*packets, last))
        )
        self.assertEqual(buffer[:16] + buffer[end:], bytes(4096 - (end - 16)))
        for start in range(16, end, size):
            opened(inbound, bytes(buffer[start : min(start + size, end)]))

    def test_order_does_not_matter(self) -> None:
        """Packets that overtake one another all open."""
        outbound, inbound = pair(TransformID.CHACHA20_POLY1305)
        datagrams = [outbound.seal(bytes([number]), NextHeader.DUMMY) for number in range(8)]
        for number in (3, 0, 7, 1, 6, 2, 5, 4):
            self.assertEqual(opened(inbound, datagrams[number]), (bytes([number]), NextHeader.DUMMY))


class Refusals(EspTestCase):
    """What does not open, and what is left of it."""

    def test_tampering(self) -> None:
        """A datagram with any one bit changed is refused and harms nothing."""
        for transform in TransformID:
            outbound, inbound = pair(transform)
            datagram = outbound.seal(PACKET, NextHeader.IPV4)
            for position, bit in product(range(len(datagram)), range(8)):
                forged = bytearray(datagram)
                forged[position] ^= 1 << bit
                with self.assertRaises(RemoteError) as caught:
                    opened(inbound, bytes(forged))
                # Sequence number 0 does not even get as far as the ICV.
                expected = DropReason.REPLAYED if forged[4:8] == bytes(4) else DropReason.BAD_ICV
                self.assertEqual(caught.exception.reason, expected)
            self.assertEqual(inbound.window.highest, 0)
            self.assertEqual(opened(inbound, datagram), (PACKET, NextHeader.IPV4))

    def test_other_key_or_salt(self) -> None:
        """Neither another key nor another salt opens a packet."""
        for transform in TransformID:
            datagram = OutboundSA(SPI, transform, KEY, SALT).seal(PACKET, NextHeader.IPV4)
            self.assert_refused(DropReason.BAD_ICV, InboundSA(SPI, transform, KEY[::-1], SALT), datagram)
            self.assert_refused(DropReason.BAD_ICV, InboundSA(SPI, transform, KEY, b"tlas"), datagram)

    def test_replay(self) -> None:
        """A packet opens once."""
        outbound, inbound = pair(TransformID.AES_GCM_16_256)
        datagram = outbound.seal(PACKET, NextHeader.IPV4)
        opened(inbound, datagram)
        self.assert_refused(DropReason.REPLAYED, inbound, datagram)

    def test_forged_sequence_does_not_move_the_window(self) -> None:
        """A forgery with the highest number there is leaves the window where it was."""
        outbound, inbound = pair(TransformID.AES_GCM_16_256)
        datagram = outbound.seal(PACKET, NextHeader.IPV4)
        self.assert_refused(DropReason.BAD_ICV, inbound, datagram[:4] + b"\xff" * 4 + datagram[8:])
        self.assertEqual(inbound.window.highest, 0)
        opened(inbound, datagram)

    @settings(derandomize=True, deadline=None)
    @given(transform=st.sampled_from(TransformID), rest=st.binary(min_size=SHORTEST - 4, max_size=200))
    def test_garbage(self, transform: TransformID, rest: bytes) -> None:
        """Bytes that nobody sealed raise `RemoteError` and no other exception."""
        _, inbound = pair(transform)
        datagram = SPI.to_bytes(4, "big") + rest
        with self.assertRaises(RemoteError):
            opened(inbound, datagram)
        self.assertEqual(inbound.window.highest, 0)

    @settings(derandomize=True, deadline=None)
    @given(
        packet=st.binary(min_size=2, max_size=60),
        pad=st.one_of(
            st.binary(max_size=8), st.integers(0, 60).map(lambda count: bytes(range(1, count + 1)))
        ),
        padding=st.one_of(st.none(), st.integers(0, 255)),
        next_header=st.integers(0, 255),
    )
    def test_authentic_nonsense(
        self, packet: bytes, pad: bytes, padding: int | None, next_header: int
    ) -> None:
        """A peer that seals a bad trailer is refused with `RemoteError`, a good one is read to the letter."""
        header = HEADER.pack(SPI, 1, 99)
        body = packet + pad
        padding = len(pad) if padding is None else padding
        plaintext = body + bytes((padding, next_header))
        sealed = cipher(TransformID.AES_GCM_16_256, KEY).encrypt(SALT + header[8:], plaintext, header[:8])
        _, inbound = pair(TransformID.AES_GCM_16_256)
        length = len(body) - padding
        if length >= 0 and body[length:] == bytes(range(1, padding + 1)):
            self.assertEqual(opened(inbound, header + sealed), (body[:length], next_header))
        else:
            self.assert_refused(DropReason.MALFORMED_ESP, inbound, header + sealed)
            # It was authentic, so its number is used up (RFC 4303 section 3.4.3).
            self.assert_refused(DropReason.REPLAYED, inbound, header + sealed)


class Exhaustion(EspTestCase):
    """No IV is used twice."""

    def test_hard_limit(self) -> None:
        """At its limit an SA refuses for ever, without a further packet."""
        outbound = OutboundSA(SPI, TransformID.AES_GCM_16_256, KEY, SALT, hard_limit=3)
        for _ in range(3):
            outbound.seal(PACKET, NextHeader.IPV4)
        for _ in range(2):
            with self.assertRaises(SAExhausted):
                outbound.seal(PACKET, NextHeader.IPV4)
        self.assertEqual(outbound.packets, 3)

    def test_default_limit_is_below_the_wrap(self) -> None:
        """The last packets below the default limit have 32-bit sequence numbers, and then it ends."""
        outbound, inbound = pair(TransformID.CHACHA20_POLY1305)
        outbound.packets = HARD_LIMIT_PACKETS - 1
        self.assertEqual(opened(inbound, outbound.seal(PACKET, NextHeader.IPV4)), (PACKET, NextHeader.IPV4))
        with self.assertRaises(SAExhausted):
            outbound.seal(PACKET, NextHeader.IPV4)

    def test_run_at_the_limit(self) -> None:
        """A run that would pass the limit is refused whole, and a shorter one is not."""
        outbound = OutboundSA(SPI, TransformID.AES_GCM_16_256, KEY, SALT, hard_limit=3)
        with self.assertRaises(SAExhausted):
            outbound.spend(4)
        self.assertEqual(outbound.packets, 0)
        self.assertEqual(list(outbound.spend(3)), [1, 2, 3])

    def test_failed_seal_uses_up_its_numbers(self) -> None:
        """A run of which one packet fails for want of room has used all its IVs: the next gets another."""
        outbound, inbound = pair(TransformID.AES_GCM_16_256)
        slots, buffer = room_for(3)
        slots.sealed[1] = slots.sealed[1][:-1]
        with self.assertRaises(ValueError):
            outbound.seal_run(outbound.spend(3), trailed(*[PACKET] * 3), buffer, slots)
        datagram = outbound.seal(PACKET, NextHeader.IPV4)
        self.assertEqual(HEADER.unpack_from(datagram)[1:], (4, 4))
        opened(inbound, datagram)


class Kept(SynchronousTestCase):
    """`KeptSlots`: views of a buffer, kept."""

    def test_the_same(self) -> None:
        """They are the same for the same run, more for a longer one, and others for another buffer."""
        slots, view = KeptSlots(), memoryview(bytearray(400))
        first = slots.of(view, 4, 100, 0, 2)
        again = slots.of(view, 4, 100, 1, 3)
        self.assertEqual((first.starts, again.starts), ([4, 104], [104, 204]))
        self.assertIs(first.additional[1], again.additional[0])
        self.assertIs(first.sealed[1], again.sealed[0])
        other = slots.of(memoryview(bytearray(400)), 4, 100, 0, 1)
        self.assertIsNot(other.sealed[0], first.sealed[0])

    def test_of_their_own(self) -> None:
        """What a caller adds to its slots is in no others."""
        slots, view = KeptSlots(), memoryview(bytearray(400))
        slots.of(view, 0, 100, 0, 2).add(view, 200, 240)
        self.assertEqual(slots.of(view, 0, 100, 0, 3).starts, [0, 100, 200])
        self.assertEqual(len(slots.of(view, 0, 100, 2, 3).sealed[0]), 84)

    def test_bounded(self) -> None:
        """Ever new sizes and places leave no more than a bound."""
        slots, view = KeptSlots(), memoryview(bytearray(4000))
        for size in range(40, 40 + 3 * KEPT_RUNS):
            slots.of(view, size, size, 0, 2)
        self.assertLessEqual(len(slots._kept), KEPT_RUNS)


class Construction(SynchronousTestCase):
    """Keys."""

    def test_sizes(self) -> None:
        """Keys and salts of another size are refused; a 16-byte key would silently mean AES-128."""
        for transform, sa in product(TransformID, (OutboundSA, InboundSA)):
            with self.assertRaises(ValueError):
                sa(SPI, transform, KEY[:16], SALT)
            with self.assertRaises(ValueError):
                sa(SPI, transform, KEY, SALT + b"!")
        self.assertEqual((KEY_SIZE, SALT_SIZE, ICV_SIZE), (32, 4, 16))

    def test_repr(self) -> None:
        """The repr names the SA and shows nothing secret."""
        outbound, inbound = pair(TransformID.AES_GCM_16_256)
        self.assertEqual(repr(outbound), "OutboundSA(spi=0x1234abcd, AES_GCM_16_256)")
        self.assertEqual(repr(inbound), "InboundSA(spi=0x1234abcd, AES_GCM_16_256)")
