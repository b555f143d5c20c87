"""
What is said in session control until it is acknowledged: claim, close and status (DESIGN 6).

    say -> a control packet, and every CONTROL_INTERVAL another, of the next sequence
        -> an acknowledgement of any of them: no more of it
        -> none to CONTROL_REPEATS of them: the node hears that what it said was not heard

A session says one thing of each kind at a time: what is said now supersedes what was said before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import CONTROL_INTERVAL, CONTROL_REPEATS
from rvpn.interfaces import Action, Path, Send
from rvpn.session_control import Kind, Status
from rvpn.sessions import SAPair, Session

#: Hears at a time of what a session said in vain.
Unheard = Callable[[Session, Kind, float], list[Action]]


@dataclass(slots=True)
class _Saying:
    """What is said under the keys of `pair`, and the sequences under which it went."""

    pair: SAPair
    path: Path
    kind: Kind
    status: Status
    generation: int
    sent_at: float
    sequences: set[int] = field(default_factory=set)
    timer: Appointment | None = None


class Sayings:
    """See the module."""

    def __init__(self, unheard: Unheard, agenda: Agenda) -> None:
        self._unheard = unheard
        self._agenda = agenda
        self._under_way: dict[tuple[Session, Kind], _Saying] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def say(
        self, session: Session, kind: Kind, now: float, status: Status = Status.OK, generation: int = 0
    ) -> list[Action]:
        """Send claim, close or status, again until acknowledged, CONTROL_REPEATS times in all."""
        pair = session.sending
        if pair is None:
            return []
        self._hush(session, kind)
        saying = _Saying(pair, session.path, kind, status, generation, now)
        self._under_way[session, kind] = saying
        return self._repeat(saying, session, now)

    def acknowledged(self, pair: SAPair, sequence: int, now: float) -> float | None:
        """
        Hear that the peer has what went under `pair` with `sequence`.

        Returns the seconds since, if nothing else can have drawn the acknowledgement.
        """
        assert pair.session is not None
        for kind in (Kind.CLAIM, Kind.CLOSE, Kind.STATUS):
            saying = self._under_way.get((pair.session, kind))
            if saying is not None and saying.pair is pair and sequence in saying.sequences:
                self._hush(pair.session, kind)
                return now - saying.sent_at if len(saying.sequences) == 1 else None
        return None

    def any(self, kind: Kind) -> bool:
        """Tell whether anything of this kind waits for its acknowledgement."""
        return any(said is kind for _, said in self._under_way)

    def _hush(self, session: Session, kind: Kind) -> None:
        """Repeat no more what is acknowledged, or superseded by what is said now."""
        saying = self._under_way.pop((session, kind), None)
        if saying is not None and saying.timer is not None:
            saying.timer.cancel()

    def _repeat(self, saying: _Saying, session: Session, now: float) -> list[Action]:
        if len(saying.sequences) >= CONTROL_REPEATS:
            del self._under_way[session, saying.kind]
            return self._unheard(session, saying.kind, now)
        saying.timer = self._agenda.at(
            now + CONTROL_INTERVAL, lambda later: self._repeat(saying, session, later)
        )
        control = saying.pair.control
        datagram = control.send(saying.kind, saying.status, generation=saying.generation)
        saying.sequences.add(control.sequence)
        return [Send(datagram, saying.path)]
