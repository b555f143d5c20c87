"""
Liveness: which gateways a client asks whether they live, and when (R6, R7, R9, X1, X6).

    a gateway comes into use: `watch` -> its failure detector, on the agenda -> heartbeats
        -> the first unanswered: each standby is asked once, so that the switch goes to one that lives (X1)
        -> the second unanswered: the session fails (R8)
    a gateway that may be better than the one in use: `probe`
    what an idle DEFERRED client must not do yet: `when_active`, with its next payload packet (R9)

Of all sessions only those in use have a detector; a probe of another counts for its one answer.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from rvpn.agenda import Act, Agenda, Appointment
from rvpn.constants import BACKOFF_FIRST, HeartbeatMode
from rvpn.failover.heartbeat import FailureDetector, Timing, Verdict
from rvpn.interfaces import Action
from rvpn.policy.model import Policy
from rvpn.session.sessions import Session


class Asker(Protocol):
    """What liveness needs of the client."""

    def heartbeat(self, session: Session) -> tuple[list[Action], int]:
        """Return a heartbeat to the gateway of `session`, and its sequence number."""

    def fail(self, session: Session, reason: str, now: float) -> list[Action]:
        """End `session` and tell its gateway so (R8)."""


class Liveness:
    """See the module. `standbys` names the sessions to ask when one is under suspicion."""

    def __init__(
        self, asker: Asker, standbys: Callable[[Session], Iterable[Session]], agenda: Agenda
    ) -> None:
        self.timing = Timing(HeartbeatMode.NONE, None, None, 0.0)
        self._asker = asker
        self._standbys = standbys
        self._agenda = agenda
        self._watched: dict[Session, Appointment | None] = {}
        self._probes: dict[Session, tuple[int, float]] = {}
        self._waiting: dict[Hashable, Act] = {}
        self._active_at = float("-inf")

    def read(self, policy: Policy, now: float) -> None:
        """Go on by a policy just read: where its times are others, gateways get new detectors."""
        before, self.timing = (
            self.timing,
            Timing(
                policy.heartbeat,
                policy.heartbeat_response_time,
                policy.heartbeat_defer_time,
                policy.heartbeat_confirm_time,
            ),
        )
        if self.timing == before:
            return
        for session in list(self._watched):
            self.unwatch(session)
            self.watch(session, now)

    # --- gateways in use ----------------------------------------------------------------------------------

    def active(self, now: float) -> None:
        """Hear that there is payload: gateways that come into use are watched closely (X7)."""
        self._active_at = now

    def watch(self, session: Session, now: float) -> None:
        """
        Watch a gateway that has come into use, if it is not watched yet (R6).

        A client that is idle stays so: a change of gateway is no payload (X7).
        """
        if session.detector is not None:
            return
        self._probes.pop(session, None)
        session.detector = FailureDetector(
            self.timing, session, session.round_trip, now, self._active_at, session.shortest_defer
        )
        self.rearm(session)

    def unwatch(self, session: Session) -> None:
        """Ask a gateway no more, and expect no answer: it is in use no longer, or the session ended (R6)."""
        if session.detector is not None:
            self._active_at = max(self._active_at, session.detector.active_at)
        session.detector = None
        session.awaits_payload = False
        self._probes.pop(session, None)
        timer = self._watched.pop(session, None)
        if timer is not None:
            timer.cancel()

    def answered(self, session: Session, sequence: int, now: float) -> bool:
        """Hear an answer to a heartbeat; return whether it was waited for (DESIGN 6)."""
        if session.detector is not None:
            expected = session.detector.answered(sequence, now)
            self.rearm(session)
            return expected
        probe, sent_at = self._probes.get(session, (None, 0.0))
        if probe != sequence:
            return False
        del self._probes[session]
        self.measured(session, now - sent_at)
        return True

    def measured(self, session: Session, seconds: float) -> None:
        """Take a round trip: what waits for an `auto` time may now be due earlier (X7)."""
        session.round_trip.measured(seconds)
        self.rearm(session)

    def hint(self, session: Session, now: float) -> list[Action]:
        """Hear that something may be wrong with a gateway: if it is in use, ask it at once (X6)."""
        if session.detector is None:
            return []
        return self._carry_out(session, session.detector.hint(now), now)

    def probe(self, session: Session, now: float) -> list[Action]:
        """Ask a gateway that is not in use; only its answer to the last probe counts."""
        actions, sequence = self._asker.heartbeat(session)
        self._probes[session] = sequence, now
        return actions

    def unanswered(self, session: Session) -> bool:
        """Tell whether a gateway that is not in use left its last probe unanswered so far."""
        return session in self._probes

    def _look(self, session: Session, now: float) -> list[Action]:
        if session.detector is None:
            return []
        return self._carry_out(session, session.detector.advance(now), now)

    def _carry_out(self, session: Session, verdict: Verdict, now: float) -> list[Action]:
        detector = session.detector
        assert detector is not None
        if verdict is Verdict.FAILED:
            return self._asker.fail(session, "two heartbeats without an answer", now)
        actions: list[Action] = []
        if verdict is Verdict.HEARTBEAT:
            actions, sequence = self._asker.heartbeat(session)
            detector.asked(sequence, now)
            if detector.suspicious:
                actions += [action for other in self._standbys(session) for action in self.probe(other, now)]
        self.rearm(session)
        return actions

    def rearm(self, session: Session) -> None:
        """Set the timer of a watched gateway to its detector's deadline."""
        if session.detector is None:
            return
        session.awaits_payload = session.detector.wants_payload or bool(self._waiting)
        deadline = session.detector.deadline()
        timer = self._watched.get(session)
        if timer is not None:
            if timer.act is not None and timer.when == deadline:
                return
            timer.cancel()
        self._watched[session] = (
            None if deadline is None else self._agenda.at(deadline, lambda now: self._look(session, now))
        )

    # --- an idle DEFERRED client (R9) ---------------------------------------------------------------------

    def payload(self, session: Session, now: float) -> list[Action]:
        """Hear that payload went to a gateway in use; called only where `Session.awaits_payload`."""
        detector = session.detector
        assert detector is not None
        actions: list[Action] = []
        if detector.wants_payload:
            actions = self._carry_out(session, detector.payload(now), now)
        waiting, self._waiting = self._waiting, {}
        self.rearm(session)
        for act in waiting.values():
            actions += act(now)
        return actions

    def when_active(self, key: Hashable, act: Act, now: float) -> list[Action]:
        """
        Do `act`, unless this client is DEFERRED: then with the next payload packet, once for each `key`.
        """
        if self.timing.mode is HeartbeatMode.DEFERRED:
            self.with_payload(key, act)
            return []
        return list(act(now))

    def with_payload(self, key: Hashable, act: Act) -> None:
        """Do `act` with the next payload packet to a gateway in use, once for each `key`."""
        self._waiting[key] = act
        for session in self._watched:
            session.awaits_payload = True

    def later(self, key: Hashable, when: float, act: Act) -> Appointment:
        """Do `act` at `when`, as `when_active` says."""
        return self._agenda.at(when, lambda now: self.when_active(key, act, now))

    def again(self, key: Hashable, act: Act, now: float) -> None:
        """
        Do `act` once more, which came to nothing: soon, or with the next payload packet unless INSTANT, for
        nobody else will notice that a gateway is dead.
        """
        if self.timing.mode is HeartbeatMode.INSTANT:
            self._agenda.at(now + BACKOFF_FIRST, act)
        else:
            self.with_payload(key, act)
