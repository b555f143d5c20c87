"""
Trains on their way to the TUN device: their segments are opened one straight behind another.

    packet of a train -> `start`: its payload is copied, behind room for headers
    those that follow -> opened into `row`, as far as they continue it -> `grow`
    anything else, or the end of the batch -> `close`: what grew gets its headers, and is a packet

So nothing waits for what may be lost: each segment is in the batch that brought it. What was opened but is no
segment that continues, or is a forgery, lies behind what grows: the next segment overwrites it, and it is in
no span.
"""

from rvpn.constants import VNET_HEADER
from rvpn.datapath.trains import Train
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.codec import KEPT_RUNS
from rvpn.interfaces import PacketBatch

#: What grows begins at a multiple of so many bytes if there is room: its places are likely to be known then.
ALIGNMENT = 1 << 12
_NOTHING = -1


class Places:
    """Where the segments of trains are opened in a batch's buffer, kept as `rvpn.esp.codec` keeps slots."""

    def __init__(self) -> None:
        self._view = memoryview(b"")
        self._kept: dict[tuple[int, int, int], list[memoryview]] = {}

    def of(self, view: memoryview, start: int, size: int, behind: int, count: int) -> list[memoryview]:
        """
        Return the places of `count` slices of `size` bytes from `start` on, or of more, each with `behind`
        bytes behind it, which overlap the next.
        """
        if view is not self._view or len(self._kept) >= KEPT_RUNS:
            self._view = view
            self._kept.clear()
        kept = self._kept.setdefault((start, size, behind), [])
        for number in range(len(kept), count):
            begin = start + number * size
            kept.append(view[begin : begin + size + behind])
        return kept


class Joiner:
    """
    Adds super-packets to a batch, one growing at a time; `close` is needed after the last.

    `packets` is the batch. What grows goes on with the packet that has the sequence number `expected`.
    """

    def __init__(self) -> None:
        self.packets = PacketBatch(0)
        self._places = Places()
        self._train: Train | None = None
        self._latest: Train | None = None
        self._begin = self._end = self._start = self._base = self._at = 0
        self.expected = _NOTHING

    def train_of(self, plaintext: bytes, length: int) -> Train:
        """
        Return the train that an opened packet is of: often the one that was asked for last.

        `length` is where its padding begins. Raises `RemoteError` MALFORMED_PACKET.
        """
        if self._latest is None or not plaintext.endswith(self._latest.ending):
            self._latest = Train.read(plaintext, length)
        return self._latest

    def start(self, train: Train, sequence: int, plaintext: bytes, latest: int) -> int:
        """
        Begin with the segment of `train` that came, opened, as `plaintext` under the number `sequence`.

        Where that is written begins at `latest` at most, so that all else has room. Returns the length of
        the inner packet. Raises `RemoteError` MALFORMED_PACKET if the train has no such segment.
        """
        number = sequence - train.first & 0xFF
        payload = train.payload(number)
        ending = train.ending if payload == train.size else train.last_ending
        if not payload or plaintext[payload:] != ending:
            raise RemoteError(DropReason.MALFORMED_PACKET, f"{len(plaintext)} bytes for segment {number}")
        self.close()
        packets, headers = self.packets, train.where.payload
        aligned = -(-packets.length // ALIGNMENT) * ALIGNMENT
        self._start = start = aligned if aligned <= latest else packets.length
        self._base = base = start + VNET_HEADER + headers
        self._at = base + payload
        packets.buffer[base : self._at] = plaintext[:payload]
        self._train, self._begin, self._end = train, number, number + 1
        self.expected = sequence + 1 if number + 1 < train.segments else _NOTHING
        return headers + payload

    def row(self, most: int) -> list[memoryview]:
        """
        Return where the packets from `expected` on are to be opened, `most` at most.

        All have one length, but that of a train's last segment may be shorter.
        """
        train, view = self._train, self.packets.view
        if train is None:
            return []
        count = min(train.segments - self._end, most)
        before, ends = self._end - self._begin, self._end + count == train.segments
        end = before + count - ends
        places = self._places.of(view, self._base, train.size, len(train.ending), end)[before:end]
        if ends:
            at = self._base + end * train.size
            places.append(view[at : at + train.last + len(train.last_ending)])
        return places

    def grow(self, count: int) -> int:
        """Take the first `count` packets of the row for opened; return the length of the inner packets."""
        train = self._train
        if train is None or not count:
            return 0
        self._end += count
        octets = (count - 1) * train.size + train.payload(self._end - 1)
        self._at += octets
        self.expected = self.expected + count if self._end < train.segments else _NOTHING
        return octets + count * train.where.payload

    def close(self) -> None:
        """Add what grew to the batch: nothing continues it any more."""
        train = self._train
        if train is None:
            return
        packets, start = self.packets, self._start
        packets.buffer[start : self._base] = train.headers_of(self._begin, self._end)
        packets.length = start
        packets.add(self._at - start)
        self._train, self.expected = None, _NOTHING
