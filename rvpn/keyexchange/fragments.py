"""Tokens in pieces: `Outgoing` repeats them until all arrived, `Incoming` puts them together (DESIGN 4)."""

import math

from rvpn.constants import RETRANSMIT_CONSTANT, RETRANSMIT_INTERVAL
from rvpn.keyexchange.tokens import Fragment


class Outgoing:
    """
    The datagrams of one token, sent again until they are acknowledged.

    After `RETRANSMIT_CONSTANT` repetitions at a constant interval the wait doubles each time. It has no end
    of its own: the exchange has one.
    """

    def __init__(self, datagrams: list[bytes]) -> None:
        self.datagrams = datagrams
        self._missing = set(range(len(datagrams)))
        self._times_sent = 0
        self._due = math.inf

    @property
    def due(self) -> float:
        """When `send` is to be called next: never once everything is acknowledged."""
        return self._due if self._missing else math.inf

    @property
    def arrived(self) -> bool:
        """Whether every fragment is acknowledged."""
        return not self._missing

    def send(self, now: float) -> list[bytes]:
        """Return what has to go (again) now."""
        doublings = max(0, self._times_sent - RETRANSMIT_CONSTANT + 1)
        self._due = now + RETRANSMIT_INTERVAL * 2**doublings
        self._times_sent += 1
        return [self.datagrams[index] for index in sorted(self._missing)]

    def acknowledge(self, bitmap: int) -> None:
        """Send the fragments whose bits are set no more."""
        self._missing -= {index for index in self._missing if bitmap >> index & 1}


class Incoming:
    """
    One token on its way in; a fragment that is there already stays as it is.

    A fragment that disagrees about their number begins the token anew, so that a forged one cannot keep out
    those that follow it. The size is bounded by the number of fragments and their length, which
    `tokens.decode` checks.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}
        self._count = 0

    @property
    def bitmap(self) -> int:
        """Which fragments have arrived."""
        return sum(1 << index for index in self._pieces)

    def add(self, fragment: Fragment) -> bytes | None:
        """Take a fragment; return the token if it is whole now, and be ready for the next one."""
        if fragment.count != self._count:
            self._pieces, self._count = {}, fragment.count
        self._pieces.setdefault(fragment.index, fragment.data)
        if len(self._pieces) < self._count:
            return None
        token = b"".join(self._pieces[index] for index in range(self._count))
        self._pieces, self._count = {}, 0
        return token
