"""Nodes that know each other by certificates: sessions, calls, revocation, expiry, and who is refused."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import KEY_EXCHANGE_MARKER, HeartbeatMode, Mechanism, Role
from rvpn.gateway.node import Gateway
from rvpn.keyexchange.credentials import Authenticator, Credentials
from rvpn.policy.model import Client as PolicyClient
from tests.certificates import Authority, Issued, authenticator
from tests.unit.certified import CA, RANGE, CertifiedNetwork, client_side, gateway_side, who
from tests.unit.simulation import CLIENT_ENDPOINT, INNER, INNERS, TARGET, Host, Network, identity, udp_packet

PACKET = udp_packet(INNER, TARGET, b"there")
BACK = udp_packet(TARGET, INNER, b"back")


class CertifiedTests(SynchronousTestCase):
    """One client, and one gateway unless a test says otherwise."""

    def begin(self, **more: Any) -> CertifiedNetwork:
        """Return a network with a session."""
        network = CertifiedNetwork(**more)
        network.send(network.client, PACKET)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered, [PACKET])
        return network

    def told(self, host: Host[Any], words: str) -> None:
        """Assert that a host's log has a line with these words."""
        self.assertTrue(any(words in event for event in host.events), host.events)

    def test_session(self) -> None:
        """A gateway that was told of no client takes one with a certificate, and gives it its addresses."""
        network = self.begin()
        gateway = network.gateways[0]
        network.send(gateway, BACK)
        network.run(0.1)
        self.assertEqual(network.client.delivered, [BACK])
        self.told(gateway, "session with client alice (Test CA) at 192.0.2.1:4500 established")
        (session,) = gateway.node.status(network.now)["sessions"]
        self.assertEqual(session["peer"], "alice (Test CA)")
        self.assertEqual(
            {
                key: session["authentication"][key]
                for key in ("mechanism", "group", "certificate", "authority")
            },
            {"mechanism": "tls", "group": "X25519MLKEM768", "certificate": "alice", "authority": "Test CA"},
        )
        (session,) = network.client.node.status(network.now)["sessions"]
        self.assertEqual(session["authentication"]["certificate"], "gw1")

    def test_no_fallback(self) -> None:
        """A client of `tls` says nothing in any other mechanism, whoever answers."""
        network = CertifiedNetwork()
        network.gateways[0].alive = False
        network.send(network.client, PACKET)
        network.run(20)
        exchanges = {d[6] for _, d, _, _ in network.sent if d[:4] == KEY_EXCHANGE_MARKER}
        self.assertEqual(exchanges, {Mechanism.TLS})

    def test_failover(self) -> None:
        """A failed gateway is left for another one, known by its certificate too."""
        network = self.begin(
            gateways=3,
            heartbeat=HeartbeatMode.INSTANT,
            heartbeat_defer_time=0.1,
            heartbeat_response_time=0.05,
            randomize_clusters=False,
            standby=1,
        )
        network.gateways[0].alive = False
        network.run(0.5)
        network.send(network.client, PACKET)
        network.run(0.1)
        self.assertEqual(network.gateways[1].delivered, [PACKET])

    def test_bad_gateway(self) -> None:
        """A gateway with a bad certificate costs no ExchangeTime: the client goes on to the next one."""
        names = ("gw9", "198.51.100.29"), ("gw2", "198.51.100.22")
        ends = [gateway_side(CA.gateway(*each)) for each in names]
        network = CertifiedNetwork(gateways=2, gateway_ends=ends, randomize_clusters=False)
        network.send(network.client, PACKET)
        network.run(0.3)
        self.assertEqual(network.gateways[1].delivered, [PACKET])
        self.told(network.client, "no key from gateway 198.51.100.21: an answer did not authenticate: cert")

    def test_new_keys(self) -> None:
        """New keys of the same client go to the same session."""
        network = self.begin(key_lifetime=10.0)
        network.run(25)
        (session,) = network.gateways[0].node.cache
        self.assertEqual(session.opened_at, min(s.opened_at for s in network.gateways[0].node.cache))
        self.assertGreater(network.client.node.kms.established, 2)

    def test_call(self) -> None:
        """A gateway calls a client with a certificate where it last was, and is the client of TLS (R12)."""
        network = self.begin()
        gateway = network.gateways[0]
        (session,) = gateway.node.cache
        network.act(gateway, gateway.node.fail(session, "a test wants it", network.now))
        network.run(1)
        before = len(network.sent)
        network.send(gateway, BACK)
        network.run(1)
        self.assertEqual(network.client.delivered[-1:], [BACK])
        first = next(d for _, d, _, _ in network.sent[before:] if d[:4] == KEY_EXCHANGE_MARKER)
        self.assertEqual(first[6], Mechanism.TLS)
        self.assertEqual(network.client.node.status(network.now)["sessions"][0]["gateway"], "198.51.100.21")

    def test_called_with_another_certificate(self) -> None:
        """A called client gets the addresses of the certificate that it shows, not those it had before."""
        network = self.begin()
        gateway = network.gateways[0]
        network.certify(network.client, client_side(CA.client("alice", "10.99.0.50")))
        (session,) = gateway.node.cache
        network.act(gateway, gateway.node.fail(session, "a test wants it", network.now))
        network.run(1)
        network.send(gateway, BACK)
        network.run(20)
        self.assertEqual(list(gateway.node.cache), [])
        self.assertNotIn(BACK, network.client.delivered)

    def test_called_at_its_addresses(self) -> None:
        """Who came with another certificate is called no more for an address that only the old one had."""
        network = self.begin()
        gateway, alice = network.gateways[0], network.client.node
        network.certify(network.client, client_side(CA.client("alice", "10.99.0.50")))
        alice.exchanges.inner_addresses = (ip_address("10.99.0.50"),)
        network.act(network.client, alice.authenticate(gateway.endpoint.address, network.now))
        network.run(1)
        self.assertIsNone(gateway.node.clients.at(INNER.packed))
        self.assertIsNotNone(gateway.node.clients.at(ip_address("10.99.0.50").packed))

    def test_stranger_is_not_called(self) -> None:
        """Nobody is called who never came: a range of addresses is no address to send to."""
        network = CertifiedNetwork()
        network.send(network.gateways[0], BACK)
        network.run(1)
        self.assertEqual(network.sent, [])

    def test_revoked_client(self) -> None:
        """With a revocation list the client's session ends at once, and it cannot come again."""
        network = self.begin()
        gateway = network.gateways[0]
        end = gateway_side(network.gateway_certificates[0], revoked=network.certificates)
        network.certify(gateway, end)
        self.assertEqual(list(gateway.node.cache), [])
        self.told(gateway, "session with alice (Test CA) ended: certificate 'alice': it is revoked")
        network.run(1)
        self.assertEqual(list(network.client.node.cache), [])
        network.send(network.client, PACKET)
        network.run(5)
        self.assertEqual(list(gateway.node.cache), [])
        self.told(gateway, "certificate 'alice': found it is revoked, expected one that is not")
        network.send(gateway, BACK)
        network.run(1)
        self.assertNotIn(BACK, network.client.delivered, "nor is it called")

    def test_revoked_gateway(self) -> None:
        """A client leaves a gateway whose certificate was revoked, for another one."""
        network = self.begin(gateways=2, randomize_clusters=False)
        end = client_side(network.certificates[0], revoked=network.gateway_certificates[:1])
        network.certify(network.client, end)
        network.send(network.client, PACKET)
        network.run(1)
        self.assertEqual(network.gateways[1].delivered, [PACKET])
        self.told(network.client, "ended: certificate 'gw1': it is revoked")

    def test_revoked_during_call(self) -> None:
        """So it is with an exchange that the gateway began, at either end."""
        for at_gateway in (True, False):
            network = self.begin()
            gateway, client = network.gateways[0], network.client
            (session,) = gateway.node.cache
            network.act(gateway, gateway.node.fail(session, "a test wants it", network.now))
            network.run(1)
            network.send(gateway, BACK)
            network.run(0.00225)
            self.assertEqual(len(client.node.exchanges.calls.acceptor), 1, "half open")
            (own,), (its,) = network.certificates, network.gateway_certificates
            if at_gateway:
                network.certify(gateway, gateway_side(its, revoked=[own]))
            else:
                network.certify(client, client_side(own, revoked=[its]))
            network.run(5)
            self.assertEqual(list((gateway if at_gateway else client).node.cache), [])
            self.assertNotIn(BACK, client.delivered)

    def test_left_once(self) -> None:
        """The log says once that a gateway was left, however often files are read again."""
        network = self.begin()
        end = client_side(network.certificates[0], revoked=network.gateway_certificates)
        for _ in range(3):
            network.certify(network.client, end)
        network.act(network.client, network.client.node.reload(network.client.node._policy, network.now))
        left = [event for event in network.client.events if "left gateway 198.51.100.21 without" in event]
        self.assertEqual(len(left), 1)

    def read_meanwhile(self, network: CertifiedNetwork, host: Host[Any], end: Authenticator) -> None:
        """Let a host read its certificates again amid an exchange; assert that nothing comes of it."""
        network.run(0.00225)
        self.assertEqual(len(network.gateways[0].node.acceptances.acceptor), 1, "half open")
        network.certify(host, end)
        network.run(5)
        self.assertEqual(list(host.node.cache), [])
        self.assertEqual(network.gateways[0].delivered, [])

    def test_revoked_during_exchange(self) -> None:
        """An exchange that is half open when a list or the authorities change is judged by the new ones."""
        other = Authority("Other CA")
        network = CertifiedNetwork()
        gateway, (own,) = CA.gateway("gw1", "198.51.100.21"), network.certificates
        without = authenticator(Role.GATEWAY, gateway, other.accepted(RANGE))
        for end, words in (
            (gateway_side(gateway, revoked=[own]), "certificate 'alice': it is revoked"),
            (without, "the policy no longer has its authority"),
        ):
            network = CertifiedNetwork(client_ends=[client_side(own)])
            network.send(network.client, PACKET)
            self.read_meanwhile(network, network.gateways[0], end)
            self.told(network.gateways[0], words)
        network = CertifiedNetwork(gateway_ends=[gateway_side(gateway)])
        network.send(network.client, PACKET)
        self.read_meanwhile(network, network.client, client_side(own, revoked=[gateway]))
        self.told(network.client, "certificate 'gw1': it is revoked")

    def test_others_stay(self) -> None:
        """What is read again disturbs nobody else: not with a renewed certificate of this node either."""
        network = self.begin()
        gateway, sent = network.gateways[0], len(network.sent)
        renewed, other = CA.gateway("gw1"), CA.client("mallory", "10.99.0.9")
        network.certify(gateway, gateway_side(renewed, revoked=[other]))
        network.certify(network.client, client_side(CA.client()))
        network.send(network.client, PACKET)
        network.run(0.1)
        self.assertEqual((len(gateway.delivered), len(network.sent)), (2, sent + 1))

    def test_withdrawn(self) -> None:
        """Sessions end when the policy has their authority no more, or gives it fewer addresses."""
        other = Authority("Other CA")
        narrow = CA.accepted(ip_network("10.99.0.128/25"))
        for accepted, words in (
            (other.accepted(RANGE), "the policy no longer has its authority"),
            (narrow, "certificate 'alice': inner address 10.99.0.1"),
        ):
            network = self.begin()
            gateway = network.gateways[0]
            network.certify(gateway, authenticator(Role.GATEWAY, network.gateway_certificates[0], accepted))
            self.assertEqual(list(gateway.node.cache), [])
            self.told(gateway, f"session with alice (Test CA) ended: {words}")

    def test_expiry(self) -> None:
        """A session ends at the second when the certificate of the other end does, at either end."""
        network = CertifiedNetwork()
        end = network.clock() + 60
        for own, host in (CA.client(end=end), "gateway"), (CA.gateway(end=end), "client"):
            ends = (
                {"client_ends": [client_side(own)]}
                if host == "gateway"
                else {"gateway_ends": [gateway_side(own)]}
            )
            network = self.begin(**ends)
            refuser = network.gateways[0] if host == "gateway" else network.client
            network.run(58)
            self.assertEqual(len(refuser.node.cache), 1)
            network.run(2)
            self.assertEqual(len(refuser.node.cache), 0)
            self.told(refuser, "ended: its certificate has expired")

    def test_new_keys_until_expiry(self) -> None:
        """Nothing piles up where keys are renewed often, and the newest certificate counts."""
        network = self.begin(key_lifetime=1.0)
        appointments = len(network.gateways[0].node.agenda)
        network.run(100)
        self.assertLess(len(network.gateways[0].node.agenda), appointments + 40)

    def test_clock_set_back(self) -> None:
        """A clock that was set back meanwhile gives the certificate its time."""
        network = self.begin(client_ends=[client_side(CA.client(end=CertifiedNetwork().clock() + 7200))])
        gateway = network.gateways[0].node
        gateway.time_of_day = lambda: network.clock() - 3600
        network.run(7300)
        self.assertEqual(len(gateway.cache), 1)
        network.run(3600)
        self.assertEqual(len(gateway.cache), 0)

    def test_address_in_use(self) -> None:
        """An inner address that is live under one identity is refused to another (DESIGN 4)."""
        ends = [client_side(CA.client(name, "10.99.0.1", "10.99.0.2")) for name in ("alice", "bob")]
        network = self.begin(clients=2, client_ends=ends)
        bob = network.clients[1]
        bob.node.exchanges.inner_addresses = (INNER, INNERS[1])
        network.send(bob, udp_packet(INNERS[1], TARGET, b"mine"))
        network.run(3)
        self.assertEqual([session.peer for session in network.gateways[0].node.cache], [who("alice")])
        self.told(network.gateways[0], "refused bob (Test CA): another client uses 10.99.0.1 now")

    def test_address_asked_for_twice(self) -> None:
        """Where two ask for one address at the same time, who proves to have keys first has it."""
        ends = [client_side(CA.client(name, "10.99.0.1")) for name in ("alice", "bob")]
        network = CertifiedNetwork(clients=2, client_ends=ends)
        for host in network.clients:
            host.node.exchanges.inner_addresses = (INNER,)
            host.node._packed_addresses = frozenset((INNER.packed,))
            network.send(host, PACKET)
        network.run(0.00275)
        gateway = network.gateways[0]
        self.assertEqual(len(gateway.node.acceptances), 2, "both are accepted, neither has proved anything")
        network.run(4)
        self.assertEqual([session.peer for session in gateway.node.cache], [who("alice")])
        self.assertEqual(gateway.delivered, [PACKET])
        self.assertEqual(len(gateway.node.acceptances), 0)

    def test_one_identity_twice(self) -> None:
        """Of two machines with one certificate the newest wins, and the gateway says that there are two."""
        ends = [client_side(CA.client("alice", "10.99.0.1", "10.99.0.2"))] * 2
        network = self.begin(clients=2, client_ends=ends)
        network.send(network.clients[1], udp_packet(INNERS[1], TARGET, b"mine"))
        network.run(1)
        (session,) = network.gateways[0].node.cache
        self.assertEqual(session.path.remote.address, CLIENT_ENDPOINT.address + 1)
        self.told(network.gateways[0], "do two machines have its key?")


class MixedTests(SynchronousTestCase):
    """A gateway with both identities."""

    def setUp(self) -> None:
        """Let the second client of a network of `noise` have a certificate instead."""
        self.network = network = Network(clients=2)
        self.gateway = network.gateways[0]
        named = network.gateway_policy.clients[:1]
        network.gateway_policy = replace(network.gateway_policy, clients=named)
        both = Credentials(network.keys[0], certificates=gateway_side(CA.gateway()))
        network.gateways[0].node = Gateway(
            network.gateway_policy,
            both,
            network.random,
            network.clock,
            network.now,
            lost_keys=self.gateway.node.lost_keys,
        )
        self.use(CA.client("bob", "10.99.0.2"), "10.99.0.2")

    def use(self, own: Issued, inner: str) -> None:
        """Let the second client be one of `tls`."""
        network, (_, bob) = self.network, self.network.clients
        policy = replace(
            network.client_policy, mechanism=Mechanism.TLS, peers={}, inner_addresses=(ip_address(inner),)
        )
        bob.node = type(bob.node)(
            policy,
            Credentials(certificates=client_side(own)),
            (ip_address(inner),),
            network.random,
            network.clock,
            network.now,
        )

    def send(self, *inner: str) -> None:
        """Let each client send a packet."""
        for host, address in zip(self.network.clients, inner, strict=True):
            self.network.send(host, udp_packet(ip_address(address), TARGET, b"hello"))
        self.network.run(2)

    def test_both(self) -> None:
        """Either client comes by its own mechanism."""
        self.send("10.99.0.1", "10.99.0.2")
        peers = {session.peer for session in self.gateway.node.cache}
        self.assertEqual(peers, {identity(self.network.client_keys[0]), who("bob")})
        self.assertEqual(len(self.gateway.delivered), 2)

    def test_granted_to_another(self) -> None:
        """A certificate does not give what the policy gives to a client by name, be that one there or not."""
        self.use(CA.client("bob", "10.99.0.1"), "10.99.0.1")
        self.network.send(self.network.clients[1], udp_packet(INNER, TARGET, b"hello"))
        self.network.run(2)
        self.assertEqual(list(self.gateway.node.cache), [])
        self.assertTrue(
            any("10.99.0.1 is that of Client1 in [CLIENTS]" in event for event in self.gateway.events)
        )

    def test_reload(self) -> None:
        """When the policy gives an address to a client by name, who has it by certificate has to go."""
        self.send("10.99.0.1", "10.99.0.2")
        network = self.network
        carol = PolicyClient(2, identity(bytes(32)), (ip_address("10.99.0.2"),))
        policy = replace(network.gateway_policy, clients=(*network.gateway_policy.clients, carol))
        network.act(self.gateway, self.gateway.node.reload(policy, network.now))
        self.assertEqual([s.peer for s in self.gateway.node.cache], [identity(network.client_keys[0])])
