"""
Literal heartbeats, HeartbeatAuthentication = none: the patent's packet, which nobody seals (DESIGN 6).

    `new` -> SPI 0xFFFFFFFF and 16 random bytes -> the gateway answers with an equal packet (R10)
        -> `answered`: it is outstanding, and comes from where it went

A client remembers a few for each of its sessions; the oldest is forgotten for the next one.
"""

from rvpn.constants import CONTROL_SPI, OUTSTANDING_HEARTBEATS
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import Path, RandomSource
from rvpn.session.sessions import Session

#: Bytes of a literal heartbeat.
LITERAL_SIZE = 20
_SPI = CONTROL_SPI.to_bytes(4)


class LiteralHeartbeats:
    """The heartbeats of a client that were not answered yet."""

    def __init__(self, random: RandomSource) -> None:
        self._random = random
        self._sequence = 0
        self._outstanding: dict[bytes, tuple[Session, int]] = {}

    def __contains__(self, datagram: bytes) -> bool:
        return datagram in self._outstanding

    def __len__(self) -> int:
        return len(self._outstanding)

    def new(self, session: Session, sessions: int) -> tuple[bytes, int]:
        """Return the next heartbeat of `session`, one of so many `sessions`, and its sequence number."""
        self._sequence += 1
        datagram = _SPI + self._random.randbytes(LITERAL_SIZE - len(_SPI))
        self._outstanding[datagram] = session, self._sequence
        if len(self._outstanding) > OUTSTANDING_HEARTBEATS * max(1, sessions):
            del self._outstanding[next(iter(self._outstanding))]
        return datagram, self._sequence

    def answered(self, datagram: bytes, path: Path) -> tuple[Session, int]:
        """
        Take the echo of an outstanding heartbeat; return its session and sequence number.

        Raises `RemoteError` if it does not come from the gateway's address.
        """
        session, sequence = self._outstanding[datagram]
        if path.remote != session.path.remote:
            raise RemoteError(DropReason.UNEXPECTED_CONTROL)
        del self._outstanding[datagram]
        return session, sequence
