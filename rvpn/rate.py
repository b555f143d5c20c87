"""A token bucket: the bound on what others can make a node do in a second."""


class Rate:
    """Allows `per_second` events on average, and at most that many at once."""

    __slots__ = ("_allowed", "_at", "_per_second")

    def __init__(self, per_second: float) -> None:
        self._per_second = self._allowed = per_second
        self._at = 0.0

    def allows(self, now: float) -> bool:
        """Tell whether one more event may happen at `now`, and count it if so."""
        self._allowed = min(self._per_second, self._allowed + (now - self._at) * self._per_second)
        self._at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True
