"""The anti-replay window against a model that remembers every number it has seen."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import REPLAY_WINDOW
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.replay import ReplayWindow


class NaiveWindow:
    """The rule of RFC 4303 section 3.4.3 in its plainest form."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = {0}

    def fresh(self, sequence: int) -> bool:
        """Tell whether the number is new and not too old."""
        return sequence not in self.seen and sequence > max(self.seen) - self.size


def accepts(window: ReplayWindow, sequence: int) -> bool:
    """Turn the window's refusal into a value."""
    try:
        window.check(sequence)
    except RemoteError:
        return False
    return True


#: Steps from the highest number: mostly within and around the window, now and then beyond a whole ring.
NEAR = st.integers(-18, 6)
STEPS = st.one_of(NEAR, NEAR, NEAR, NEAR, st.integers(7, 200), st.just(2**40))


class ReplayWindowTests(SynchronousTestCase):
    """RFC 6479, DESIGN 3."""

    @settings(derandomize=True, deadline=None, max_examples=150)
    @given(
        size=st.sampled_from([8, 16]),
        steps=st.lists(st.tuples(STEPS, st.booleans()), min_size=20, max_size=60),
    )
    def test_agrees_with_the_model(self, size: int, steps: list[tuple[int, bool]]) -> None:
        """Whatever numbers come, and whether or not they authenticate, window and model accept the same."""
        window, model = ReplayWindow(size), NaiveWindow(size)
        for step, authentic in steps:
            sequence = max(0, window.highest + step)
            self.assertEqual(accepts(window, sequence), model.fresh(sequence))
            if authentic and model.fresh(sequence):
                window.commit(sequence)
                model.seen.add(sequence)
            self.assertEqual(window.highest, max(model.seen))
        for sequence in range(max(0, window.highest - 2 * size), window.highest + 2 * size):
            self.assertEqual(accepts(window, sequence), model.fresh(sequence))

    def test_unbroken_run(self) -> None:
        """Where each number is overtaken by the next, all pass once, however often the ring comes round."""
        window = ReplayWindow(16)
        for number in range(2, 200):
            sequence = number ^ 1
            self.assertTrue(accepts(window, sequence))
            window.commit(sequence)
            self.assertFalse(accepts(window, sequence))

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(st.sets(st.integers(1, 40), max_size=30), st.integers(1, 45), st.integers(0, 20))
    def test_rows(self, seen: set[int], first: int, count: int) -> None:
        """A row of numbers is what they are one by one."""
        one, row = ReplayWindow(16), ReplayWindow(16)
        for sequence in sorted(seen):
            one.commit(sequence)
            row.commit(sequence)
        fresh = row.unseen(first, count)
        passed = [accepts(one, sequence) for sequence in range(first, first + count)]
        self.assertEqual(fresh, [*passed, False].index(False))
        row.commit_row(first, fresh)
        for sequence in range(first, first + fresh):
            one.commit(sequence)
        self.assertEqual([accepts(row, n) for n in range(90)], [accepts(one, n) for n in range(90)])

    def test_default_size(self) -> None:
        """A packet may be overtaken by REPLAY_WINDOW - 1 others and no more."""
        window = ReplayWindow()
        window.commit(REPLAY_WINDOW + 10)
        self.assertTrue(accepts(window, 11))
        self.assertFalse(accepts(window, 10))

    def test_check_does_not_mark(self) -> None:
        """A number that was checked but not committed, as a forgery's, can still be used."""
        window = ReplayWindow()
        window.check(7)
        window.check(7)
        self.assertEqual(window.highest, 0)

    def test_reason(self) -> None:
        """A refusal is counted as the window's owner says."""
        window = ReplayWindow(reason=DropReason.REPLAYED_CONTROL)
        window.commit(1)
        with self.assertRaises(RemoteError) as caught:
            window.check(1)
        self.assertEqual(caught.exception.reason, DropReason.REPLAYED_CONTROL)
