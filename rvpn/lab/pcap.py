"""
Writes capture files that Wireshark and scapy read: the classic pcap format with nanoseconds, Ethernet frames.
"""

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
