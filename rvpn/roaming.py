"""
A client's new address: its session moves there only after a challenge (DESIGN 3).

    the newest packet of a session comes from elsewhere -> challenges go to both addresses
        -> the new one answers and the old one does not in time: the session moves
        -> the old one answers: it stays

So neither a packet that an attacker repeats from its own address, nor one that it delays, draws a session
away from a client that still answers where it was. A challenge holds a random number, so that a client cannot
send what is meant for it to somebody else, who never saw the challenge.
"""

from dataclasses import dataclass

from rvpn.agenda import Agenda
from rvpn.constants import EXCHANGE_TIME, ROAMING_PATIENCE, ROAMING_PAUSE
from rvpn.interfaces import Action, Event, Path, RandomSource, Send
from rvpn.session_control import GENERATION_SIZE, Kind
from rvpn.sessions import Session, SessionCache


@dataclass(slots=True)
class _Move:
    """Challenges under way: their numbers, when they went, and whether the old address has answered."""

    path: Path
    number: int
    old_number: int
    sent_at: float
    refused: bool = False


class Roaming:
    """The moves under way of a gateway's sessions, at most one for each."""

    def __init__(self, cache: SessionCache, agenda: Agenda, random: RandomSource) -> None:
        self._cache = cache
        self._agenda = agenda
        self._random = random
        self._moves: dict[Session, _Move] = {}

    def strayed(self, session: Session, path: Path, now: float) -> list[Action]:
        """Hear that the newest packet of `session` came along `path`: challenge both addresses."""
        pair = session.sending
        if session in self._moves or pair is None:
            return []
        number, old_number = (int.from_bytes(self._random.randbytes(GENERATION_SIZE)) for _ in range(2))
        challenge = pair.control.send(Kind.CHALLENGE, generation=number)
        old_challenge = pair.control.send(Kind.CHALLENGE, generation=old_number)
        move = _Move(path, number, old_number, now)
        self._moves[session] = move
        self._agenda.at(now + EXCHANGE_TIME, lambda _: self._give_up(session, move))
        return [Send(challenge, path), Send(old_challenge, session.path)]

    def response(self, session: Session, number: int, path: Path, now: float) -> list[Action]:
        """Hear an answer to a challenge, which repeats its number."""
        move = self._moves.get(session)
        if move is None:
            return []
        if number == move.old_number:
            # Whoever brought it here, the challenge has reached the client at the old address.
            move.refused = True
            self._agenda.at(now + ROAMING_PAUSE, lambda _: self._give_up(session, move))
        elif number == move.number and path.remote == move.path.remote:
            patience = max(ROAMING_PATIENCE, 2 * (now - move.sent_at))
            self._agenda.at(move.sent_at + patience, lambda _: self._move(session, move))
        return []

    def _move(self, session: Session, move: _Move) -> list[Action]:
        if self._moves.get(session) is not move or move.refused:
            return []
        del self._moves[session]
        if session.closed:
            return []
        old = session.path.remote
        self._cache.move(session, move.path)
        fields: dict[str, str | int | float | bool] = {
            "peer": session.name,
            "old": str(old),
            "new": str(move.path.remote),
        }
        return [Event("client {peer} moved from {old} to {new}", fields)]

    def _give_up(self, session: Session, move: _Move) -> list[Action]:
        if self._moves.get(session) is move:
            del self._moves[session]
        return []
