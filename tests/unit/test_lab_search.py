"""The search for the highest rate that hardly loses anything."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis.strategies import floats
from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.search import MOST_TRIALS, PRECISION, Rates, Search

#: As fast as the sender can.
FULL_SPEED = 150_000.0

Link = Callable[[float], Rates]


def overrun(capacity: float, flooded: float) -> Link:
    """Return a link that passes `capacity` without loss, and `flooded` when it is given more."""
    return lambda rate: Rates(rate, rate if rate <= capacity else min(rate, flooded))


def search(link: Link) -> tuple[float, int]:
    """Return the best rate and the number of trials."""
    search, trials = Search(link(FULL_SPEED)), 1
    while not search.done:
        search.add(link(min(FULL_SPEED, search.next_rate)))
        trials += 1
    return search.best, trials


class SearchTests(SynchronousTestCase):
    """`Search` against links of a known capacity."""

    @settings(derandomize=True, deadline=None)
    @given(floats(1000, 140_000), floats(0.2, 1.0))
    def test_finds(self, capacity: float, share: float) -> None:
        """It finds what a link passes, as precisely as it says, whether overrunning it costs more or less."""
        best, trials = search(overrun(capacity, capacity * share))
        self.assertLessEqual(best, capacity)
        self.assertGreater(best, capacity / PRECISION * 0.99)
        self.assertLessEqual(trials, MOST_TRIALS)

    def test_unlimited(self) -> None:
        """Where the sender is the limit, one trial is enough."""
        self.assertEqual(search(overrun(FULL_SPEED, 0)), (FULL_SPEED, 1))

    def test_tolerates(self) -> None:
        """One in a hundred may be lost, and counts as lost; more than that not."""
        self.assertTrue(Rates(1000, 990).passed)
        self.assertFalse(Rates(1000, 989).passed)
        self.assertEqual(search(lambda rate: Rates(rate, 0.995 * rate)), (0.995 * FULL_SPEED, 1))

    def test_in_vain(self) -> None:
        """A link that loses whatever comes ends the search, with nothing."""
        best, trials = search(lambda rate: Rates(rate, 0.9 * rate))
        self.assertEqual((best, trials), (0, MOST_TRIALS))
        self.assertEqual(search(lambda rate: Rates(rate, 0)), (0, 1))
        self.assertFalse(Rates(0, 0).passed)

    def test_slow_sender(self) -> None:
        """A sender that does not reach a rate is judged by what it sent."""
        link = overrun(60_000, 30_000)
        best, _ = search(lambda rate: link(min(rate, 50_000) if rate < FULL_SPEED else rate))
        self.assertEqual(best, 50_000)
