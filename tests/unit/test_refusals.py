"""What the log says of refused key exchanges: little, and a count."""

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import DropReason, RemoteError
from rvpn.gateway.refusals import MOST_COUNTED, REFUSAL_INTERVAL, SAME_REFUSAL_INTERVAL, Refusals
from rvpn.interfaces import Endpoint, Event

HERE, THERE = (Endpoint(ip_address(address), 4500) for address in ("192.0.2.1", "2001:db8::9"))
NO_KEY, NO_IDENTITY = (
    RemoteError(DropReason.AUTHENTICATION_FAILED, words) for words in ("no client has the key", "no identity")
)


class RefusalsTests(SynchronousTestCase):
    """A gateway that refuses key exchanges."""

    def setUp(self) -> None:
        """Begin with nothing told."""
        self.refusals = Refusals()

    def tell(self, now: float, endpoint: Endpoint = HERE, error: RemoteError = NO_KEY) -> str:
        """Refuse one exchange, and return the line about it."""
        events = self.refusals.tell(error, endpoint, now)
        return "".join(e.message.format(**e.fields) for e in events if isinstance(e, Event))

    def test_first(self) -> None:
        """The first is told, with its peer and reason."""
        line = "refused a key exchange from 192.0.2.1:4500: authentication-failed: no client has the key"
        self.assertEqual(self.tell(1.0), line)

    def test_same(self) -> None:
        """Who is refused for the same reason again and again is told of each SAME_REFUSAL_INTERVAL."""
        told = {now: line for now in range(25) if (line := self.tell(float(now), HERE._replace(port=now)))}
        self.assertEqual(list(told), [0, SAME_REFUSAL_INTERVAL, 2 * SAME_REFUSAL_INTERVAL])
        self.assertTrue(told[10].endswith(" (9 more before it)"), told)

    def test_others(self) -> None:
        """Another peer, and another reason, are told of within REFUSAL_INTERVAL."""
        self.assertTrue(self.tell(0.0))
        self.assertTrue(self.tell(REFUSAL_INTERVAL, THERE))
        self.assertTrue(self.tell(2 * REFUSAL_INTERVAL, HERE, NO_IDENTITY))
        self.assertFalse(self.tell(3 * REFUSAL_INTERVAL))

    def test_own_count(self) -> None:
        """A line counts the refusals of its own address and reason, not those of others meanwhile."""
        for now, endpoint, error in (
            (0.0, HERE, NO_KEY),
            (0.1, THERE, NO_KEY),
            (0.2, HERE, NO_IDENTITY),
            (0.3, HERE, NO_IDENTITY),
            (0.4, HERE, NO_KEY),
        ):
            self.tell(now, endpoint, error)
        for now, endpoint, error, more in (
            (1.0, HERE, NO_IDENTITY, " (2 more before it)"),
            (2.0, THERE, NO_KEY, " (1 more before it)"),
            (10.0, HERE, NO_KEY, " (1 more before it)"),
            (12.0, THERE, NO_KEY, ""),
        ):
            self.assertEqual(self.tell(now, endpoint, error).partition(str(error))[2], more)

    def test_many(self) -> None:
        """Strangers at many addresses get a line a second, and what is remembered of them stays small."""
        lines = [self.tell(n / 100, Endpoint(HERE.address + n, 4500)) for n in range(5000)]
        self.assertEqual(sum(map(bool, lines)), 50)
        self.assertLessEqual(len(self.refusals._told_at), SAME_REFUSAL_INTERVAL / REFUSAL_INTERVAL)
        self.assertEqual(len(self.refusals._untold), MOST_COUNTED)
