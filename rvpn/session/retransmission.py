"""
Retransmission in session control: claim, close and status go again until they are acknowledged (DESIGN 6).

    send -> a control packet, and every CONTROL_INTERVAL another, of the next sequence
        -> an acknowledgement of any of them: no more of it
        -> none of CONTROL_REPEATS acknowledged: `unacknowledged` is called

A session sends one message of each kind at a time: a new one supersedes the one before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import CONTROL_INTERVAL, CONTROL_REPEATS
from rvpn.interfaces import Action, Path, Send
from rvpn.session.session_control import Kind, Status
from rvpn.session.sessions import SAPair, Session

#: Hears at a time that the peer of a session acknowledged no packet of a message of this kind.
Unacknowledged = Callable[[Session, Kind, float], list[Action]]


@dataclass(slots=True)
class _Message:
    """What goes under the keys of `pair`, and the sequences under which it went so far."""

    pair: SAPair
    path: Path
    kind: Kind
    status: Status
    generation: int
    sent_at: float
    sequences: set[int] = field(default_factory=set)
    timer: Appointment | None = None


class Retransmission:
    """See the module. Its length is the number of messages that are not acknowledged yet."""

    def __init__(self, unacknowledged: Unacknowledged, agenda: Agenda) -> None:
        self._unacknowledged = unacknowledged
        self._agenda = agenda
        self._outstanding: dict[tuple[Session, Kind], _Message] = {}

    def __len__(self) -> int:
        return len(self._outstanding)

    def send(
        self, session: Session, kind: Kind, now: float, status: Status = Status.OK, generation: int = 0
    ) -> list[Action]:
        """Send claim, close or status, again until acknowledged, CONTROL_REPEATS times in all."""
        pair = session.sending
        if pair is None:
            return []
        self._drop(session, kind)
        message = _Message(pair, session.path, kind, status, generation, now)
        self._outstanding[session, kind] = message
        return self._transmit(message, session, now)

    def acknowledged(self, pair: SAPair, sequence: int, now: float) -> float | None:
        """
        Hear that the peer has what went under `pair` with `sequence`.

        Returns the seconds since, if nothing else can have drawn the acknowledgement.
        """
        assert pair.session is not None
        for kind in (Kind.CLAIM, Kind.CLOSE, Kind.STATUS):
            message = self._outstanding.get((pair.session, kind))
            if message is not None and message.pair is pair and sequence in message.sequences:
                self._drop(pair.session, kind)
                return now - message.sent_at if len(message.sequences) == 1 else None
        return None

    def outstanding(self, kind: Kind) -> bool:
        """Tell whether a message of this kind waits for its acknowledgement."""
        return any(waiting is kind for _, waiting in self._outstanding)

    def _drop(self, session: Session, kind: Kind) -> None:
        """Send no more of a message that is acknowledged or superseded."""
        message = self._outstanding.pop((session, kind), None)
        if message is not None and message.timer is not None:
            message.timer.cancel()

    def _transmit(self, message: _Message, session: Session, now: float) -> list[Action]:
        if len(message.sequences) >= CONTROL_REPEATS:
            del self._outstanding[session, message.kind]
            return self._unacknowledged(session, message.kind, now)
        message.timer = self._agenda.at(
            now + CONTROL_INTERVAL, lambda later: self._transmit(message, session, later)
        )
        control = message.pair.control
        datagram = control.send(message.kind, message.status, generation=message.generation)
        message.sequences.add(control.sequence)
        return [Send(datagram, message.path)]
