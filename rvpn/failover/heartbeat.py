"""
The failure detector: when a heartbeat is due, and when a gateway has failed (R6 to R9, X6 to X8).

    QUIET --- silence for HeartbeatDeferTime ---> INSTANT: a heartbeat goes ---> ASKED
                                                  DEFERRED: DUE, the next payload takes it along ---> ASKED
    ASKED --- a sign of life ---> QUIET
          --- none within HeartbeatResponseTime: a second heartbeat; again none: FAILED

There is one detector for each gateway in use. It is a calculation: the node tells it the time, answers, hints
and payload, and does what the returned `Verdict` says. It looks at its session when its deadline comes, at
least once in each HeartbeatDeferTime, so that a packet costs it nothing.
"""

from dataclasses import dataclass
from enum import Enum, auto, unique
from typing import Protocol

from rvpn.constants import (
    AUTO_DEFER_FLOOR,
    AUTO_DEFER_IDLE,
    CONFIRM_SHARE,
    IDLE_AFTER,
    LATE,
    OUTSTANDING_HEARTBEATS,
    RESPONSE_UNMEASURED,
    HeartbeatMode,
)
from rvpn.failover.round_trip import RoundTrip


@unique
class Verdict(Enum):
    """What the node is to do now."""

    NOTHING = auto()
    #: Send a heartbeat, and tell `asked` its sequence number.
    HEARTBEAT = auto()
    #: Give the gateway up (R8).
    FAILED = auto()


@unique
class _State(Enum):
    QUIET = auto()
    DUE = auto()
    ASKED = auto()


class Observed(Protocol):
    """
    What a detector looks at: when the gateway last gave a sign of life, and how many packets it was sent.
    """

    received_at: float
    packets_out: int


@dataclass(frozen=True, slots=True)
class Timing:
    """
    The policy's heartbeat settings, in seconds; None is `auto` (X7), a confirm time of 0 means never (X8).
    """

    mode: HeartbeatMode
    response: float | None
    defer: float | None
    confirm: float


class FailureDetector:
    """
    Watches the gateway of one session from the moment it is in use.

    `shortest_defer` is the gateway's lower limit for the time between heartbeats (X7). `active_at` is when
    payload was last seen to go out, by this detector or the one before it.
    """

    def __init__(
        self,
        timing: Timing,
        session: Observed,
        round_trip: RoundTrip,
        now: float,
        active_at: float,
        shortest_defer: float = 0.0,
    ) -> None:
        self._timing = timing
        self._session = session
        self._round_trip = round_trip
        self._shortest_defer = shortest_defer
        self._state = _State.QUIET
        self.active_at = active_at
        self._since = self._answered_at = now
        self._packets_seen = self._packets_at_answer = session.packets_out
        self._outstanding: dict[int, float] = {}
        self._tries = 0
        self._asked_at = self._sent_at = self._deadline = self._look_at = now
        self._only_answer_counts = self._hinted = self._late = False
        self._hinted_at = float("-inf")

    # --- times ----------------------------------------------------------------------------------------------

    @property
    def response(self) -> float:
        """Seconds that an answer may take (R7; X7 if `auto`)."""
        if self._timing.response is not None:
            return self._timing.response
        return self._round_trip.timeout or RESPONSE_UNMEASURED

    def defer(self, now: float) -> float:
        """
        Seconds of silence after which a heartbeat is due (R6; X7 if `auto`: longer where there is no
        payload).
        """
        if self._timing.defer is not None:
            return max(self._timing.defer, self._shortest_defer)
        if now - self.active_at >= IDLE_AFTER:
            return max(AUTO_DEFER_IDLE, self._shortest_defer)
        return max(AUTO_DEFER_FLOOR, 2 * self.response, self._shortest_defer)

    def deadline(self) -> float | None:
        """Return when `advance` is to be called next, or None."""
        if self._timing.mode is HeartbeatMode.NONE or self._state is _State.DUE:
            return None
        if self._state is _State.ASKED:
            return min(self._answer_due, self._look_at)
        return self._heartbeat_due

    @property
    def wants_payload(self) -> bool:
        """Whether a heartbeat is to follow the next payload packet (R9, DEFERRED)."""
        return self._state is _State.DUE

    @property
    def suspicious(self) -> bool:
        """Whether a heartbeat was left unanswered and the second is out: standbys are asked now (X1)."""
        return self._state is _State.ASKED and self._tries > 1

    @property
    def suspected_at(self) -> float | None:
        """When the first heartbeat went that is not answered yet; None if nothing is asked (X1)."""
        return self._asked_at if self._state is _State.ASKED else None

    @property
    def _last_sign(self) -> float:
        return max(self._session.received_at, self._since)

    @property
    def _silent_at(self) -> float:
        """When the gateway will have been silent for HeartbeatDeferTime (R6)."""
        return self._last_sign + self.defer(self._last_sign)

    @property
    def _heartbeat_due(self) -> float:
        return min(time for time in (self._silent_at, self._confirm_at, self._sample_at) if time is not None)

    @property
    def _sample_at(self) -> float | None:
        """
        When an answer is due although packets arrive, for a response time that is `auto` and not known yet.

        So a gateway that has come into use is asked for round trips one after another, if there is payload
        (X7).
        """
        asked_at = max(self._sent_at, self._answered_at)
        idle = asked_at - self.active_at >= IDLE_AFTER
        if self._timing.response is not None or self._round_trip.settled or idle:
            return None
        return asked_at + max(AUTO_DEFER_FLOOR, self._shortest_defer)

    @property
    def _confirm_at(self) -> float | None:
        """When an answer is due although packets arrive: what was sent may go nowhere (X8)."""
        if not self._timing.confirm or self._session.packets_out == self._packets_at_answer:
            return None
        return self._answered_at + self._timing.confirm

    @property
    def _answer_due(self) -> float:
        """
        When the wait for an answer ends.

        A response time that is `auto` was measured by the answer before, a whole HeartbeatConfirmTime ago,
        and the queues of what flows now may hold an answer for longer. So it gets CONFIRM_SHARE of that time
        while packets arrive, and the measured one when silence falls (X7, X8).
        """
        if not self._only_answer_counts or self._timing.response is not None:
            return self._deadline
        patience = self._sent_at + CONFIRM_SHARE * self._timing.confirm
        return max(self._deadline, min(patience, self._silent_at))

    def _needs_no_answer(self, now: float) -> bool:
        """
        Tell whether packets do for an answer: one after the heartbeat, or one that is not old enough for the
        heartbeat to have been due but for its round trip.
        """
        if self._only_answer_counts:
            return False
        return self._session.received_at > self._asked_at or (not self._hinted and now < self._silent_at)

    # --- what happens ---------------------------------------------------------------------------------------

    def advance(self, now: float) -> Verdict:
        """Decide what is due."""
        deadline = self.deadline()
        if self._session.packets_out != self._packets_seen:
            self._packets_seen, self.active_at = self._session.packets_out, now
        if deadline is None or now < deadline:
            return Verdict.NOTHING
        if self._state is _State.QUIET:
            return self._silence(now)
        if self._needs_no_answer(now):
            self._rest()
            return Verdict.NOTHING
        if now < self._answer_due:
            self._look_at = now + self.defer(now)
            return Verdict.NOTHING
        return self._no_answer(now, late_by=now - self._answer_due)

    def _silence(self, now: float) -> Verdict:
        """The gateway was silent for long, or did not confirm for long that it hears us."""
        confirm = self._confirm_at
        self._only_answer_counts = confirm is not None and now >= confirm
        if self._timing.mode is HeartbeatMode.DEFERRED:
            self._state = _State.DUE
            return Verdict.NOTHING
        return self._ask(now)

    def _no_answer(self, now: float, late_by: float) -> Verdict:
        """
        Ask again, or give up; but a node that itself woke up late must not blame the gateway (R7).

        It waits on for as long as it was late, and no longer than an answer takes: who slept for hours must
        not wait for hours.
        """
        if late_by > LATE and not self._late:
            self._late = True
            self._deadline = now + min(late_by, self._wait())
            return Verdict.NOTHING
        if self._tries > 1:
            return Verdict.FAILED
        return self._ask(now)

    def payload(self, now: float) -> Verdict:
        """Hear that a payload packet was just sent; called only while `wants_payload`."""
        if not self._only_answer_counts and not self._hinted and now < self._heartbeat_due:
            self._rest()
            return Verdict.NOTHING
        return self._ask(now)

    def _ask(self, now: float) -> Verdict:
        if self._tries == 0:
            self._asked_at = now
        self._state = _State.ASKED
        self._tries += 1
        self._round_trip.asked += 1
        self._late = False
        self._sent_at = now
        self._deadline = now + self._wait()
        self._look_at = now + self.defer(now)
        return Verdict.HEARTBEAT

    def _wait(self) -> float:
        """Return the seconds for an answer: after a hint no more than the round trip takes (X6)."""
        if self._hinted and self._round_trip.timeout is not None:
            return min(self.response, self._round_trip.timeout)
        return self.response

    def asked(self, sequence: int, now: float) -> None:
        """Hear the sequence number of the heartbeat that was sent because of the last verdict."""
        self._outstanding[sequence] = now
        if len(self._outstanding) > OUTSTANDING_HEARTBEATS:
            del self._outstanding[next(iter(self._outstanding))]

    def answered(self, sequence: int, now: float) -> bool:
        """Hear an answer to `sequence`; return whether it was outstanding: no other counts (DESIGN 6)."""
        sent_at = self._outstanding.pop(sequence, None)
        if sent_at is None:
            return False
        self._round_trip.measured(now - sent_at)
        self._answered_at = now
        self._packets_at_answer = self._session.packets_out
        self._rest()
        return True

    def hint(self, now: float) -> Verdict:
        """
        Hear that the gateway may be gone: ask at once, at most once per round trip (X6). NONE ignores hints.
        """
        if self._timing.mode is HeartbeatMode.NONE:
            return Verdict.NOTHING
        if now - self._hinted_at < (self._round_trip.timeout or self.response):
            return Verdict.NOTHING
        self._hinted_at, self._hinted = now, True
        if self._state is _State.ASKED:
            self._deadline = min(self._deadline, now + self._wait())
            return Verdict.NOTHING
        if self._timing.mode is HeartbeatMode.DEFERRED:
            self._state = _State.DUE
            return Verdict.NOTHING
        return self._ask(now)

    def _rest(self) -> None:
        self._state = _State.QUIET
        self._tries = 0
        self._hinted = self._only_answer_counts = False
