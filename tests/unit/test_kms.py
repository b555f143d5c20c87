"""The key management service by itself: which gateway is asked when, and who hears of it (R1 to R4)."""

from ipaddress import ip_address
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.failover.kms import KeyManagementService
from rvpn.interfaces import Action, Event, IPAddress
from rvpn.policy.model import Cluster

FIRST, SECOND, THIRD = GATEWAYS = tuple(ip_address(f"198.51.100.{number}") for number in (21, 22, 23))
EXCHANGE_TIME = 2.0


class Client:
    """A `Requester` that writes down what it hears; it has no key for the gateways that are `keyless`."""

    def __init__(self) -> None:
        self.kms = KeyManagementService(self, Random(1))
        self.keyless: set[IPAddress] = set()
        self.running: set[IPAddress] = set()
        self.asked: list[IPAddress] = []
        self.rejections: list[str] = []

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Begin an exchange, unless one is under way."""
        if gateway in self.keyless:
            return self.kms.given_up(gateway, "no key for it", now)
        if gateway not in self.running:
            self.running.add(gateway)
            self.asked.append(gateway)
        return []

    def rejected(self, cluster: str, now: float) -> list[Action]:
        """Hear that there are none."""
        self.rejections.append(cluster)
        return []


class KMSTestCase(SynchronousTestCase):
    """Clusters `a` (first and second gateway) and `b` (second and third), in the order of the policy."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.client = Client()
        self.kms = self.client.kms
        self.kms.read([Cluster("a", GATEWAYS[:2]), Cluster("b", GATEWAYS[1:])], randomize=False)
        self.warnings: list[str] = []

    def do(self, actions: list[Action]) -> None:
        """Note what is told."""
        for action in actions:
            assert isinstance(action, Event)
            self.warnings.append(action.message.format(**action.fields))

    def request(self, cluster: str) -> None:
        """Ask for a key."""
        self.do(self.kms.request(cluster, self.now))

    def confirm(self, gateway: IPAddress) -> None:
        """Let an exchange lead to keys."""
        self.client.running.remove(gateway)
        self.kms.confirmed(gateway)

    def give_up(self, gateway: IPAddress, reason: str = "no answer") -> None:
        """Let an exchange lead to none, at once."""
        self.client.running.remove(gateway)
        self.do(self.kms.given_up(gateway, reason, self.now))

    def silence(self) -> None:
        """Let no gateway answer the exchanges that are under way."""
        self.now += EXCHANGE_TIME
        for gateway in sorted(self.client.running):
            self.give_up(gateway)


class RequestTests(KMSTestCase):
    """Requests of clusters."""

    def test_granted(self) -> None:
        """R2: a request is under way until its gateway's keys are confirmed, then there may be another."""
        self.request("a")
        self.request("a")
        self.assertEqual((self.client.asked, self.kms.established), ([FIRST], 0))
        self.confirm(FIRST)
        self.assertEqual((self.kms.established, self.kms.failures), (1, 0))
        self.request("a")
        self.assertEqual(self.client.asked, [FIRST, FIRST])
        self.assertEqual((self.client.rejections, self.warnings), ([], []))

    def test_next_gateway(self) -> None:
        """R3: after an exchange that yields no keys, or cannot begin, the next gateway is asked at once."""
        for keyless in (False, True):
            self.setUp()
            self.client.keyless = {FIRST} if keyless else set()
            self.request("a")
            if not keyless:
                self.give_up(FIRST, "it is a goat")
            reason = "no key for it" if keyless else "it is a goat"
            self.assertEqual(self.warnings, [f"no key from gateway {FIRST}: {reason}"])
            self.assertEqual(self.client.asked[-1], SECOND)
            self.assertEqual(self.client.running, {SECOND})
            self.assertEqual((self.kms.failures, self.client.rejections), (1, []))

    def test_no_keys_at_all(self) -> None:
        """R3: a cluster of any size is rejected at once if the policy has a key for none of its gateways."""
        gateways = tuple(ip_address("2001:db8::") + number for number in range(2000))
        self.kms.read([Cluster("c", gateways), Cluster("d", gateways[::-1])], randomize=False)
        self.client.keyless = set(gateways)
        for cluster in ("c", "d"):
            self.request(cluster)
        self.assertEqual((self.client.rejections, self.client.asked), (["c", "d"], []))
        told = [line for line in self.warnings if "no key from gateway" in line]
        self.assertEqual((len(told), self.kms.failures), (4000, 4000))
        self.assertIn(str(gateways[0]), told[0])
        self.assertIn(str(gateways[-1]), told[1999])

    def test_rejected(self) -> None:
        """R3: when all have failed the client hears so once, and again at once within the back-off."""
        self.request("a")
        self.silence()
        self.silence()
        self.assertEqual(self.client.rejections, ["a"])
        self.assertIn("no gateway of a gives a key", self.warnings)
        self.request("a")
        self.assertEqual(self.client.rejections, ["a", "a"])
        self.assertEqual(len(self.client.asked), 2)
        self.now = self.kms.barred_until("a")
        self.request("a")
        self.assertEqual(len(self.client.asked), 3)

    def test_back_off_is_reset(self) -> None:
        """R3: after a success, or when the network has changed, the back-off is at its first value again."""
        for changed in (False, True):
            self.setUp()
            for _ in range(4):
                self.request("a")
                self.silence()
                self.silence()
                self.now = self.kms.barred_until("a")
            if changed:
                self.kms.end_backoff()
            else:
                self.request("a")
                self.confirm(FIRST)
            self.request("a")
            self.silence()
            self.silence()
            self.assertLessEqual(self.kms.barred_until("a"), self.now + 1.25)

    def test_shared(self) -> None:
        """R4: a gateway that two clusters want is asked once; each cluster goes on for itself if it fails."""
        self.client.keyless = {FIRST}
        self.request("a")
        self.request("b")
        self.assertEqual(self.client.asked, [SECOND])
        self.silence()
        self.assertEqual(self.client.asked, [SECOND, THIRD])
        self.assertEqual(self.client.rejections, ["a"])
        self.confirm(THIRD)
        self.request("b")
        self.assertEqual(self.client.rejections, ["a"])

    def test_put_last(self) -> None:
        """R3: a gateway that left or failed is asked last, but asked, until it gives keys again."""
        self.kms.put_last(FIRST, self.now)
        self.request("a")
        self.silence()
        self.assertEqual(self.client.asked, [SECOND, FIRST])
        self.confirm(FIRST)
        self.request("a")
        self.assertEqual(self.client.asked, [SECOND, FIRST, FIRST])

    def test_renewed(self) -> None:
        """A rekey is an exchange that no cluster asked for: its failure is told, and rejects nobody."""
        self.do(self.client.authenticate(FIRST, self.now))
        self.silence()
        self.assertEqual(self.warnings, [f"no key from gateway {FIRST}: no answer"])
        self.assertEqual((self.kms.failures, self.client.running, self.client.rejections), (1, set(), []))


class PolicyTests(KMSTestCase):
    """The policy read again."""

    def test_cluster_gone(self) -> None:
        """The request of a cluster that is no more is forgotten, the exchange it began goes on for others."""
        self.request("a")
        self.kms.read([Cluster("b", (FIRST, THIRD))], randomize=False)
        self.request("b")
        self.assertEqual(self.client.asked, [FIRST])
        self.silence()
        self.assertEqual(self.client.asked, [FIRST, THIRD])
        self.silence()
        self.assertEqual(self.client.rejections, ["b"])

    def test_members_changed(self) -> None:
        """Who asks again after a reload gets gateways that came, and not those that went."""
        self.request("a")
        self.kms.read([Cluster("a", (THIRD, FIRST))], randomize=False)
        self.request("a")
        self.silence()
        self.silence()
        self.assertEqual(self.client.asked, [FIRST, THIRD, FIRST])
        self.assertEqual(self.client.rejections, ["a"])

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

    def test_order_around_the_one_in_use(self) -> None:
        """R1: while a gateway is in use each reading shuffles those before it, and those behind it."""
        members = tuple(ip_address(f"198.51.100.{number}") for number in range(20))
        self.kms.read([Cluster("c", members)], randomize=True)
        before = list(self.kms.order("c"))
        orders = set()
        for _ in range(5):
            self.kms.read([Cluster("c", members)], randomize=True, in_use={"c": before[8], "d": FIRST})
            order = list(self.kms.order("c"))
            self.assertEqual((order[8], set(order[:8])), (before[8], set(before[:8])))
            orders.add(tuple(order))
        self.assertEqual(len(orders), 5)
        self.kms.read([Cluster("c", members[:-1])], randomize=True, in_use={"c": members[0]})
        self.assertEqual(set(self.kms.order("c")), set(members[:-1]))
