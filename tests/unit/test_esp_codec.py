"""The ESP layout: sizes, padding and trailers."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import TRAIN_FIELDS, NextHeader
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.codec import ALIGNMENT, OVERHEAD, TRAILERS, inner_mtu, length_of, sealed_size


class Sizes(SynchronousTestCase):
    """What an inner packet becomes, and what fits."""

    def test_known(self) -> None:
        """Sizes counted by hand: header 8, IV 8, packet, padding, trailer 2, ICV 16."""
        self.assertEqual([sealed_size(length) for length in (0, 2, 3, 84, 1280)], [36, 36, 40, 120, 1316])

    def test_known_mtu(self) -> None:
        """On an Ethernet path 1434 bytes fit over IPv4 and 1414 over IPv6, in a train too."""
        self.assertEqual((inner_mtu(1500, 4), inner_mtu(1500, 6)), (1434, 1414))

    @settings(derandomize=True, deadline=None)
    @given(path_mtu=st.integers(576, 65535), header=st.sampled_from([(4, 20), (6, 40)]))
    def test_mtu_is_tight(self, path_mtu: int, header: tuple[int, int]) -> None:
        """
        The inner MTU fits into the path's MTU with IP and UDP headers and the fields of a train, and one byte
        more does not.
        """
        version, size = header
        mtu = inner_mtu(path_mtu, version) + TRAIN_FIELDS
        self.assertLessEqual(size + 8 + sealed_size(mtu), path_mtu)
        self.assertGreater(size + 8 + sealed_size(mtu + 1), path_mtu)


class Trailer(SynchronousTestCase):
    """RFC 4303 section 2.4 to 2.6."""

    def test_padding(self) -> None:
        """The padding counts 1, 2, 3 and ends the encrypted part on a multiple of 4 bytes."""
        self.assertEqual(TRAILERS[NextHeader.IPV6], (b"\1\2\2\x29", b"\1\1\x29", b"\0\x29", b"\1\2\3\3\x29"))

    @settings(derandomize=True, deadline=None)
    @given(packet=st.binary(max_size=64), next_header=st.sampled_from(NextHeader))
    def test_round_trip(self, packet: bytes, next_header: NextHeader) -> None:
        """Packets of every length are found again, and together with their trailer are aligned."""
        plaintext = packet + TRAILERS[next_header][len(packet) % ALIGNMENT]
        self.assertEqual(len(plaintext) % ALIGNMENT, 0)
        self.assertEqual(len(plaintext) + OVERHEAD, sealed_size(len(packet)))
        self.assertEqual((length_of(plaintext), plaintext[-1]), (len(packet), next_header))

    def test_longest_padding(self) -> None:
        """A peer may pad with 255 bytes (RFC 4303 section 2.4)."""
        plaintext = b"packet" + bytes(range(1, 256)) + b"\xff\x04"
        self.assertEqual(length_of(plaintext), 6)

    def test_malformed(self) -> None:
        """Padding of other content, or longer than the plaintext, is refused."""
        for plaintext in (b"\0\0\0\1\2\4", b"\1\2\2\3\3\4", b"\1\3\2\4", b"\1\3\4", b"\xff\4"):
            with self.assertRaises(RemoteError) as caught:
                length_of(plaintext)
            self.assertEqual(caught.exception.reason, DropReason.MALFORMED_ESP)
