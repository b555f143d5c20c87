"""The exchanges that this node began: tokens, the confirmation of keys, and how they end (DESIGN 4)."""

from collections.abc import Callable, Hashable
from ipaddress import ip_address
from itertools import pairwise
from math import inf

from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.interfaces import Action, Endpoint, Path, SecurityContext, Send
from rvpn.keyexchange.initiations import Initiations
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.tokens import Message
from tests.unit.session_ends import FakeContext, answer, offer

FIRST, SECOND = "first", "second"
ENDPOINTS = {
    FIRST: Endpoint(ip_address("198.51.100.21"), 4500),
    SECOND: Endpoint(ip_address("198.51.100.22"), 4500),
}
LIFETIME = 2.0


class FakeExchange(InitiatorExchange):
    """An exchange that any message completes; when `due` it repeats its token, or meets its `doom`."""

    def __init__(self, number: int, now: float) -> None:
        self.exchange_id = number.to_bytes(8)
        self.failed = None
        self.expiry = now + LIFETIME
        self.due = inf
        self.doom: str | None = None
        self.refusal = ""
        self.unusable_key = False
        self._outcome: SecurityContext | None = None

    @property
    def context(self) -> SecurityContext | None:
        """Established once a message came."""
        return self._outcome

    def start(self, now: float) -> list[bytes]:
        """Return one datagram."""
        if self.unusable_key:
            raise LocalError("the peer's public key cannot be anybody's")
        return [b"first"]

    def receive(self, message: Message, now: float) -> list[bytes]:
        """Be complete."""
        theirs = answer(2000)
        if self.refusal:
            theirs = type(theirs)(spi=2000, transforms=(), refusal=self.refusal)
        self._outcome = FakeContext(offer(1000), theirs)
        return [b"acknowledgement"]

    def deadline(self) -> float:
        """Return when to look again."""
        return min(self.due, self.expiry)

    def advance(self, now: float) -> list[bytes]:
        """Fail if it is doomed or its time is over, else repeat the token, once."""
        self.due = inf
        self.failed = self.doom or ("no answer; but somebody laughed" if now >= self.expiry else None)
        return [] if self.failed else [b"again"]


class Owner:
    """An `initiations.Owner` that writes down what it hears, and after a failure acts `instead`."""

    def __init__(self) -> None:
        self.unusable = False
        self.granted_to: list[Hashable] = []
        self.failures: list[tuple[Hashable, str]] = []
        self.instead: Callable[[], list[Action]] = list

    def granted(self, peer: Hashable, exchange: InitiatorExchange, path: Path, now: float) -> list[Action]:
        """Take the keys."""
        if self.unusable:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "nothing that was offered")
        self.granted_to.append(peer)
        return []

    def confirm(self, peer: Hashable) -> list[Action]:
        """Send something under the new keys."""
        return [Send(b"dummy", Path(ENDPOINTS[str(peer)]))]

    def given_up(self, peer: Hashable, reason: str, now: float) -> list[Action]:
        """Forget them."""
        self.failures.append((peer, reason))
        return self.instead()


class InitiationsTestCase(SynchronousTestCase):
    """Exchanges with two peers, and a clock that the test moves."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.owner = Owner()
        self.agenda = Agenda()
        self.initiations = Initiations(self.owner, self.agenda)
        self.initiations.lifetime = LIFETIME
        self.exchanges: list[FakeExchange] = []
        self.sent: list[tuple[float, bytes, Endpoint]] = []

    def do(self, actions: list[Action]) -> None:
        """Note what is to be sent."""
        for action in actions:
            assert isinstance(action, Send)
            self.sent.append((self.now, action.datagram, action.path.remote))

    def exchange(self) -> FakeExchange:
        """Return a new exchange."""
        self.exchanges.append(FakeExchange(len(self.exchanges), self.now))
        return self.exchanges[-1]

    def begin(self, peer: str = FIRST, exchange: FakeExchange | None = None) -> FakeExchange:
        """Begin an exchange with a peer."""
        exchange = exchange or self.exchange()
        self.do(self.initiations.begin(peer, exchange, Path(ENDPOINTS[peer]), self.now))
        return exchange

    def hear(self, exchange: FakeExchange, remote: Endpoint = ENDPOINTS[FIRST]) -> None:
        """Let a message for an exchange arrive."""
        message = Message(Mechanism.NOISE, 1, exchange.exchange_id, b"", b"")
        self.do(self.initiations.receive(message, Path(remote), self.now))

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (due := self.agenda.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.do(self.agenda.advance(self.now))
        self.now = end

    def datagrams(self) -> list[bytes]:
        """Return what was sent."""
        return [datagram for _, datagram, _ in self.sent]


class ConfirmationTests(InitiationsTestCase):
    """From the first token to the confirmation of the keys."""

    def test_granted(self) -> None:
        """Keys go to the owner, which confirms them; when the peer does so too, nothing is left to do."""
        exchange = self.begin()
        self.hear(exchange)
        self.assertEqual(self.owner.granted_to, [FIRST])
        self.assertEqual(self.datagrams(), [b"first", b"acknowledgement", b"dummy"])
        self.assertEqual((self.initiations.peers, len(self.initiations)), ({FIRST}, 1))
        self.initiations.confirmed(FIRST, self.now)
        self.assertEqual((self.initiations.peers, len(self.initiations)), (set(), 0))
        self.assertIsNone(self.agenda.deadline())
        self.assertEqual(self.owner.failures, [])

    def test_tokens_are_repeated(self) -> None:
        """What the exchange has to repeat goes out when it is due, to where the exchange goes."""
        exchange = self.exchange()
        exchange.due = again = self.now + 0.1
        self.begin(SECOND, exchange)
        self.run_for(0.2)
        self.assertEqual(self.sent[1:], [(again, b"again", ENDPOINTS[SECOND])])

    def test_granted_once(self) -> None:
        """A duplicate of the peer's answer is acknowledged, and grants nothing again."""
        exchange = self.begin()
        self.hear(exchange)
        self.hear(exchange)
        self.assertEqual(self.owner.granted_to, [FIRST])
        self.assertEqual(self.datagrams(), [b"first", b"acknowledgement", b"dummy", b"acknowledgement"])

    def test_repeated(self) -> None:
        """The packet under the new keys is sent each 100 ms, six times, then at doubling intervals."""
        begun = self.now
        self.hear(self.begin())
        self.run_for(LIFETIME)
        times = [when for when, datagram, _ in self.sent if datagram == b"dummy"]
        intervals = [round(later - earlier, 3) for earlier, later in pairwise(times)]
        self.assertEqual(intervals, [0.1] * 7 + [0.2, 0.4])
        self.assertEqual(self.owner.failures, [(FIRST, "its keys were never confirmed")])
        self.assertEqual(self.now, begun + LIFETIME)

    def test_round_trip(self) -> None:
        """The confirmation measures the path if only one packet can have drawn it."""
        for wait, measured in ((0.05, 0.05), (0.15, None)):
            self.setUp()
            self.hear(self.begin())
            self.run_for(wait)
            round_trip = self.initiations.confirmed(FIRST, self.now)
            self.assertEqual(None if round_trip is None else round(round_trip, 6), measured)


class EndTests(InitiationsTestCase):
    """Exchanges that yield no keys."""

    def test_given_up(self) -> None:
        """R3: no answer, a failed exchange, a refusal, unusable keys, an unreachable network."""
        for what, seconds, reason in (
            ("silence", LIFETIME, "no answer; but somebody laughed"),
            ("too long", LIFETIME, "no answer"),
            ("doom", 0.5, "it is a goat"),
            ("refusal", 0, "it refuses: the policy"),
            ("unusable", 0, "authentication-failed: nothing that was offered"),
            ("unreachable", 0, "the network is unreachable"),
        ):
            self.setUp()
            exchange = self.exchange()
            exchange.expiry = inf if what == "too long" else exchange.expiry
            exchange.due = self.now + 0.5 if what == "doom" else inf
            exchange.doom = reason if what == "doom" else None
            exchange.refusal = "the policy" if what == "refusal" else ""
            self.owner.unusable = what == "unusable"
            self.begin(FIRST, exchange)
            if what in {"refusal", "unusable"}:
                self.hear(exchange)
            elif what == "unreachable":
                self.do(self.initiations.give_up(FIRST, reason, self.now))
            self.run_for(seconds - 0.001)
            self.assertEqual(self.owner.failures, [] if seconds else [(FIRST, reason)], what)
            self.run_for(0.001)
            self.assertEqual(self.owner.failures, [(FIRST, reason)], what)
            self.assertNotIn(FIRST, self.initiations)
            self.assertIsNone(self.agenda.deadline(), what)
            self.assertNotIn(b"dummy", self.datagrams())

    def test_not_begun(self) -> None:
        """An exchange whose first token cannot be made is not under way: the next one may begin."""
        exchange = self.exchange()
        exchange.unusable_key = True
        self.assertRaises(LocalError, self.begin, FIRST, exchange)
        self.assertNotIn(FIRST, self.initiations)
        self.assertIsNone(self.agenda.deadline())

    def test_another_instead(self) -> None:
        """An owner that is refused may try the same peer again at once, and hears of that exchange too."""
        exchange, another = self.begin(), self.exchange()

        def instead() -> list[Action]:
            self.owner.instead = list
            return self.initiations.begin(FIRST, another, Path(ENDPOINTS[FIRST]), self.now)

        self.owner.instead, exchange.refusal = instead, "not now"
        self.hear(exchange)
        self.assertEqual(self.datagrams(), [b"first", b"acknowledgement", b"first"])
        self.hear(another)
        self.assertEqual(self.owner.granted_to, [FIRST])

    def test_side_by_side(self) -> None:
        """The end of one exchange is not that of another."""
        self.begin()
        other = self.begin(SECOND)
        self.do(self.initiations.give_up(FIRST, "", self.now))
        self.assertEqual(self.initiations.peers, {SECOND})
        self.hear(other, ENDPOINTS[SECOND])
        self.assertEqual(self.owner.granted_to, [SECOND])

    def test_forgotten(self) -> None:
        """What is forgotten neither sends nor tells anything more."""
        for granted in (False, True):
            self.setUp()
            exchange = self.begin()
            if granted:
                self.hear(exchange)
            sent = self.datagrams()
            self.initiations.forget(FIRST)
            self.assertIsNone(self.agenda.deadline())
            self.assertRaises(RemoteError, self.hear, exchange)
            self.assertEqual((self.datagrams(), self.owner.failures), (sent, []))


class MessageTests(InitiationsTestCase):
    """R3: one exchange runs wholly with one peer; what is not of it is a `RemoteError`."""

    def refusal(self, exchange: FakeExchange, remote: Endpoint) -> DropReason:
        """Return why a message is dropped."""
        error: RemoteError = self.assertRaises(RemoteError, self.hear, exchange, remote)
        return error.reason

    def test_foreign(self) -> None:
        """Another exchange, another peer, another port, or none at all."""
        exchange, here = self.begin(), ENDPOINTS[FIRST]
        self.assertIs(self.refusal(FakeExchange(99, self.now), here), DropReason.UNKNOWN_EXCHANGE)
        self.assertIs(self.refusal(exchange, ENDPOINTS[SECOND]), DropReason.WRONG_ORIGIN)
        self.assertIs(self.refusal(exchange, Endpoint(here.address, 4501)), DropReason.WRONG_ORIGIN)
        self.assertEqual(self.owner.granted_to, [])
        self.run_for(LIFETIME)
        self.assertIs(self.refusal(exchange, here), DropReason.UNKNOWN_EXCHANGE)

    def test_without_exchange(self) -> None:
        """Confirmation and end of an exchange that is not under way change nothing."""
        self.assertIsNone(self.initiations.confirmed(FIRST, self.now))
        self.assertEqual(self.initiations.give_up(FIRST, "", self.now), [])
        self.initiations.forget(FIRST)
        self.assertEqual(self.owner.failures, [])
