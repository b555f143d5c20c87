"""
The layout of an ESP packet (RFC 4303 section 2) with an AEAD of 8-byte IVs (RFC 4106, RFC 7634).

    offset  bytes
    0       4      SPI                                    } additional authenticated data
    4       4      sequence number                        }
    8       8      IV
    16      n      inner packet                           }
    16+n    0..3   padding 1, 2, 3                        } encrypted, a multiple of 4 bytes
            1      padding length                         }
            1      next header                            }
            16     ICV

The SPI and sequence number are those of RFC 4303 without extended sequence numbers. Nothing here holds a key:
the trailer is behind the inner packet before `sa` encrypts it, and is read after `sa` has opened it.
"""

from struct import Struct
from typing import NamedTuple

from rvpn.constants import IP_HEADER, TRAIN_FIELDS, UDP_HEADER, NextHeader
from rvpn.errors import DropReason, RemoteError

#: SPI, sequence number, IV.
HEADER = Struct("!IIQ")
#: Bytes of the header that are authenticated as additional data: SPI and sequence number.
AAD_SIZE = 8
ICV_SIZE = 16
#: What an ESP packet has beside its encrypted part.
OVERHEAD = HEADER.size + ICV_SIZE
#: Padding length and next header.
TRAILER_SIZE = 2
#: Encrypted parts are multiples of this (RFC 4303 section 2.4).
ALIGNMENT = 4
#: The shortest ESP packet: an encrypted part of one aligned word.
SHORTEST = OVERHEAD + ALIGNMENT
#: Runs of slots that are kept; what a peer sends decides how many there might be.
KEPT_RUNS = 128
#: The longest padding there can be: 1, 2, 3, ... (RFC 4303 section 2.4).
PADDING = bytes(range(1, 256))

#: What follows an inner packet of length n: `TRAILERS[next_header][n % ALIGNMENT]`.
TRAILERS: dict[int, tuple[bytes, ...]] = {
    next_header: tuple(
        PADDING[:padding] + bytes((padding, next_header))
        for padding in ((-remainder - TRAILER_SIZE) % ALIGNMENT for remainder in range(ALIGNMENT))
    )
    for next_header in NextHeader
}


#: What `Slots` are, without the names.
Columns = tuple[list[int], list[memoryview], list[memoryview]]


class Slots(NamedTuple):
    """
    The bytes of ESP packets in a batch's buffer: where each starts, those authenticated as additional data,
    and all behind the header.

    In columns, so that one step after the other is done for all packets: the same code again and again takes
    three quarters of the time of a loop that does everything for each.
    """

    starts: list[int]
    additional: list[memoryview]
    sealed: list[memoryview]

    def add(self, view: memoryview, start: int, end: int) -> "Slots":
        """Add the packet in `view[start:end]`; return these slots."""
        self.starts.append(start)
        self.additional.append(view[start : start + AAD_SIZE])
        self.sealed.append(view[start + HEADER.size : end])
        return self


class KeptSlots:
    """
    The slots of a batch, kept for when its buffer is used in the same way again: making those of one packet
    takes a quarter of the time for sealing it.
    """

    def __init__(self) -> None:
        self._view = memoryview(b"")
        self._kept: dict[tuple[int, int], Slots] = {}

    def of(self, view: memoryview, start: int, size: int, begin: int, end: int) -> Slots:
        """Return those from `begin` up to `end` of the ESP packets of `size` bytes from `start` on."""
        if view is not self._view or len(self._kept) >= KEPT_RUNS:
            self._view = view
            self._kept.clear()
        kept = self._kept.get((start, size))
        if kept is None:
            kept = self._kept[start, size] = Slots([], [], [])
        starts, additional, sealed = kept
        if end > len(starts):
            for offset in range(start + len(starts) * size, start + end * size, size):
                kept.add(view, offset, offset + size)
        return Slots(starts[begin:end], additional[begin:end], sealed[begin:end])


def length_of(plaintext: bytes) -> int:
    """
    Return the length of the inner packet in an opened `plaintext` of at least ALIGNMENT bytes.

    Padding may be longer than ours, as RFC 4303 allows. Raises `RemoteError` MALFORMED_ESP where it has
    another content than section 2.4 demands, or is longer than what holds it.
    """
    padding = plaintext[-TRAILER_SIZE]
    length = len(plaintext) - TRAILER_SIZE - padding
    if length < 0 or (padding and plaintext[length:-TRAILER_SIZE] != PADDING[:padding]):
        raise RemoteError(DropReason.MALFORMED_ESP, f"padding of {padding} bytes in {len(plaintext)}")
    return length


def sealed_size(inner_length: int) -> int:
    """Return the size in bytes of the ESP packet that carries `inner_length` bytes."""
    padding = (-inner_length - TRAILER_SIZE) % ALIGNMENT
    return OVERHEAD + inner_length + padding + TRAILER_SIZE


def inner_mtu(path_mtu: int, outer_version: int) -> int:
    """
    Return the longest inner packet whose ESP in UDP over IPv4 or IPv6 fits into `path_mtu` bytes.

    That is so in a train too, which takes TRAIN_FIELDS more. Neither IP options nor extension headers are
    counted, since we send none. MIN_TUNNEL_MTU is not applied here.
    """
    encrypted = path_mtu - IP_HEADER[outer_version] - UDP_HEADER - OVERHEAD
    return encrypted // ALIGNMENT * ALIGNMENT - TRAILER_SIZE - TRAIN_FIELDS
