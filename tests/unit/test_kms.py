"""The key management service by itself: which gateway is asked when, and who hears of it (R1 to R4)."""

from ipaddress import ip_address
from itertools import pairwise
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.agenda import Agenda
from rvpn.constants import Mechanism
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.interfaces import Action, Endpoint, Event, IPAddress, Path, SecurityContext, Send
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.tokens import Message
from rvpn.kms import KeyManagementService
from rvpn.policy.model import Cluster
from tests.unit.test_sessions import FakeContext, answer, offer

FIRST, SECOND, THIRD = GATEWAYS = tuple(ip_address(f"198.51.100.{number}") for number in (21, 22, 23))
PORT, EXCHANGE_TIME = 4500, 2.0


class FakeExchange(InitiatorExchange):
    """An exchange that any message of the gateway completes, and `doom` ends early."""

    def __init__(self, number: int, now: float, refusal: str = "") -> None:
        self.exchange_id = number.to_bytes(8)
        self.failed = None
        self.doom: str | None = None
        self._expiry = now + EXCHANGE_TIME
        self._outcome: SecurityContext | None = None
        self._refusal = refusal

    @property
    def context(self) -> SecurityContext | None:
        """Established once a message came."""
        return self._outcome

    def start(self, now: float) -> list[bytes]:
        """Return one datagram."""
        return [b"first"]

    def receive(self, message: Message, now: float) -> list[bytes]:
        """Be complete."""
        theirs = answer(2000)
        if self._refusal:
            theirs = type(theirs)(spi=2000, transforms=(), refusal=self._refusal)
        self._outcome = FakeContext(offer(1000), theirs)
        return [b"acknowledgement"]

    def deadline(self) -> float:
        """Return when to look again."""
        return self._expiry

    def advance(self, now: float) -> list[bytes]:
        """Fail, if it is doomed or its time is over."""
        self.failed = self.doom or ("no answer; but somebody laughed" if now >= self._expiry else None)
        return [b"last"]


class Client:
    """A `Requester` that writes down what it hears."""

    def __init__(self) -> None:
        self.exchanges: dict[IPAddress, FakeExchange] = {}
        self.keyless: set[IPAddress] = set()
        self.refusals: dict[IPAddress, str] = {}
        self.unusable: set[IPAddress] = set()
        self.heard: list[tuple[str, object]] = []
        self._number = 0

    def authenticate(self, gateway: IPAddress, now: float) -> FakeExchange:
        """Begin an exchange."""
        if gateway in self.keyless:
            raise LocalError("no key for it")
        self._number += 1
        self.exchanges[gateway] = FakeExchange(self._number, now, self.refusals.get(gateway, ""))
        return self.exchanges[gateway]

    def granted(
        self, gateway: IPAddress, exchange: InitiatorExchange, path: Path, now: float
    ) -> list[Action]:
        """Take the keys."""
        if gateway in self.unusable:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "nothing that was offered")
        self.heard.append(("granted", gateway))
        return []

    def confirm(self, gateway: IPAddress) -> list[Action]:
        """Send something under the new keys."""
        return [Send(b"dummy", Path(Endpoint(gateway, PORT)))]

    def failed(self, gateway: IPAddress, now: float) -> list[Action]:
        """Forget them."""
        self.heard.append(("failed", gateway))
        return []

    def rejected(self, cluster: str, now: float) -> list[Action]:
        """Hear that there are none."""
        self.heard.append(("rejected", cluster))
        return []


class KMSTestCase(SynchronousTestCase):
    """Clusters `a` (first and second gateway) and `b` (second and third), in the order of the policy."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.client = Client()
        self.agenda = Agenda()
        self.kms = KeyManagementService(
            self.client, self.agenda, Random(1), port=PORT, exchange_time=EXCHANGE_TIME
        )
        self.kms.read([Cluster("a", GATEWAYS[:2]), Cluster("b", GATEWAYS[1:])], randomize=False)
        self.sent: list[tuple[float, bytes, IPAddress]] = []
        self.warnings: list[str] = []

    def do(self, actions: list[Action]) -> None:
        """Note what is to be sent and told."""
        for action in actions:
            if isinstance(action, Send):
                self.sent.append((self.now, action.datagram, action.path.remote.address))
            elif isinstance(action, Event):
                self.warnings.append(action.message.format(**action.fields))

    def request(self, cluster: str) -> None:
        """Ask for a key."""
        self.do(self.kms.request(cluster, self.now))

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (due := self.agenda.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.do(self.agenda.advance(self.now))
        self.now = end

    def hear(self, gateway: IPAddress, port: int = PORT, number: int | None = None) -> None:
        """Let a message of a gateway arrive; `number` is that of the exchange."""
        exchange = self.client.exchanges[gateway]
        exchange_id = exchange.exchange_id if number is None else number.to_bytes(8)
        message = Message(Mechanism.NOISE, 1, exchange_id, b"", b"")
        self.do(self.kms.receive(message, Path(Endpoint(gateway, port)), self.now))

    def asked(self) -> list[IPAddress]:
        """Return the gateways that got a first message, in turn."""
        return [gateway for _, datagram, gateway in self.sent if datagram == b"first"]


class RequestTests(KMSTestCase):
    """Requests of clusters."""

    def test_granted(self) -> None:
        """Keys go to the client, which confirms them; the request is answered when the gateway does so."""
        self.request("a")
        self.hear(FIRST)
        self.assertEqual(self.client.heard, [("granted", FIRST)])
        self.assertEqual([datagram for _, datagram, _ in self.sent], [b"first", b"acknowledgement", b"dummy"])
        self.assertEqual((self.kms.running, self.kms.established), ({FIRST}, 0))
        self.kms.confirmed(FIRST, self.now)
        self.assertEqual((self.kms.running, self.kms.established), (set(), 1))
        self.run_for(10)
        self.assertEqual(len(self.sent), 3)
        self.assertEqual(self.warnings, [])

    def test_granted_once(self) -> None:
        """A duplicate of the gateway's answer grants nothing again."""
        self.request("a")
        self.hear(FIRST)
        self.hear(FIRST)
        self.assertEqual(self.client.heard, [("granted", FIRST)])

    def test_confirmation_is_repeated(self) -> None:
        """The packet under the new keys is sent each 100 ms, six times, then at doubling intervals."""
        self.request("a")
        self.hear(FIRST)
        self.run_for(EXCHANGE_TIME)
        times = [when for when, datagram, _ in self.sent if datagram == b"dummy"]
        intervals = [round(later - earlier, 3) for earlier, later in pairwise(times)]
        self.assertEqual(intervals, [0.1] * 7 + [0.2, 0.4])
        self.assertIn(f"no key from gateway {FIRST}: its keys were never confirmed", self.warnings)
        self.assertEqual(self.asked(), [FIRST, SECOND])

    def test_next_gateway(self) -> None:
        """R3: no answer, a failed exchange, a refusal, unusable keys, no key in [PEERS]: the next gateway."""
        for what, reason in (
            ("silence", "no answer; but somebody laughed"),
            ("doom", "it is a goat"),
            ("refusal", "it refuses: the policy"),
            ("unusable", "authentication-failed: nothing that was offered"),
            ("keyless", "no key for it"),
            ("unreachable", "the network is unreachable"),
        ):
            self.setUp()
            self.client.refusals = {FIRST: "the policy"} if what == "refusal" else {}
            self.client.unusable = {FIRST} if what == "unusable" else set()
            self.client.keyless = {FIRST} if what == "keyless" else set()
            self.request("a")
            if what == "doom":
                self.client.exchanges[FIRST].doom = "it is a goat"
                self.hear_nothing()
            elif what in {"refusal", "unusable"}:
                self.hear(FIRST)
            elif what == "unreachable":
                self.do(self.kms.unreachable(FIRST, self.now))
            elif what == "silence":
                self.run_for(EXCHANGE_TIME)
            self.assertEqual(self.asked()[-1], SECOND, what)
            self.assertEqual(self.kms.running, {SECOND}, what)
            self.assertIn(f"no key from gateway {FIRST}: {reason}", self.warnings)
            self.assertNotIn(("rejected", "a"), self.client.heard)

    def hear_nothing(self) -> None:
        """Have the KMS look at the first gateway's exchange before its time is over."""
        self.do(self.kms._due(self.kms._running[FIRST], self.now))

    def test_rejected(self) -> None:
        """R3: when all have failed the client hears so once, and again at once within the back-off."""
        self.request("a")
        self.run_for(2 * EXCHANGE_TIME)
        rejections = [what for what in self.client.heard if what[0] == "rejected"]
        self.assertEqual(rejections, [("rejected", "a")])
        self.assertIn("no gateway of a gives a key", self.warnings)
        self.request("a")
        self.assertEqual(self.client.heard[-2:], [("rejected", "a")] * 2)
        self.assertEqual(len(self.asked()), 2)
        self.run_for(1.25)
        self.request("a")
        self.assertEqual(len(self.asked()), 3)

    def test_back_off_is_reset(self) -> None:
        """R3: after a success the back-off begins at its first value again."""
        for _ in range(4):
            self.request("a")
            self.run_for(2 * EXCHANGE_TIME + 10)
        self.request("a")
        self.hear(self.asked()[-1])
        self.kms.confirmed(self.asked()[-1], self.now)
        self.request("a")
        self.run_for(2 * EXCHANGE_TIME + 1.25)
        before = len(self.asked())
        self.request("a")
        self.assertEqual(len(self.asked()), before + 1)

    def test_shared(self) -> None:
        """R4: a gateway that two clusters want is asked once; each cluster goes on for itself if it fails."""
        self.client.keyless = {FIRST}
        self.request("a")
        self.request("b")
        self.assertEqual(self.asked(), [SECOND])
        self.run_for(EXCHANGE_TIME)
        self.assertEqual(self.asked(), [SECOND, THIRD])
        self.assertEqual([what for what in self.client.heard if what[0] == "rejected"], [("rejected", "a")])
        self.hear(THIRD)
        self.kms.confirmed(THIRD, self.now)
        self.run_for(60)
        self.assertNotIn(("rejected", "b"), self.client.heard)

    def test_put_last(self) -> None:
        """R3: a gateway that left or failed is asked last, but asked."""
        self.kms.put_last(FIRST, self.now)
        self.request("a")
        self.run_for(EXCHANGE_TIME)
        self.assertEqual(self.asked(), [SECOND, FIRST])

    def test_renewed(self) -> None:
        """A rekey is an exchange that no cluster asked for: its failure is told, and rejects nobody."""
        self.do(self.kms.renew(FIRST, self.now))
        self.do(self.kms.renew(FIRST, self.now))
        self.assertEqual(self.asked(), [FIRST])
        self.run_for(EXCHANGE_TIME)
        self.assertEqual(self.client.heard, [("failed", FIRST)])
        self.assertEqual((self.kms.failures, self.kms.running), (1, set()))


class MessageTests(KMSTestCase):
    """R3: one exchange runs wholly with one gateway; what is not of it is a `RemoteError`."""

    def refusal(self, gateway: IPAddress, port: int = PORT, number: int | None = None) -> DropReason:
        """Return why a message is dropped."""
        error: RemoteError = self.assertRaises(RemoteError, self.hear, gateway, port, number)
        return error.reason

    def test_foreign(self) -> None:
        """Another exchange, another gateway, another port, or none at all."""
        self.request("a")
        self.client.exchanges[SECOND] = self.client.exchanges[FIRST]
        self.assertIs(self.refusal(FIRST, number=99), DropReason.UNKNOWN_EXCHANGE)
        self.assertIs(self.refusal(SECOND), DropReason.UNKNOWN_EXCHANGE)
        self.assertIs(self.refusal(FIRST, port=4501), DropReason.WRONG_ORIGIN)
        self.run_for(EXCHANGE_TIME)
        self.assertIs(self.refusal(FIRST), DropReason.UNKNOWN_EXCHANGE)

    def test_confirmed_without_exchange(self) -> None:
        """Confirmation and unreachability of a gateway without an exchange change nothing."""
        self.kms.confirmed(FIRST, self.now)
        self.assertEqual(self.kms.unreachable(FIRST, self.now), [])
        self.assertEqual((self.kms.established, self.kms.failures), (0, 0))


class PolicyTests(KMSTestCase):
    """The policy read again."""

    def test_cluster_gone(self) -> None:
        """The request of a cluster that is no more is forgotten, the exchange it began goes on for others."""
        self.request("a")
        self.kms.read([Cluster("b", (FIRST, THIRD))], randomize=False)
        self.request("b")
        self.assertEqual(self.asked(), [FIRST])
        self.run_for(EXCHANGE_TIME)
        self.assertEqual(self.asked(), [FIRST, THIRD])
        self.run_for(EXCHANGE_TIME)
        self.assertEqual([what for what in self.client.heard if what[0] == "rejected"], [("rejected", "b")])

    def test_gateway_gone(self) -> None:
        """R3: from a gateway that is no more, a request goes on to the next one; a rekey ends."""
        self.request("a")
        self.do(self.kms.renew(THIRD, self.now))
        for gateway in FIRST, THIRD, ip_address("198.51.100.99"):
            self.do(self.kms.leave(gateway, self.now))
        self.assertEqual(self.asked(), [FIRST, THIRD, SECOND])
        self.assertEqual(self.kms.running, {SECOND})

    def test_members_changed(self) -> None:
        """A request under way asks gateways that came, and not those that went."""
        self.kms.read([Cluster("a", (FIRST, SECOND))], randomize=False)
        self.request("a")
        self.kms.read([Cluster("a", (THIRD, FIRST))], randomize=False)
        self.run_for(2 * EXCHANGE_TIME)
        self.assertEqual(self.asked(), [FIRST, THIRD])
        self.assertIn(("rejected", "a"), self.client.heard)

    def test_order(self) -> None:
        """R1: each reading shuffles, unless it is told not to."""
        members = tuple(ip_address(f"198.51.100.{number}") for number in range(20))
        self.kms.read([Cluster("c", members)], randomize=False)
        self.assertEqual(tuple(self.kms.order("c")), members)
        orders = set()
        for _ in range(5):
            self.kms.read([Cluster("c", members)], randomize=True)
            orders.add(tuple(self.kms.order("c")))
        self.assertEqual(len(orders), 5)
        self.assertTrue(all(set(order) == set(members) for order in orders))
