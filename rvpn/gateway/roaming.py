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

from rvpn.agenda import Act, Agenda, Appointment
from rvpn.constants import EXCHANGE_TIME, ROAMING_PATIENCE, ROAMING_PAUSE
from rvpn.interfaces import Action, Event, Fields, Path, RandomSource, Send
from rvpn.session.session_control import GENERATION_SIZE, Kind
from rvpn.session.sessions import Session, SessionCache


@dataclass(slots=True)
class _Move:
    """
    Challenges under way: their numbers, when they went, whether either address has answered, and the one
    appointment at which the move happens or is given up.
    """

    path: Path
    number: int
    old_number: int
    sent_at: float
    end: Appointment
    accepted: bool = False
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
        end = self._agenda.at(now + EXCHANGE_TIME, lambda _: self._give_up(session))
        self._moves[session] = _Move(path, number, old_number, now, end)
        return [Send(challenge, path), Send(old_challenge, session.path)]

    def response(self, session: Session, number: int, path: Path, now: float) -> list[Action]:
        """
        Hear an answer to a challenge, which repeats its number.

        The old address has the last word, and only first words count.
        """
        move = self._moves.get(session)
        if move is None or move.refused:
            return []
        if number == move.old_number:
            # Whoever brought it here, the challenge has reached the client at the old address.
            move.refused = True
            self._end_at(move, now + ROAMING_PAUSE, lambda _: self._give_up(session))
        elif number == move.number and path.remote == move.path.remote and not move.accepted:
            move.accepted = True
            patience = max(ROAMING_PATIENCE, 2 * (now - move.sent_at))
            self._end_at(move, move.sent_at + patience, lambda _: self._move(session))
        return []

    def _end_at(self, move: _Move, when: float, act: Act) -> None:
        move.end.cancel()
        move.end = self._agenda.at(when, act)

    def _move(self, session: Session) -> list[Action]:
        move = self._moves.pop(session)
        if session.closed:
            return []
        old = session.path.remote
        self._cache.move(session, move.path)
        fields: Fields = {
            "peer": session.name,
            "old": str(old),
            "new": str(move.path.remote),
        }
        return [Event("client {peer} moved from {old} to {new}", fields)]

    def _give_up(self, session: Session) -> list[Action]:
        del self._moves[session]
        return []
