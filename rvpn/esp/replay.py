"""
The anti-replay window of RFC 4303 section 3.4.3, kept as RFC 6479 proposes: a ring of blocks that is never
shifted.

A block is one byte of eight sequence numbers. `check` before the packet is authenticated, `commit` after: a
forged packet must not move the window. As long as packets come in order their numbers are no more than an
interval, [solid, highest], of which all were seen; it goes into the blocks when a number is skipped.
"""

from rvpn.constants import REPLAY_WINDOW
from rvpn.errors import DropReason, RemoteError


class ReplayWindow:
    """
    Which of the last `size` sequence numbers have been seen.

    `size` is a multiple of 8. `reason` is what a refusal is counted as. `highest` is the highest sequence
    number committed. Number 0 is never sent (RFC 4303 section 2.2), so it counts as seen.
    """

    __slots__ = ("_blocks", "_count", "_reason", "_solid", "highest", "size")

    def __init__(self, size: int = REPLAY_WINDOW, reason: DropReason = DropReason.REPLAYED) -> None:
        self.size = size
        self.highest = self._solid = 0
        self._reason = reason
        # One block more than the window has, because it seldom ends with the highest number's block.
        self._count = size // 8 + 1
        self._blocks = bytearray(self._count)

    def check(self, sequence: int) -> None:
        """Raise `RemoteError` if the number was seen or is too old to tell."""
        if sequence > self.highest:
            return
        seen = sequence >= self._solid or self._blocks[(sequence >> 3) % self._count] >> (sequence & 7) & 1
        if seen or sequence <= self.highest - self.size:
            raise RemoteError(self._reason, f"sequence {sequence} after {self.highest}")

    def commit(self, sequence: int) -> None:
        """Mark a number that `check` let pass as seen, and move the window up to it if it is the highest."""
        if sequence == self.highest + 1:
            self.highest = sequence
        elif sequence > self.highest:
            self._keep()
            self._clear(self.highest >> 3, sequence >> 3)
            self.highest = self._solid = sequence
        else:
            self._blocks[(sequence >> 3) % self._count] |= 1 << (sequence & 7)

    def unseen(self, first: int, count: int) -> int:
        """Return how many of `count` numbers from `first` on, up to one that was seen, `check` lets pass."""
        for sequence in range(first, min(first + count, self.highest + 1)):
            try:
                self.check(sequence)
            except RemoteError:
                return sequence - first
        return count

    def commit_row(self, first: int, count: int) -> None:
        """Mark `count` numbers from `first` on, as `commit` does."""
        if first == self.highest + 1:
            self.highest += count
        else:
            for sequence in range(first, first + count):
                self.commit(sequence)

    def _keep(self) -> None:
        """Mark [solid, highest] in the blocks, which are cleared as the window moves over them."""
        first = max(self._solid, self.highest - self.size + 1)
        block, last = first >> 3, self.highest >> 3
        self._clear(self._solid >> 3, last)
        self._blocks[block % self._count] |= 0xFF << (first & 7) & 0xFF
        for passed in range(block + 1, last + 1):
            self._blocks[passed % self._count] = 0xFF
        # What lies above the highest number in its block was not seen.
        self._blocks[last % self._count] &= 0xFF >> (7 - (self.highest & 7))

    def _clear(self, newest: int, block: int) -> None:
        # What lies a whole ring ahead has left nothing behind: each block is cleared once at most.
        for passed in range(max(newest, block - self._count) + 1, block + 1):
            self._blocks[passed % self._count] = 0
