"""
Capture files that Wireshark and scapy read: the classic pcap format with nanoseconds, Ethernet frames.
"""

from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO

#: Magic number for nanoseconds, version 2.4, no time zone, no accuracy, longest frame, link type Ethernet.
_FILE_HEADER = Struct("=IHHiIII")
_MAGIC, _ETHERNET = 0xA1B23C4D, 1
#: Seconds, nanoseconds, bytes stored, bytes on the wire.
_RECORD_HEADER = Struct("=IIII")


class PcapWriter:
    """Appends frames to a file that is open for writing in binary."""

    def __init__(self, file: BinaryIO, longest: int) -> None:
        self._file = file
        file.write(_FILE_HEADER.pack(_MAGIC, 2, 4, 0, 0, longest, _ETHERNET))

    def write(self, seconds: int, nanoseconds: int, frame: bytes | memoryview, length: int) -> None:
        """Append what was stored of a frame of `length` bytes."""
        self._file.write(_RECORD_HEADER.pack(seconds, nanoseconds, len(frame), length))
        self._file.write(frame)


def frames(path: Path) -> Iterator[tuple[float, bytes]]:
    """Yield the time of day and what was stored of each frame of a file that `PcapWriter` has written."""
    with path.open("rb") as file:
        file.seek(_FILE_HEADER.size)
        while header := file.read(_RECORD_HEADER.size):
            seconds, nanoseconds, stored, _ = _RECORD_HEADER.unpack(header)
            yield seconds + nanoseconds / 1e9, file.read(stored)
