"""What a gateway grants to whom, by itself (DESIGN 4)."""

from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Mechanism, TransformID
from rvpn.gateway.admission import Admission
from rvpn.gateway.clients import Clients
from rvpn.interfaces import PeerIdentity
from rvpn.keyexchange.terms import Terms
from rvpn.policy.model import Client, Policy
from rvpn.session.lost_keys import LostKeys
from rvpn.session.session_control import Status
from rvpn.session.sessions import SAPair, Session, SessionCache
from tests.unit.session_ends import HERE, FakeContext, answer, offer

INNERS = ip_address("10.99.0.1"), ip_address("10.99.0.2")
ALICE, BOB = (
    Client(number, PeerIdentity(Mechanism.NOISE, name), (inner,))
    for number, name, inner in zip((1, 2), ("alice", "bob"), INNERS, strict=True)
)
POLICY = Policy(clients=(ALICE, BOB), transforms=(TransformID.AES_GCM_16_256,))


@dataclass
class Gateway:
    """What admission needs to know."""

    cache: SessionCache = field(default_factory=lambda: SessionCache(Random(1)))
    clients: Clients = field(default_factory=Clients)
    draining: bool = False
    fitness: Status = Status.OK
    lost_keys: LostKeys = field(default_factory=lambda: LostKeys(bytes(32), 1))
    terms: Terms = field(default_factory=Terms)


class AdmissionTests(SynchronousTestCase):
    """A gateway with two clients."""

    def setUp(self) -> None:
        """Let it read its policy."""
        self.gateway = Gateway()
        self.gateway.terms.policy = POLICY
        self.gateway.clients.read(POLICY)
        self.admission = Admission(self.gateway)
        self.wants = offer(1000)  # the first address

    def refusal(self, client: Client, now: float = 0.0) -> str:
        """Return what a client is told."""
        return self.admission.answer(client, self.wants, now).refusal

    def connect(self, client: Client) -> None:
        """Give a client a session, whose keys live for a minute."""
        session = Session(client.identity, client.identity, HERE, client.inner_addresses, 0.0)
        pair = SAPair(FakeContext(answer(3000), self.wants), initiator=False, path=HERE, now=0.0)
        self.gateway.cache.add_pair(session, pair)
        self.gateway.cache.confirm(pair)

    def test_granted(self) -> None:
        """A client gets its own address, and hears how the gateway is and what proves that keys are lost."""
        self.gateway.fitness = Status.DRAINING
        told = self.admission.answer(ALICE, self.wants, 0.0)
        self.assertEqual((told.refusal, told.inner_addresses), ("", (INNERS[0],)))
        self.assertEqual(told.status, Status.DRAINING)
        self.assertEqual(told.lost_key_token, self.gateway.lost_keys.token(told.spi))

    def test_refused(self) -> None:
        """A client gets no session by another's address, without a transform in common, or by chance."""
        self.assertEqual(self.refusal(BOB), "it is granted other inner addresses")
        for changed, words in (
            ({"inner_addresses": ()}, "it is granted other inner addresses"),
            ({"transforms": (TransformID.CHACHA20_POLY1305,)}, "no transform in common"),
            ({"literal_heartbeats": True}, "HeartbeatAuthentication differs"),
        ):
            self.wants = replace(offer(1000), **changed)
            self.assertEqual(self.refusal(ALICE), words)

    def test_taken(self) -> None:
        """An address is nobody else's while a client uses it, nor while the policy gives it to another."""
        self.assertEqual(self.admission.taken(ALICE.identity, INNERS[:1]), "")
        self.assertIn("that of Client2", self.admission.taken(ALICE.identity, INNERS))
        self.connect(BOB)
        self.assertIn("uses 10.99.0.2 now", self.admission.taken(ALICE.identity, INNERS[1:]))
        self.assertEqual(self.admission.taken(BOB.identity, INNERS[1:]), "")

    def test_draining(self) -> None:
        """X4: a gateway that drains renews keys that are old, and gives no others."""
        self.gateway.draining = True
        self.assertEqual(self.refusal(ALICE), "it is draining")
        self.connect(ALICE)
        self.assertEqual(self.refusal(ALICE, now=30.0), "it is draining")
        self.assertEqual(self.refusal(ALICE, now=59.0), "")

    def test_call(self) -> None:
        """A client that is called is offered its own addresses."""
        self.assertEqual(self.admission.offer(BOB).inner_addresses, BOB.inner_addresses)
