"""A cache of bounded size: what strangers make us look up costs time, but no memory without end."""

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """
    Finds `memo[key]` by `find(key)` unless it is cached; when `size` answers are, the next one clears it.
    """

    def __init__(self, find: Callable[[K], V], size: int) -> None:
        super().__init__()
        self._find = find
        self._size = size

    def __missing__(self, key: K) -> V:
        if len(self) >= self._size:
            self.clear()
        answer = self[key] = self._find(key)
        return answer
