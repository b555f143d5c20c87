"""`rvpn.memo`: answers that are remembered."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.memo import Memo


class MemoTests(SynchronousTestCase):
    """A memo of the names of three numbers."""

    def setUp(self) -> None:
        self.found: list[int] = []
        self.memo = Memo(self.find, 3)

    def find(self, number: int) -> str | None:
        """Return the name of a number, if it has one, and note that this was asked for."""
        self.found.append(number)
        return {1: "one", 2: "two", 3: "three", 4: "four"}.get(number)

    def test_found_once(self) -> None:
        """What was found is not looked for again, and neither is that there was nothing."""
        for _ in range(2):
            self.assertEqual([self.memo[number] for number in (1, 2, 9)], ["one", "two", None])
        self.assertEqual(self.found, [1, 2, 9])

    def test_full(self) -> None:
        """A memo that is full forgets all, and goes on."""
        for number in (1, 2, 3, 4):
            self.assertLessEqual(len(self.memo), 3)
            self.assertEqual(self.memo[number], self.find(number))
        self.assertEqual(dict(self.memo), {4: "four"})
        self.assertEqual(self.memo[1], "one")

    def test_refusal(self) -> None:
        """What cannot be found is not remembered."""

        def fail(number: int) -> str:
            raise ValueError(number)

        memo = Memo(fail, 3)
        self.assertRaises(ValueError, lambda: memo[1])
        self.assertEqual(len(memo), 0)
