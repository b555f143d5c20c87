"""
The process that captures one interface: a packet socket's ring -> `Classifier` -> counts, and a pcap file.

It says "ready" once the kernel stores every frame for it. On SIGTERM it takes what is still in the ring,
writes {"counts": {kind: {"packets", "bytes"}}, "missed": frames that found the ring full} to its result file,
and ends.
"""

import json
import mmap
import select
import signal
import socket
from ipaddress import ip_address
from pathlib import Path
from struct import Struct

from rvpn.arguments import Parser
from rvpn.constants import DEFAULT_PORT
from rvpn.lab import wire
from rvpn.lab.classify import Classifier, Kind
from rvpn.lab.pcap import PcapWriter

# <linux/if_packet.h>, <linux/if_ether.h>
_SOL_PACKET, _ETH_P_ALL = 263, 3
_ADD_MEMBERSHIP, _RX_RING, _STATISTICS, _VERSION = 1, 5, 6, 10
_TPACKET_V2, _PROMISCUOUS, _USER = 1, 1, 1
#: Status, length, stored length, offset of the frame, offset of its network header, seconds, nanoseconds.
_HEADER = Struct("=IIIHHII")
_STATUS = Struct("=I")
_FRAME_SIZE, _BLOCK_SIZE, _BLOCKS = 2048, 1 << 18, 64
_LOOK_AROUND = 0.05  # seconds until SIGTERM is noticed


class Ring:
    """Frames of one interface, in memory shared with the kernel, so that a busy machine loses none."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _VERSION, _STATUS.pack(_TPACKET_V2))
        frames = _BLOCK_SIZE // _FRAME_SIZE * _BLOCKS
        ring = Struct("=IIII").pack(_BLOCK_SIZE, _BLOCKS, _FRAME_SIZE, frames)
        self._socket.setsockopt(_SOL_PACKET, _RX_RING, ring)
        self._memory = mmap.mmap(self._socket.fileno(), _BLOCK_SIZE * _BLOCKS)
        self._view = memoryview(self._memory)
        self._size, self._next = len(self._memory), 0
        index = socket.if_nametoindex(interface)
        self._socket.bind((interface, _ETH_P_ALL))
        # A bridge shows what passes from port to port only to who listens to everything.
        membership = Struct("=iHH8x").pack(index, _PROMISCUOUS, 0)
        self._socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)

    def wait(self, seconds: float) -> None:
        """Return when there is a frame, or after some time."""
        select.select([self._socket], [], [], seconds)

    def take(self) -> tuple[int, int, memoryview, int] | None:
        """
        Return the next frame: seconds, nanoseconds, what was stored, full length. `give_back` must follow.
        """
        status, length, stored, start, _, seconds, nanoseconds = _HEADER.unpack_from(self._memory, self._next)
        if not status & _USER:
            return None
        at = self._next + start
        return seconds, nanoseconds, self._view[at : at + stored], length

    def give_back(self) -> None:
        """Let the kernel use the place of the last frame again."""
        _STATUS.pack_into(self._memory, self._next, 0)
        self._next = (self._next + _FRAME_SIZE) % self._size

    def missed(self) -> int:
        """Return how many frames found no place since this was last asked."""
        _, dropped = Struct("=II").unpack(self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        return int(dropped)


def sniff(ring: Ring, classifier: Classifier, writer: PcapWriter) -> dict[str, object]:
    """Capture until SIGTERM; return the counts."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    counts = {kind: [0, 0] for kind in Kind}
    wire.say_ready()
    while True:
        last = bool(stop)
        while (frame := ring.take()) is not None:
            seconds, nanoseconds, data, length = frame
            writer.write(seconds, nanoseconds, data, length)
            count = counts[classifier.classify(data)]
            count[0] += 1
            count[1] += length
            ring.give_back()
        if last:
            break
        ring.wait(_LOOK_AROUND)
    by_name = {kind.value: {"packets": packets, "bytes": size} for kind, (packets, size) in counts.items()}
    return {"counts": by_name, "missed": ring.missed()}


def main() -> None:
    """Capture one interface of this namespace."""
    parser = Parser(prog="python -m rvpn.lab.sniffer")
    parser.add_argument("interface", metavar="INTERFACE")
    parser.add_argument("result", type=Path, metavar="RESULT", help="file for the counts")
    parser.add_argument("pcap", type=Path, metavar="PCAP", help="capture file")
    parser.add_argument(
        "inner", type=ip_address, nargs="+", metavar="ADDRESS", help="the client's inner addresses"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="N", help="the tunnel's UDP port")
    chosen = parser.parse_args()
    ring = Ring(chosen.interface)
    with chosen.pcap.open("wb") as file:
        result = sniff(ring, Classifier(chosen.inner, chosen.port), PcapWriter(file, _FRAME_SIZE))
    chosen.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
