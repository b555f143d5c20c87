"""
Security associations: one direction of one session's ESP, with its key, counters and replay window (RFC
4303).

Outbound: count, write header and trailer around the inner packet, encrypt in place. Inbound: check the
length, check the replay window, open, commit to the window, read the trailer. Both work in buffers of the
caller, so that a packet costs no allocation beyond the nonce and a few views.

The IV is a 64-bit counter, as RFC 4106 section 3.1 and RFC 7634 section 2 suggest; it equals the sequence
number.
"""

from struct import Struct

from cryptography.exceptions import InvalidTag

from rvpn.constants import HARD_LIMIT_PACKETS, TransformID
from rvpn.errors import DropReason, RemoteError, SAExhausted
from rvpn.esp.codec import (
    AAD_SIZE,
    HEADER,
    ICV_SIZE,
    OVERHEAD,
    SHORTEST,
    TRAILERS,
    read_trailer,
    sealed_size,
)
from rvpn.esp.replay import ReplayWindow
from rvpn.esp.transforms import SALT_SIZE, cipher

_SEQUENCE_AND_IV = Struct("!4xI8s")
_IV = Struct("!Q")


class _SA:
    """What both directions have: an SPI, a transform, a salt, and counts of inner packets and their bytes."""

    __slots__ = ("_salt", "bytes", "packets", "spi", "transform")

    def __init__(self, spi: int, transform: TransformID, salt: bytes) -> None:
        if len(salt) != SALT_SIZE:
            raise ValueError(f"{transform.name} takes a salt of {SALT_SIZE} bytes, not {len(salt)}")
        self.spi = spi
        self.transform = transform
        self._salt = salt
        self.packets = 0
        self.bytes = 0

    def __repr__(self) -> str:
        """Show what may be seen: neither key nor salt."""
        return f"{type(self).__name__}(spi={self.spi:#010x}, {self.transform.name}, packets={self.packets})"


class OutboundSA(_SA):
    """
    Seals inner packets under one key.

    `packets` is the sequence number last used, of dummy packets and failed attempts too; it never goes back.
    `key` and `salt` have KEY_SIZE and SALT_SIZE bytes. `hard_limit` is the last sequence number it may use.
    """

    __slots__ = ("_encrypt_into", "_hard_limit")

    def __init__(
        self, spi: int, transform: TransformID, key: bytes, salt: bytes, hard_limit: int = HARD_LIMIT_PACKETS
    ) -> None:
        super().__init__(spi, transform, salt)
        self._encrypt_into = cipher(transform, key).encrypt_into
        self._hard_limit = hard_limit

    def seal_into(self, packet: memoryview | bytes, next_header: int, out: memoryview) -> int:
        """
        Write the ESP packet that carries `packet` to the start of `out` and return its length.

        `out` has room for at least `sealed_size(len(packet))` bytes. The counter advances first and stays
        advanced whatever happens then, so that no IV is ever used twice. Raises `SAExhausted` at the hard
        limit.
        """
        sequence = self.packets + 1
        if sequence > self._hard_limit:
            raise SAExhausted(f"SA {self.spi:#010x} has sealed {self.packets} packets")
        self.packets = sequence
        length = len(packet)
        trailer = TRAILERS[next_header][length & 3]
        padded = HEADER.size + length
        end = padded + len(trailer)
        HEADER.pack_into(out, 0, self.spi, sequence, sequence)
        out[HEADER.size : padded] = packet
        out[padded:end] = trailer
        self._encrypt_into(
            self._salt + _IV.pack(sequence),
            out[HEADER.size : end],
            out[:AAD_SIZE],
            out[HEADER.size : end + ICV_SIZE],
        )
        self.bytes += length
        return end + ICV_SIZE

    def seal(self, packet: memoryview | bytes, next_header: int) -> bytes:
        """Return the ESP packet that carries `packet`; for the few that do not go through a batch."""
        out = bytearray(sealed_size(len(packet)))
        self.seal_into(packet, next_header, memoryview(out))
        return bytes(out)


class InboundSA(_SA):
    """
    Opens ESP packets under one key.

    `window.highest` is the highest sequence number opened so far.
    """

    __slots__ = ("_decrypt_into", "window")

    def __init__(self, spi: int, transform: TransformID, key: bytes, salt: bytes) -> None:
        super().__init__(spi, transform, salt)
        self._decrypt_into = cipher(transform, key).decrypt_into
        self.window = ReplayWindow()

    def open_into(self, datagram: memoryview, out: memoryview) -> tuple[int, int]:
        """
        Write the inner packet to the start of `out`; return its length and the next header.

        `out` has room for at least `len(datagram) - OVERHEAD` bytes, of which those behind the inner packet
        are scratch. The next header is whatever the peer wrote. Raises `RemoteError` with SHORT_DATAGRAM,
        REPLAYED, BAD_ICV (nothing of the forgery is left in `out`) or MALFORMED_ESP.
        """
        size = len(datagram) - OVERHEAD
        if len(datagram) < SHORTEST:
            raise RemoteError(DropReason.SHORT_DATAGRAM, f"ESP in {len(datagram)} bytes")
        sequence, iv = _SEQUENCE_AND_IV.unpack_from(datagram)
        self.window.check(sequence)
        try:
            self._decrypt_into(self._salt + iv, datagram[HEADER.size :], datagram[:AAD_SIZE], out[:size])
        except InvalidTag:
            # The cipher decrypts before it knows that the ICV is wrong.
            out[:size] = bytes(size)
            raise RemoteError(DropReason.BAD_ICV, f"SPI {self.spi:#010x}, sequence {sequence}") from None
        self.window.commit(sequence)
        length, next_header = read_trailer(out, size)
        self.packets += 1
        self.bytes += length
        return length, next_header
