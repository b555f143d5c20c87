"""
What a policy withdraws when it is read again: sessions, keys under way, and what was remembered of the peers.

What may pass does so no longer from that moment on, whatever the peer does; all else goes on.
"""

from dataclasses import replace
from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import KEY_EXCHANGE_MARKER, NextHeader
from rvpn.interfaces import IPAddress, PeerIdentity
from rvpn.policy.model import Policy
from rvpn.session.sessions import SAPair
from tests.unit.simulation import (
    BACK,
    DELAY,
    INNER,
    OUT,
    Network,
    identity,
    key_exchange_only,
    perfect,
)

OTHER_INNER = ip_address("10.99.0.2")
OTHER_KEY = bytes(range(32))


class ReloadTestCase(SynchronousTestCase):
    """A client and a gateway."""

    def setUp(self) -> None:
        self.network = Network()
        self.client, self.gateway = self.network.client, self.network.gateways[0]

    def connect(self) -> SAPair:
        """Let a packet through to the LAN; return the keys that the client then has."""
        self.network.send(self.client, OUT)
        self.network.run(1)
        (session,) = self.client.node.cache
        assert session.sending is not None
        return session.sending

    def hang_up(self) -> None:
        """Let the client close its session, so that the gateway has to call it."""
        self.network.act(self.client, self.client.node.close(self.network.now))
        self.network.run(1.5)
        self.assertEqual(len(self.gateway.node.cache), 0)

    def without_client(self) -> Policy:
        """Return the gateway's policy without its client."""
        return replace(self.network.gateway_policy, clients=())

    def with_addresses(self, *addresses: IPAddress) -> Policy:
        """Return the gateway's policy with other inner addresses for its client."""
        policy = self.network.gateway_policy
        return replace(policy, clients=(replace(policy.clients[0], inner_addresses=addresses),))

    def with_key(self, peer: PeerIdentity) -> Policy:
        """Return the client's policy with another key for its gateway."""
        return replace(self.network.client_policy, peers={self.gateway.endpoint.address: peer})

    def reload_gateway(self, policy: Policy) -> None:
        """Let the gateway read a policy."""
        self.network.act(self.gateway, self.gateway.node.reload(policy, self.network.now))

    def reload_client(self, policy: Policy) -> None:
        """Let the client read a policy."""
        self.network.act(self.client, self.client.node.reload(policy, self.network.now))

    def exchanges(self) -> int:
        """Return how many datagrams of key exchanges were sent so far."""
        return sum(datagram[:4] == KEY_EXCHANGE_MARKER for _, datagram, _, _ in self.network.sent)


class GatewayTests(ReloadTestCase):
    """A gateway whose policy changes."""

    def test_deaf_client(self) -> None:
        """A client that is no longer granted its addresses gets nothing through, though it heeds no close."""
        for policy in (self.without_client, lambda: self.with_addresses(OTHER_INNER)):
            self.setUp()
            pair = self.connect()
            self.reload_gateway(policy())
            self.network.receive(self.gateway, pair.outbound.seal(OUT, NextHeader.IPV4), self.client.endpoint)
            self.assertEqual(self.gateway.delivered, [OUT])
            self.assertEqual((len(self.gateway.node.cache), self.gateway.node.cache.by_spi), (0, {}))
            self.network.run(1)
            self.assertEqual(len(self.client.node.cache), 0)

    def test_more_addresses(self) -> None:
        """A session lives on if the new policy grants its addresses and others."""
        self.connect()
        self.reload_gateway(self.with_addresses(OTHER_INNER, INNER))
        self.network.send(self.client, OUT)
        self.network.run(1)
        self.assertEqual(self.gateway.delivered, [OUT, OUT])
        self.assertEqual(self.client.node.kms.established, 1)

    def test_linger(self) -> None:
        """What is under way when a client closes still arrives, unless the policy withdraws it (R8)."""
        for reloads, arrives in ((False, [OUT, OUT]), (True, [OUT])):
            self.setUp()
            pair = self.connect()
            self.hang_up()
            if reloads:
                self.reload_gateway(self.without_client())
            self.network.receive(self.gateway, pair.outbound.seal(OUT, NextHeader.IPV4), self.client.endpoint)
            self.assertEqual(self.gateway.delivered, arrives)

    def test_unconfirmed(self) -> None:
        """Keys that a client has yet to confirm become no session if the policy no longer grants it any."""
        for policy in (self.without_client, lambda: self.with_addresses(OTHER_INNER)):
            self.setUp()
            self.network.wire = key_exchange_only
            self.network.send(self.client, OUT)
            self.network.run(0.01)
            self.assertEqual(self.gateway.node.status(self.network.now)["exchanges"]["running"], 1)
            self.reload_gateway(policy())
            self.assertEqual(self.gateway.node.status(self.network.now)["exchanges"]["running"], 0)
            self.network.wire = perfect
            self.network.run(1.5)
            self.assertEqual((len(self.gateway.node.cache), self.gateway.delivered), (0, []))
            self.assertEqual(self.gateway.node.cache.by_spi, {})

    def test_unconfirmed_goes_on(self) -> None:
        """Keys under way of a client that the policy still grants become a session."""
        self.network.wire = key_exchange_only
        self.network.send(self.client, OUT)
        self.network.run(0.01)
        self.reload_gateway(self.network.gateway_policy)
        self.network.wire = perfect
        self.network.run(1)
        self.assertEqual(len(self.gateway.node.cache), 1)

    def test_call(self) -> None:
        """A call to a client ends if the policy withdraws what it offers, confirmed or not (R12)."""
        for wire, seconds in ((perfect, DELAY / 2), (key_exchange_only, 0.01)):
            self.setUp()
            self.connect()
            self.hang_up()
            self.network.wire = wire
            self.network.send(self.gateway, BACK)
            self.network.run(seconds)
            self.reload_gateway(self.without_client())
            self.network.wire = perfect
            self.network.run(3)
            self.assertEqual((len(self.gateway.node.cache), len(self.client.node.cache)), (0, 0))
            self.assertEqual(self.client.delivered, [])
            (error,) = self.gateway.delivered[1:]
            self.assertEqual((error[9], error[20]), (1, 3))

    def test_call_goes_on(self) -> None:
        """A call to a client that the policy still grants the same is not disturbed."""
        self.connect()
        self.hang_up()
        self.network.send(self.gateway, BACK)
        self.reload_gateway(self.network.gateway_policy)
        self.network.run(1)
        self.assertEqual(self.client.delivered, [BACK])

    def test_timestamps_are_forgotten(self) -> None:
        """The timestamp of a client that the policy lacks is forgotten: its next exchange takes a cookie."""
        for policy, forgotten in ((self.network.gateway_policy, False), (self.without_client(), True)):
            self.setUp()
            self.connect()
            self.reload_gateway(policy)
            self.reload_gateway(self.network.gateway_policy)
            self.network.run(1)
            before = self.exchanges()
            address = self.gateway.endpoint.address
            self.network.act(self.client, self.client.node.authenticate(address, self.network.now))
            self.network.run(1)
            self.assertEqual(self.exchanges() - before > 2, forgotten)


class ClientTests(ReloadTestCase):
    """A client whose policy changes."""

    def test_other_key(self) -> None:
        """Of a gateway without the key of the new policy nothing is taken, though it hears no close."""
        self.connect()
        (session,) = self.gateway.node.cache
        assert session.sending is not None
        self.reload_client(self.with_key(identity(OTHER_KEY)))
        self.assertEqual((len(self.client.node.cache), self.client.node.cache.by_spi), (0, {}))
        late = session.sending.outbound.seal(BACK, NextHeader.IPV4)
        self.network.receive(self.client, late, self.gateway.endpoint)
        self.network.run(3)
        self.assertEqual(self.client.delivered, [])
        self.assertEqual((len(self.client.node.cache), len(self.gateway.node.cache)), (0, 0))

    def test_other_key_in_an_exchange(self) -> None:
        """An exchange under the old key gives no session, granted or not; one under the new key follows."""
        for wire, seconds in ((perfect, DELAY / 2), (key_exchange_only, 0.01)):
            for key in (OTHER_KEY, self.network.keys[0]):
                self.setUp()
                true = identity(self.network.keys[0])
                self.reload_client(self.with_key(true))
                self.network.wire = wire
                self.network.send(self.client, OUT)
                self.network.run(seconds)
                self.reload_client(self.with_key(identity(key)))
                self.network.wire = perfect
                self.network.run(3)
                same = identity(key) == true
                self.assertEqual((len(self.client.node.cache), len(self.gateway.node.cache)), (same, same))

    def test_new_key_in_an_exchange(self) -> None:
        """A gateway that gets a new key while it is asked is asked again at once, under that key."""
        self.gateway.alive = False
        self.network.send(self.client, OUT)
        self.network.run(0.05)
        self.network.keys[0] = OTHER_KEY
        self.network.restart(0)
        self.reload_client(self.with_key(identity(OTHER_KEY)))
        self.network.run(0.1)
        self.assertEqual(self.network.gateways[0].delivered, [OUT])

    def test_exchange_goes_on(self) -> None:
        """An exchange is not disturbed while its gateway's key stays."""
        self.network.send(self.client, OUT)
        self.network.sent.clear()
        self.reload_client(self.network.client_policy)
        self.assertEqual(self.network.sent, [])
        self.network.run(0.1)
        self.assertEqual(self.gateway.delivered, [OUT])

    def test_call(self) -> None:
        """A gateway that calls with the old key, and has yet to confirm it, gets no session (R12)."""
        for key, sessions in ((self.network.keys[0], 1), (OTHER_KEY, 0)):
            self.setUp()
            self.connect()
            self.hang_up()
            self.network.wire = key_exchange_only
            self.network.sent.clear()
            self.network.send(self.gateway, BACK)
            self.network.run(0.01)
            *_, (_, confirmation, _) = self.network.sent_by(self.gateway)
            self.reload_client(self.with_key(identity(key)))
            self.network.wire = perfect
            self.network.receive(self.client, confirmation, self.gateway.endpoint)
            self.network.run(0.01)
            self.assertEqual(len(self.client.node.cache), sessions)

    def test_timestamps_are_forgotten(self) -> None:
        """The timestamp of a key that the policy lacks is forgotten: the next call takes a cookie."""
        cookies = []
        for key in (self.network.keys[0], OTHER_KEY):
            self.setUp()
            self.connect()
            for _ in range(2):
                self.hang_up()
                before = self.exchanges()
                self.network.send(self.gateway, BACK)
                self.network.run(0.1)
                cookies.append(self.exchanges() - before > 2)
                self.assertEqual(self.client.delivered[-1], BACK)
                self.reload_client(self.with_key(identity(key)))
                self.reload_client(self.with_key(identity(self.network.keys[0])))
                self.network.run(1)
        self.assertEqual(cookies, [True, False, True, True])
