"""
Whether a gateway reaches its LAN (R14): the state of the LAN interface, and answers of a probed target.

    interface down or gone ---> down at once, and the target counts as silent
    target: PROBE_TRIES requests in a row unanswered ---> down
    interface up, and PROBE_TRIES requests in a row answered ---> not down

An answer has the time until the next request. So a target that vanishes is noticed after `PROBE_TRIES`
intervals, one that comes back after one less, and each up to one interval later, for it happens between two
requests. A link that is up says little: a switch may take half a minute before it forwards. So with a
target it is the target that must prove the way back; without one, a link that is up again counts at once.
Nothing is held against a LAN at the start.

`LanWatch` is a calculation: the shell tells it links and answers, the agenda its time, and it asks for a
`Probe` when a request is due. What its decision leads to, the gateway knows (X4). A process that stood
still judges a request before it reads the answer that waits; that is one of `PROBE_TRIES`, and harmless.
"""

from collections.abc import Callable, Iterable

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import PROBE_TRIES
from rvpn.interfaces import Action, IPAddress, Probe

#: Takes whether the LAN side is down, the reason in words, and the time; returns what follows from it.
Decided = Callable[[bool, str, float], Iterable[Action]]


class LanWatch:
    """See the module. `decided` is called at every change of `down`."""

    def __init__(self, agenda: Agenda, decided: Decided) -> None:
        self.down = False
        self._agenda = agenda
        self._decided = decided
        self._link_up = True
        self._target: IPAddress | None = None
        self._interval = 0.0
        self._answers = True
        self._contrary = 0
        self._sequence = 0
        self._outstanding = False
        self._next: Appointment | None = None

    def probe(self, target: IPAddress | None, interval: float, now: float) -> list[Action]:
        """
        Probe `target` (None: nothing) every `interval` seconds from now on, with a clean sheet if it is
        new.
        """
        if (target, interval) == (self._target, self._interval):
            return []
        self._interval = interval
        if target == self._target:
            self._hasten(now)
            return []
        self._stop()
        self._target, self._answers = target, True
        return [*self._start(now), *self._decide(now)]

    def link(self, up: bool, now: float) -> list[Action]:
        """Hear whether the LAN interface is up."""
        if up == self._link_up:
            return []
        self._link_up = up
        self._stop()
        self._answers = self._target is None
        return [*self._start(now), *self._decide(now)]

    def answered(self, target: IPAddress, sequence: int, now: float) -> list[Action]:
        """Hear that `target` answered a probe; it counts if it is the one waited for."""
        if not self._outstanding or (target, sequence) != (self._target, self._sequence):
            return []
        self._outstanding = False
        return self._count(True, now)

    def _start(self, now: float) -> list[Action]:
        return self._tick(now) if self._link_up and self._target is not None else []

    def _stop(self) -> None:
        self._outstanding, self._contrary = False, 0
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _hasten(self, now: float) -> None:
        """Let the next request go no later than an interval from now."""
        if self._next is not None and self._next.when > now + self._interval:
            self._next.cancel()
            self._next = self._agenda.at(now + self._interval, self._tick)

    def _tick(self, now: float) -> list[Action]:
        """Judge the last request and send the next."""
        assert self._target is not None
        actions = self._count(False, now) if self._outstanding else []
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._outstanding = True
        self._next = self._agenda.at(now + self._interval, self._tick)
        return [*actions, Probe(self._target, self._sequence)]

    def _count(self, answered: bool, now: float) -> list[Action]:
        """Change our mind about the target after enough outcomes in a row that contradict it."""
        self._contrary = self._contrary + 1 if answered != self._answers else 0
        if self._contrary < PROBE_TRIES:
            return []
        self._answers, self._contrary = answered, 0
        return self._decide(now)

    def _decide(self, now: float) -> list[Action]:
        if not self._link_up:
            reason = "the LAN interface is down"
        elif not self._answers:
            reason = f"{self._target} on the LAN does not answer"
        else:
            reason = "the LAN is reached again"
        down = not (self._link_up and self._answers)
        if down is self.down:
            return []
        self.down = down
        return list(self._decided(down, reason, now))
