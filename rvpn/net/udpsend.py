"""
How one UDP socket sends: runs of datagrams in one call, single ones, and what waits for room.

A run goes to the kernel whole, with UDP_SEGMENT; if it cannot be cut on this way out, its datagrams go one
after another, by the same call. A socket is full when its buffer is (EAGAIN) or the queue of the network card
(ENOBUFS, which comes because of IP_RECVERR; the datagrams were dropped then, so they can be sent again). The
rest of a run stays where it is. Single datagrams wait in a short queue and go first.
"""

import errno
import socket
from collections import Counter, deque
from collections.abc import Callable

from rvpn.interfaces import Path, Run
from rvpn.memo import Memo
from rvpn.net.offloads import name_of
from rvpn.net.udpsocket import Ancillary, from_address, segmented

#: Paths whose form for the kernel is kept: half a MiB. Forged sources cost time, not memory.
REMEMBERED_PATHS = 512
#: Sizes of datagrams of one path whose ancillary data is kept.
REMEMBERED_SIZES = 32
#: Single datagrams that wait for room.
WAITING_DATAGRAMS = 64
#: How often in a row a full card's queue is tried again: another path may be free, and this one never be.
RETRIES = 100

#: Why a run may have to go one by one: a datagram is longer than the path carries in one piece, which one by
#: one the kernel fragments (before Linux 6.9 this is EINVAL); or the way out cannot cut at all, having no
#: checksum offload (EIO, before Linux 6.11), which holds for all runs of the path.
_TOO_LONG, _NOT_HERE = {errno.EMSGSIZE, errno.EINVAL}, {errno.EIO}


class _Target:
    """What `sendmsg` wants to know of a path, and whether runs can be cut on it."""

    __slots__ = ("ancillary", "remote", "segmentable", "segmented")

    def __init__(self, path: Path) -> None:
        self.remote = str(path.remote.address), path.remote.port
        ancillary = self.ancillary = from_address(path.local)
        self.segmented: Memo[int, Ancillary] = Memo(lambda size: segmented(ancillary, size), REMEMBERED_SIZES)
        self.segmentable = True


class UDPSender:
    """
    The sending half of a socket. `filled` is called with EAGAIN or ENOBUFS when it has become full; then
    nothing is tried before `resume`.

    `failure` is the errno of the last datagram that the kernel refused. `refusals` counts how often it was
    full, the runs that could not be cut and the datagrams that were refused, these with the errno's name.
    """

    def __init__(self, opened: socket.socket, segmenting: bool, filled: Callable[[int], None]) -> None:
        self.full = False
        self.failure = 0
        self.refusals: Counter[str] = Counter()
        self._socket = opened
        self._segmenting = segmenting
        self._filled = filled
        self._retries = 0
        self._waiting: deque[tuple[bytes | memoryview, Path]] = deque()
        self._targets = Memo(_Target, REMEMBERED_PATHS)
        # Most often one path follows itself, and addresses are slow to hash.
        self._path: Path | None = None
        self._target: _Target

    def send_run(self, view: memoryview, run: Run) -> int:
        """
        Send what there is room for of `run`, whose `start` moves behind it; return how many were refused.
        """
        if self.full:
            return 0
        target = self._target if run.path is self._path else self._target_of(run.path)
        size = run.size
        if run.end - run.start > size and self._segmenting and target.segmentable:
            failure = self._submit(view[run.start : run.end], target.segmented[size], target.remote)
            if failure in _TOO_LONG or failure in _NOT_HERE:
                self.refusals[f"run {name_of(failure)}"] += 1
                target.segmentable = failure not in _NOT_HERE
            else:
                return self._settle(failure, run, run.end)
        refused = 0
        while run.start < run.end and not self.full:
            end = min(run.start + size, run.end)
            failure = self._submit(view[run.start : end], target.ancillary, target.remote)
            refused += self._settle(failure, run, end)
        return refused

    def send(self, datagram: bytes | memoryview, path: Path) -> bool:
        """Send one datagram, or keep it for when there is room; False if it was refused. Never raises."""
        if not self.full:
            target = self._target_of(path)
            failure = self._submit(datagram, target.ancillary, target.remote)
            if not self._stops(failure):
                self._count(failure, 1)
                return not failure
        if len(self._waiting) >= WAITING_DATAGRAMS:
            self._count(errno.ENOBUFS, 1)
            return False
        self._waiting.append((bytes(datagram), path))
        return True

    def resume(self) -> bool:
        """Try again, what waits first; whether there still is room after it."""
        self.full = False
        while self._waiting:
            datagram, path = self._waiting[0]
            target = self._target_of(path)
            failure = self._submit(datagram, target.ancillary, target.remote)
            if self._stops(failure):
                return False
            self._waiting.popleft()
            self._count(failure, 1)
        return True

    def _target_of(self, path: Path) -> _Target:
        self._path, self._target = path, self._targets[path]
        return self._target

    def _submit(self, data: bytes | memoryview, ancillary: Ancillary, remote: tuple[str, int]) -> int:
        """Return the errno of the kernel's refusal, 0 for none."""
        failure = 0
        # The error of an earlier datagram makes the next send fail, once, whoever that one is for.
        for _ in range(2):
            try:
                self._socket.sendmsg((data,), ancillary, 0, remote)
            except OSError as error:
                failure = error.errno or errno.EIO
            else:
                self._retries = 0
                return 0
        return failure

    def _stops(self, failure: int) -> bool:
        """Take note if it has become full."""
        if failure == errno.ENOBUFS:
            self._retries += 1
        if failure != errno.EAGAIN and not (failure == errno.ENOBUFS and self._retries <= RETRIES):
            return False
        self.full = True
        self.refusals["socket full"] += 1
        self._filled(failure)
        return True

    def _settle(self, failure: int, run: Run, end: int) -> int:
        """Move on behind what was sent or refused, up to `end`; return how many datagrams were refused."""
        if not failure:
            run.start = end
            return 0
        if self._stops(failure):
            return 0
        before, run.start = number_of(run), end
        return self._count(failure, before - number_of(run))

    def _count(self, failure: int, datagrams: int) -> int:
        if not failure:
            return 0
        self.failure = failure
        self.refusals[f"datagram {name_of(failure)}"] += datagrams
        return datagrams


def number_of(run: Run) -> int:
    """Return how many datagrams are in a run."""
    return -((run.start - run.end) // run.size)
