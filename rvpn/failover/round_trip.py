"""
The round-trip time to a peer: SRTT, RTTVAR and the timeout that follows from them, as in RFC 6298 section 2,
but for its minimum of 1 s and the doubling (X7).

    a key exchange that took so long -> `guess`; a heartbeat's answer, an acknowledgement -> `measured`
        -> `timeout`: how long the next answer may take
"""

from rvpn.constants import RESPONSE_FLOOR, ROUND_TRIP_SAMPLES


class RoundTrip:
    """
    See the module. `smoothed` is SRTT in seconds, None before the first sample or guess.

    `asked` counts the heartbeats that asked for a sample.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.smoothed: float | None = None
        self._variation = 0.0
        self._guessed = True

    def guess(self, seconds: float) -> None:
        """Take the time of something slower than a round trip, until there is a sample."""
        if self._guessed:
            self.smoothed, self._variation = seconds, seconds / 2

    def measured(self, seconds: float) -> None:
        """Take a sample."""
        if self.smoothed is None or self._guessed:
            self.smoothed, self._variation, self._guessed = seconds, seconds / 2, False
        else:
            self._variation += (abs(self.smoothed - seconds) - self._variation) / 4
            self.smoothed += (seconds - self.smoothed) / 8

    @property
    def settled(self) -> bool:
        """Whether there were samples enough for the variation to have fallen to what it is."""
        return self.asked >= ROUND_TRIP_SAMPLES

    @property
    def timeout(self) -> float | None:
        """Return SRTT + 4 RTTVAR, at least RESPONSE_FLOOR; None before the first sample."""
        if self.smoothed is None:
            return None
        return max(RESPONSE_FLOOR, self.smoothed + 4 * self._variation)
