"""The agenda does what is due, once, in order, and forgets what was cancelled."""

from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.interfaces import Action, Event


class AgendaTests(SynchronousTestCase):
    """Appointments, deadlines and cancellations."""

    def setUp(self) -> None:
        """Start with an empty agenda and a record of what was done."""
        self.agenda = Agenda()
        self.done: list[tuple[str, float]] = []

    def put(self, name: str, when: float) -> object:
        """Note `name` when it is done."""

        def act(now: float) -> list[Action]:
            self.done.append((name, now))
            return [Event(name)]

        return self.agenda.at(when, act)

    def test_empty(self) -> None:
        """An empty agenda has no deadline and nothing to do."""
        self.assertIsNone(self.agenda.deadline())
        self.assertEqual(self.agenda.advance(1e9), [])

    def test_order(self) -> None:
        """What is due is done by time, then in the order it was put down; the rest waits."""
        for name, when in (("late", 9.0), ("b", 2.0), ("a", 1.0), ("c", 2.0)):
            self.put(name, when)
        self.assertEqual(self.agenda.deadline(), 1.0)
        actions = self.agenda.advance(2.0)
        self.assertEqual([action.message for action in actions if isinstance(action, Event)], ["a", "b", "c"])
        self.assertEqual(self.agenda.deadline(), 9.0)

    def test_cancelled_in_turn(self) -> None:
        """An appointment that an earlier one of the same call cancels does not happen."""
        victim = self.agenda.at(2.0, lambda now: self.fail("it was cancelled"))

        def cancel(_now: float) -> list[Action]:
            victim.cancel()
            return []

        self.agenda.at(1.0, cancel)
        self.agenda.advance(5.0)
        self.assertIsNone(self.agenda.deadline())
        self.assertEqual(len(self.agenda), 0)

    def test_new_ones_wait(self) -> None:
        """An act that puts itself down again for now cannot keep `advance` from returning."""

        def again(now: float) -> list[Action]:
            self.done.append(("again", now))
            self.agenda.at(now, again)
            return []

        self.agenda.at(1.0, again)
        self.agenda.advance(1.0)
        self.assertEqual(self.done, [("again", 1.0)])
        self.assertEqual(self.agenda.deadline(), 1.0)

    def test_cancelled_take_no_room(self) -> None:
        """Timers that are always set anew and cancelled do not pile up."""
        for number in range(10_000):
            appointment = self.agenda.at(1e6 + number, lambda now: [])
            appointment.cancel()
            appointment.cancel()
        self.assertEqual(len(self.agenda), 0)
        self.assertLess(len(self.agenda._heap), 200)
