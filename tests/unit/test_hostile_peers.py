"""
What a peer with true keys can do, by malice or because the network changes the order of its packets.

It may harm its own session, but no call of a node raises, and what it leaves behind is bounded.
"""

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import (
    HARD_LIMIT_PACKETS,
    KEY_EXCHANGE_MARKER,
    OLD_SA_LINGER,
    REKEY_WATCH_INTERVAL,
    Mechanism,
    NextHeader,
)
from rvpn.interfaces import Endpoint, PeerIdentity
from rvpn.policy.model import Tunnel
from rvpn.session.session_control import Kind
from tests.unit.simulation import (
    BACK,
    DELAY,
    INNER,
    OUT,
    Network,
    key_exchange_only,
    perfect,
)


def connected() -> Network:
    """Return a client and a gateway with a session."""
    network = Network()
    network.send(network.client, OUT)
    network.run(1)
    return network


class OrderTests(SynchronousTestCase):
    """Packets that arrive when nobody expects them any more."""

    def test_confirmation_after_close(self) -> None:
        """A close that overtakes the packet which confirms new keys ends the session all the same."""
        network = connected()
        gateway, held = network.gateways[0], []

        def hold_esp(datagram: bytes, source: Endpoint, destination: Endpoint) -> Iterable[float]:
            if source != gateway.endpoint or datagram[:4] in {KEY_EXCHANGE_MARKER, b"\xff" * 4}:
                return (DELAY,)
            held.append((datagram, source, destination))
            return ()

        network.wire = hold_esp
        network.act(network.client, network.client.node.authenticate(gateway.endpoint.address, network.now))
        network.run(0.01)
        network.act(gateway, gateway.node.close(network.now))
        network.run(0.05)
        network.wire = perfect
        for datagram in held:
            network.inject(*datagram)
        network.run(OLD_SA_LINGER + 1)
        self.assertEqual((len(held), len(network.client.node.cache)), (1, 0))
        network.send(network.client, OUT)
        network.run(1)
        self.assertEqual(gateway.delivered, [OUT, OUT])

    def test_confirmation_after_failure(self) -> None:
        """What confirms new keys of a gateway that was given up meanwhile does not bring it back (R8)."""
        network = connected()
        gateway, client, held = network.gateways[0], network.client.node, []

        def hold_proofs(datagram: bytes, source: Endpoint, destination: Endpoint) -> Iterable[float]:
            if source == gateway.endpoint and datagram[:4] != KEY_EXCHANGE_MARKER:
                held.append((datagram, source, destination))
                return ()
            return (DELAY,)

        network.wire = hold_proofs
        network.act(network.client, client.authenticate(gateway.endpoint.address, network.now))
        network.run(0.01)
        (session,) = client.cache
        network.act(network.client, client.fail(session, "a test", network.now))
        network.wire = perfect
        for datagram in held:
            network.inject(*datagram)
        network.run(1)
        self.assertGreaterEqual(len(held), 1)
        self.assertEqual(len(client.cache), 0)
        self.assertIsNone(client.failover.clusters["Cluster 1"].in_use)

    def test_close_before_confirmation(self) -> None:
        """A client that closes keys before it confirms them has no session, then or later."""
        network = Network(wire=key_exchange_only)
        network.send(network.client, OUT)
        network.run(0.01)
        gateway = network.gateways[0]
        (session,) = network.client.node.cache
        (pair,) = session.pairs
        network.receive(gateway, pair.control.send(Kind.CLOSE), network.client.endpoint)
        network.receive(gateway, pair.outbound.seal(b"", NextHeader.DUMMY), network.client.endpoint)
        network.run(OLD_SA_LINGER + 1)
        self.assertEqual((len(gateway.node.cache), gateway.node.cache.by_spi), (0, {}))
        network.send(gateway, BACK)
        network.run(OLD_SA_LINGER + 1)
        self.assertEqual((len(gateway.node.cache), gateway.node.cache.by_spi), (0, {}))
        self.assertEqual(gateway.node.status(network.now)["drops"], {"no-session": 1})

    def test_overtaken_keys(self) -> None:
        """Keys that are confirmed after newer ones were do not outlive those which the newer replaced."""
        network, restarted = self.overtaken()
        (session,) = network.client.node.cache
        late = session.pairs[0].outbound.seal(OUT, NextHeader.IPV4)
        restarted.receive(restarted.gateways[0], late, network.client.endpoint)
        self.assertEqual(restarted.gateways[0].delivered, [OUT, OUT])
        self.assertEqual(len(restarted.gateways[0].node.cache.by_spi), 2)
        restarted.run(OLD_SA_LINGER + 1)
        self.assertEqual(len(restarted.gateways[0].node.cache.by_spi), 1)

    def test_overtaken_claim(self) -> None:
        """A claim under such keys takes no address that the end of the client's session would not release."""
        network, restarted = self.overtaken()
        gateway = restarted.gateways[0]
        (session,) = network.client.node.cache
        late = session.pairs[0].control.send(Kind.CLAIM, generation=(1 << 96) - 1)
        restarted.receive(gateway, late, network.client.endpoint)
        self.assertTrue(gateway.node.presence.owns(INNER.packed))
        restarted.act(restarted.client, restarted.client.node.close(restarted.now))
        restarted.run(1)
        self.assertFalse(gateway.node.presence.owns(INNER.packed))

    def overtaken(self) -> tuple[Network, Network]:
        """Return a client whose keys nothing confirmed, and the same client after a restart, connected."""
        network = Network(wire=key_exchange_only)
        network.send(network.client, OUT)
        network.run(0.01)
        restarted = Network()
        restarted.gateways, restarted.now = network.gateways, network.now + 1
        restarted.random.seed(2)
        restarted.send(restarted.client, OUT)
        restarted.run(1)
        return network, restarted


class BoundTests(SynchronousTestCase):
    """What the keys of one peer may cost."""

    def test_rekeys_in_a_row(self) -> None:
        """However fast a client renews its keys, each old pair costs one appointment, and soon none."""
        network = connected()
        gateway, client = network.gateways[0], network.client.node
        for _ in range(100):
            network.act(network.client, client.authenticate(gateway.endpoint.address, network.now))
            network.run(0.01)
        self.assertEqual(client.kms.established, 101)
        self.assertLess(len(gateway.node.agenda), 110)
        network.run(OLD_SA_LINGER + 1)
        self.assertEqual((len(gateway.node.agenda), len(gateway.node.cache.by_spi)), (1, 1))
        network.run(REKEY_WATCH_INTERVAL)
        self.assertLess(len(client.agenda), 5)

    def test_shortest_lifetime(self) -> None:
        """A gateway that grants keys for less than a policy can say does not keep its client busy."""
        network = Network()
        gateway = network.gateways[0]
        gateway.node.reload(replace(network.gateway_policy, key_lifetime=0.001), network.now)
        network.send(network.client, OUT)
        network.run(1)
        self.assertIn("another key lifetime", " ".join(network.client.events))
        self.assertLess(len(network.sent), 10)

    def test_shortest_lifetime_of_a_call(self) -> None:
        """Nor does one that calls with keys for so short a time (R12)."""
        network = connected()
        gateway, client = network.gateways[0], network.client
        network.act(client, client.node.close(network.now))
        network.run(1)
        gateway.node.reload(replace(network.gateway_policy, key_lifetime=0.001), network.now)
        network.send(gateway, BACK)
        network.run(1)
        self.assertEqual((client.node.kms.established, len(client.node.cache)), (1, 0))

    def test_calls_in_a_row(self) -> None:
        """However often a gateway calls, its client looks at the age of each pair once, and soon of one."""
        network = connected()
        gateway, client = network.gateways[0], network.client
        (policy_client,) = network.gateway_policy.clients
        for _ in range(20):
            calls = gateway.node._calls
            network.act(gateway, calls.call(policy_client, client.endpoint, memoryview(BACK), network.now))
            network.run(1.1)
        self.assertEqual(client.node.kms.established, 21)
        network.run(OLD_SA_LINGER)
        self.assertEqual((len(client.node.cache.by_spi), len(client.node.agenda)), (1, 2))

    def test_questions_in_a_row(self) -> None:
        """However often a gateway asks `owner?`, its client repeats the last claim alone."""
        network = connected()
        (session,) = network.gateways[0].node.cache
        assert session.sending is not None
        before = len(network.client.node.agenda)
        for _ in range(100):
            network.receive(
                network.client, session.sending.control.send(Kind.OWNER), network.gateways[0].endpoint
            )
        self.assertLessEqual(len(network.client.node.agenda), before + 1)

    def test_responses_in_a_row(self) -> None:
        """However often a client answers a challenge, its gateway decides once."""
        for answered in (0, 1):
            network = connected()
            gateway, elsewhere = network.gateways[0], Endpoint(ip_address("192.0.2.77"), 4500)
            (session,) = network.client.node.cache
            assert session.sending is not None
            network.wire = lambda *_: ()
            network.receive(gateway, session.sending.outbound.seal(OUT, NextHeader.IPV4), elsewhere)
            challenge = network.sent[answered - 2][1]
            before = len(gateway.node.agenda)
            for _ in range(100):
                number = int.from_bytes(challenge[12:20])
                response = session.sending.control.send(Kind.RESPONSE, in_reply_to=number)
                network.receive(gateway, response, (elsewhere, network.client.endpoint)[answered])
            self.assertEqual(len(gateway.node.agenda), before)

    def test_exhausted_acceptor(self) -> None:
        """A gateway that may seal no more answers no dummy packet; its next inner packet ends the session."""
        network = connected()
        gateway = network.gateways[0]
        (session,), (clients,) = gateway.node.cache, network.client.node.cache
        assert session.sending is not None
        assert clients.sending is not None
        session.sending.outbound.packets = HARD_LIMIT_PACKETS
        network.sent.clear()
        network.receive(
            gateway, clients.sending.outbound.seal(b"", NextHeader.DUMMY), network.client.endpoint
        )
        self.assertEqual(network.sent, [])
        network.send(gateway, BACK)
        self.assertEqual(len(gateway.node.cache), 0)

    def test_long_exchange_time(self) -> None:
        """A packet that comes while a gateway takes its time to confirm is sent all the same."""
        network = Network(exchange_time=20.0, wire=key_exchange_only)
        network.send(network.client, OUT)
        network.run(10)
        network.send(network.client, OUT)
        self.assertEqual(len(network.client.node.cache), 1)
        network.run(11 + OLD_SA_LINGER)
        self.assertEqual((len(network.client.node.cache), network.client.node.cache.by_spi), (0, {}))


class AddressTests(SynchronousTestCase):
    """What a client asks for."""

    def test_twice(self) -> None:
        """A client that names its inner address twice has it once, and loses it when it closes."""
        network = Network()
        client, gateway = network.client, network.gateways[0]
        client.node.exchanges.inner_addresses = (INNER, INNER)
        network.send(client, OUT)
        network.run(1)
        self.assertTrue(gateway.node.presence.owns(INNER.packed))
        network.act(client, client.node.close(network.now))
        network.run(1)
        self.assertFalse(gateway.node.presence.owns(INNER.packed))


class EnvelopeTests(SynchronousTestCase):
    """What authenticated envelopes hold."""

    def test_wrong_next_header(self) -> None:
        """A packet of one IP version does not come through under the next header of the other."""
        network = connected()
        gateway = network.gateways[0]
        (session,) = network.client.node.cache
        assert session.sending is not None
        sealed = session.sending.outbound.seal(OUT, NextHeader.IPV6)
        network.receive(gateway, sealed, network.client.endpoint)
        self.assertEqual(gateway.delivered, [OUT])
        self.assertEqual(gateway.node.status(network.now)["drops"], {"malformed-packet": 1})


class WaitingTests(SynchronousTestCase):
    """Packets that wait for a client that is called (R12)."""

    def test_broken_packet(self) -> None:
        """One that is too big to go out, and whose extension headers lie, takes no other with it."""
        network, inner = Network(), ip_address("2001:db8:99::1")
        gateway, client = network.gateways[0], network.client
        (known,) = network.gateway_policy.clients
        known = replace(known, inner_addresses=(INNER, inner), endpoint=client.endpoint)
        gateway.node.reload(replace(network.gateway_policy, clients=(known,)), network.now)
        client.node.exchanges.inner_addresses = (INNER, inner)
        header = bytes.fromhex("60000000 05b4 2b 40") + inner.packed + inner.packed
        network.send(gateway, header + b"\xff" * 1460)
        network.send(gateway, BACK)
        network.run(1)
        self.assertEqual(client.delivered, [BACK])
        self.assertIn("malformed-packet", gateway.node.drop_counts())


class RejectionTests(SynchronousTestCase):
    """Key requests that come to nothing."""

    def test_broken_packet_waits(self) -> None:
        """A packet whose extension headers lie is not answered when its request is rejected (R3)."""
        inner, target = ip_address("2001:db8:99::1"), ip_address("2001:db8::1")
        network = Network(wire=lambda *_: ())
        (tunnel,) = network.client_policy.tunnels
        client = network.client.node
        client._packed_addresses |= {inner.packed}
        policy = replace(network.client_policy, tunnels=(tunnel, Tunnel(2, target, target, tunnel.cluster)))
        client.reload(policy, network.now)
        routing = bytes((17, 200, 0, 0, 0, 0, 0, 0))
        header = bytes.fromhex("60000000 0008 2b 40") + inner.packed + target.packed
        network.send(network.client, header + routing)
        network.send(network.client, OUT)
        network.run(3)
        self.assertEqual(client.status(network.now)["drops"], {"request-rejected": 2})
        self.assertEqual(len(network.client.delivered), 1)

    def test_impossible_key(self) -> None:
        """A gateway whose key in the policy cannot be anybody's is passed over (R3)."""
        network = Network(2, randomize_clusters=False)
        peers = dict(network.client_policy.peers)
        nobody = PeerIdentity(Mechanism.NOISE, b64encode(bytes(32)).decode())
        peers[network.gateways[0].endpoint.address] = nobody
        network.client.node.reload(replace(network.client_policy, peers=peers), network.now)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(network.gateways[1].delivered, [OUT])
