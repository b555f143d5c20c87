"""
The highest rate of datagrams at which nearly all of them arrive, as a calculation.

    a trial as fast as possible -> Search.next_rate -> a trial at that rate -> Search.add ... -> Search.best

A receiver that is overrun may take in more or less than it can without loss, so what arrived in the first
trial is where the search begins. It goes up or down by steps from there until it has a rate that passes and
one that fails, and halves the distance between them until that is small. Rates are in packets per second.
"""

from dataclasses import dataclass

#: Which share may be lost.
TOLERATED_LOSS = 0.01
#: How near, as a ratio, a rate that passes and one that fails must be.
PRECISION = 1.04
_STEP = 1.3
#: Trials at most, the first included.
MOST_TRIALS = 12


@dataclass(frozen=True, slots=True)
class Rates:
    """What one trial gave: datagrams sent and received per second."""

    sent: float
    received: float

    @property
    def passed(self) -> bool:
        """Whether hardly any was lost; a trial in which nothing was sent shows nothing."""
        return self.sent > 0 and self.received >= (1 - TOLERATED_LOSS) * self.sent


class Search:
    """Chooses the rate of each trial by the outcome of those before."""

    def __init__(self, flood: Rates) -> None:
        self._trials = [flood]
        self._low = 0.0
        self._high: float | None = None
        self._wanted = flood.received
        #: The most datagrams per second that were received in a trial that passed.
        self.best = flood.received if flood.passed else 0.0

    @property
    def done(self) -> bool:
        """Whether there is nothing more to find out: no loss even at full speed, near enough, or in vain."""
        if self._trials[0].passed or len(self._trials) >= MOST_TRIALS or self._wanted < 1:
            return True
        return self._high is not None and self._low > 0 and self._high < self._low * PRECISION

    @property
    def next_rate(self) -> float:
        """Return the rate at which the next trial is to send."""
        return self._wanted

    def add(self, trial: Rates) -> None:
        """Take the outcome of a trial at `next_rate`, which the sender need not have reached."""
        self._trials.append(trial)
        if trial.passed:
            self.best = max(self.best, trial.received)
            self._low = self._wanted
        else:
            self._high = self._wanted
        if self._high is None:
            self._wanted = self._low * _STEP
        elif not self._low:
            self._wanted = self._high / _STEP
        else:
            self._wanted = (self._low * self._high) ** 0.5
