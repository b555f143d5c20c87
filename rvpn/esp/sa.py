"""
Security associations: one direction of one session's ESP, with its key, counters and replay window (RFC
4303).

Outbound, for a run of packets: count them all, write the headers into their slots of the datagram batch, then
encrypt behind each. Inbound: check the replay window, open, commit to the window, read the trailer (or leave
that to who said where to put it).

The IV is a 64-bit counter, as RFC 4106 section 3.1 and RFC 7634 section 2 suggest; it equals the sequence
number.
"""

from collections.abc import Iterable, Sequence
from struct import Struct

from cryptography.exceptions import InvalidTag

from rvpn.constants import HARD_LIMIT_PACKETS, TransformID
from rvpn.errors import DropReason, RemoteError, SAExhausted
from rvpn.esp.codec import AAD_SIZE, HEADER, OVERHEAD, TRAILERS, Slots, length_of
from rvpn.esp.replay import ReplayWindow
from rvpn.esp.transforms import SALT_SIZE, cipher

_NONCE = Struct(f"!{SALT_SIZE}sQ")
#: Sequence numbers begin at 0, which is never sent, and end before this (RFC 4303 section 2.2).
SEQUENCES = 1 << 32
#: SPI and sequence number in one, IV.
_HEAD = Struct("!Q8s")


class _SA:
    """What both directions have: an SPI, a transform, a salt."""

    __slots__ = ("_salt", "spi", "transform")

    def __init__(self, spi: int, transform: TransformID, salt: bytes) -> None:
        if len(salt) != SALT_SIZE:
            raise ValueError(f"{transform.name} takes a salt of {SALT_SIZE} bytes, not {len(salt)}")
        self.spi = spi
        self.transform = transform
        self._salt = salt

    def __repr__(self) -> str:
        """Show what may be seen: neither key nor salt."""
        return f"{type(self).__name__}(spi={self.spi:#010x}, {self.transform.name})"


class OutboundSA(_SA):
    """
    Seals inner packets under one key.

    `packets` is the sequence number last used, of dummy packets and failed attempts too; it never goes back.
    `key` and `salt` have KEY_SIZE and SALT_SIZE bytes. `hard_limit` is the last sequence number it may use.
    """

    __slots__ = ("_encrypt_into", "_hard_limit", "packets")

    def __init__(
        self, spi: int, transform: TransformID, key: bytes, salt: bytes, hard_limit: int = HARD_LIMIT_PACKETS
    ) -> None:
        super().__init__(spi, transform, salt)
        self._encrypt_into = cipher(transform, key).encrypt_into
        self._hard_limit = hard_limit
        self.packets = 0

    def spend(self, count: int) -> range:
        """
        Return the next `count` sequence numbers, which nobody gets again: no IV is ever used twice.

        Raises `SAExhausted` if they would pass the hard limit.
        """
        sequence = self.packets
        if sequence + count > self._hard_limit:
            raise self._exhausted()
        self.packets += count
        return range(sequence + 1, sequence + count + 1)

    def seal_run(
        self, numbers: Iterable[int], plaintexts: Iterable[bytes], buffer: bytearray, slots: Slots
    ) -> None:
        """
        Write an ESP packet for each of `plaintexts`, inner packets with their trailers, into its slot.

        `numbers` are of those that `spend` returned, each given once.
        """
        spi, salt, write_header, nonce = self.spi, self._salt, HEADER.pack_into, _NONCE.pack
        starts, additional, sealed = slots
        nonces = []
        for sequence, start in zip(numbers, starts, strict=False):
            write_header(buffer, start, spi, sequence, sequence)
            nonces.append(nonce(salt, sequence))
        for _ in map(self._encrypt_into, nonces, plaintexts, additional, sealed):
            pass

    def seal_one(self, plaintext: bytes, slot: memoryview) -> None:
        """As `spend` and `seal_run`, for a packet alone."""
        sequence = self.packets + 1
        if sequence > self._hard_limit:
            raise self._exhausted()
        self.packets = sequence
        HEADER.pack_into(slot, 0, self.spi, sequence, sequence)
        nonce = _NONCE.pack(self._salt, sequence)
        self._encrypt_into(nonce, plaintext, slot[:AAD_SIZE], slot[HEADER.size :])

    def _exhausted(self) -> SAExhausted:
        return SAExhausted(f"SA {self.spi:#010x} has sealed {self.packets} packets")

    def seal(self, packet: bytes, next_header: int) -> bytes:
        """Return the ESP packet that carries `packet`; for the few that do not go through a batch."""
        plaintext = packet + TRAILERS[next_header][len(packet) & 3]
        out = bytearray(len(plaintext) + OVERHEAD)
        self.seal_one(plaintext, memoryview(out))
        return bytes(out)


class InboundSA(_SA):
    """
    Opens ESP packets under one key.

    `window.highest` is the highest sequence number opened so far.
    """

    __slots__ = ("_decrypt", "_decrypt_into", "window")

    def __init__(self, spi: int, transform: TransformID, key: bytes, salt: bytes) -> None:
        super().__init__(spi, transform, salt)
        opening = cipher(transform, key)
        self._decrypt, self._decrypt_into = opening.decrypt, opening.decrypt_into
        self.window = ReplayWindow()

    def open(self, sequence: int, iv: bytes, additional: memoryview, sealed: memoryview) -> tuple[bytes, int]:
        """
        Return the inner packet with its trailer, and the packet's length; the last byte is the next header.

        That is whatever the peer wrote. Raises `RemoteError` with REPLAYED, BAD_ICV or MALFORMED_ESP.
        """
        window = self.window
        if sequence <= window.highest:
            window.check(sequence)
        try:
            plaintext = self._decrypt(self._salt + iv, sealed, additional)
        except InvalidTag:
            raise self._refused(sequence) from None
        window.commit(sequence)
        return plaintext, length_of(plaintext)

    def open_row(self, sequence: int, buffer: bytearray, slots: Slots, places: Sequence[memoryview]) -> int:
        """
        Open packets with the numbers from `sequence` on, each into its place; return how many.

        Slots and places fit together. Stops before the first packet that has another number, was seen or does
        not open: that is as if untouched, but nobody may see what its place then holds.
        Raises `RemoteError` BAD_ICV if the first is the one that does not open.
        """
        window, salt, read = self.window, self._salt, _HEAD.unpack_from
        most = min(len(places), SEQUENCES - sequence)
        expected = range(self.spi << 32 | sequence, self.spi << 32 | sequence + most)
        nonces = []
        for start, head in zip(slots.starts, expected, strict=False):
            found, iv = read(buffer, start)
            if found != head:
                break
            nonces.append(salt + iv)
        # The window is asked only now, for these alone: in a run of forgeries each may claim to begin a row.
        del nonces[window.unseen(sequence, len(nonces)) :]
        opened = 0
        try:
            for _ in map(self._decrypt_into, nonces, slots.sealed, slots.additional, places):
                opened += 1
        except InvalidTag:
            if not opened:
                raise self._refused(sequence) from None
        window.commit_row(sequence, opened)
        return opened

    def _refused(self, sequence: int) -> RemoteError:
        return RemoteError(DropReason.BAD_ICV, f"SPI {self.spi:#010x}, sequence {sequence}")
