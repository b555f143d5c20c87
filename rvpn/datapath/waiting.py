"""Inner packets that wait for a session (R2, R12), no more of them and no more bytes than was set."""

from collections import deque


class WaitingPackets:
    """At most `most` packets of at most `octets` bytes together, the oldest dropped first."""

    def __init__(self, most: int, octets: int) -> None:
        self._most = most
        self._octets = octets
        self._packets: deque[bytes] = deque()
        self._held = 0

    def __len__(self) -> int:
        return len(self._packets)

    def add(self, packet: bytes) -> int:
        """Let `packet` wait; return how many were dropped for it."""
        packets, dropped = self._packets, 0
        packets.append(packet)
        self._held += len(packet)
        while len(packets) > self._most or self._held > self._octets:
            self._held -= len(packets.popleft())
            dropped += 1
        return dropped

    def take(self) -> list[bytes]:
        """Return what waits, oldest first, and forget it."""
        packets = list(self._packets)
        self._packets.clear()
        self._held = 0
        return packets
