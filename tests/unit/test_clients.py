"""Whom a gateway knows, by key or by certificate, and whom it forgets (DESIGN 4, R12)."""

from dataclasses import replace
from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import Mechanism
from rvpn.gateway.clients import Clients
from rvpn.interfaces import PeerIdentity
from rvpn.policy.model import Client, Policy
from rvpn.session.sessions import Session
from tests.unit.session_ends import HERE, INNER, PEER, THERE

OTHER = ip_address("10.99.0.2")
ALICE = PeerIdentity(Mechanism.TLS, "alice (an authority)")
BY_KEY = Client(1, PEER, (INNER,))
BY_CERTIFICATE = Client(0, ALICE, (OTHER,))


class ClientsTests(SynchronousTestCase):
    """One client of the policy, and one with a certificate; both had a session."""

    def setUp(self) -> None:
        """Let both come."""
        self.clients = Clients()
        self.policy = Policy(clients=(BY_KEY,))
        self.clients.read(self.policy)
        self.clients.came(Session(PEER, PEER, HERE, (INNER,), 0.0))
        self.clients.came(Session(ALICE, ALICE, THERE, (OTHER,), 0.0))

    def test_both(self) -> None:
        """Both are known, are found by their inner addresses, and can be called where they were."""
        self.assertEqual(list(self.clients), [BY_KEY, BY_CERTIFICATE])
        for client, place in (BY_KEY, HERE), (BY_CERTIFICATE, THERE):
            self.assertTrue(self.clients.has(client))
            self.assertEqual(self.clients.at(client.inner_addresses[0].packed), client)
            self.assertEqual(self.clients.endpoint(client), place.remote)

    def test_nothing_changed(self) -> None:
        """A policy that is read again as it was, with no objection to anybody, changes nothing."""
        self.clients.read(self.policy)
        self.clients.forget(lambda _: "")
        self.test_both()

    def test_not_in_the_policy(self) -> None:
        """A client that the policy no longer has is forgotten, whatever is thought of its certificate."""
        self.clients.read(Policy())
        self.clients.forget(lambda _: "")
        self.assertEqual(list(self.clients), [BY_CERTIFICATE])
        self.assertFalse(self.clients.has(BY_KEY))
        self.assertIsNone(self.clients.at(INNER.packed))
        self.assertIsNone(self.clients.endpoint(BY_KEY))

    def test_objection(self) -> None:
        """A client with a certificate to which there is an objection is forgotten, and no other."""
        self.clients.forget(lambda session: "it is revoked" if session.peer == ALICE else "")
        self.assertEqual(list(self.clients), [BY_KEY])
        self.assertFalse(self.clients.has(BY_CERTIFICATE))
        self.assertIsNone(self.clients.at(OTHER.packed))
        self.assertTrue(self.clients.has(BY_KEY))

    def test_objection_to_a_key(self) -> None:
        """To a client of the policy objections are made by the policy alone."""
        self.clients.forget(lambda _: "it is revoked")
        self.assertEqual(self.clients.endpoint(BY_KEY), HERE.remote)

    def test_other_addresses(self) -> None:
        """A client whose addresses the policy has no more, or gives to another, is not what it was."""
        self.clients.read(Policy(clients=(replace(BY_KEY, inner_addresses=(OTHER,)),)))
        self.assertFalse(self.clients.has(BY_KEY))
        self.assertFalse(self.clients.has(BY_CERTIFICATE))
