"""A client whose outside address changes keeps its session, and no attacker can move it (DESIGN 3)."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import KEY_EXCHANGE_MARKER, ROAMING_PATIENCE, ROAMING_PAUSE, HeartbeatMode
from rvpn.interfaces import Endpoint, Path
from rvpn.session.session_control import CONTROL_SIZE, Kind
from tests.unit.simulation import (
    BACK,
    CLIENT_ENDPOINT,
    CONTROL,
    DELAY,
    OUT,
    Host,
    Network,
)

REBOUND = CLIENT_ENDPOINT._replace(port=40_000)
THIEF = Endpoint(ip_address("203.0.113.66"), 4500)


def connected(**policy: Any) -> Network:
    """Return a client and a gateway with a session."""
    network = Network(1, **policy)
    return network.connect(1)


def place(network: Network) -> Endpoint:
    """Return where the gateway sends what is for the client."""
    (session,) = network.gateways[0].node.cache
    return session.path.remote


def is_esp(datagram: bytes) -> bool:
    """Tell whether a datagram carries an inner packet, or nothing under keys."""
    return datagram[:4] not in (CONTROL, KEY_EXCHANGE_MARKER)


class MoveTests(SynchronousTestCase):
    """The address of a client changes."""

    def test_nat_rebinding(self) -> None:
        """DESIGN 3: the session moves to the new port of a NAT once that has answered a challenge."""
        network = connected()
        network.client.endpoint = REBOUND
        network.send(network.client, OUT)
        network.run(3 * DELAY)
        self.assertEqual(len(network.control(Kind.CHALLENGE)), 2)
        self.assertEqual(place(network), CLIENT_ENDPOINT, "moved before its time")
        network.run(ROAMING_PATIENCE)
        self.assertEqual(place(network), REBOUND)
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        self.assertEqual(network.client.delivered, [BACK])
        self.assertIn(f"moved from {CLIENT_ENDPOINT} to {REBOUND}", " ".join(network.gateways[0].events))

    def test_without_payload(self) -> None:
        """DESIGN 3: an idle client moves by its heartbeats, so that what comes from the LAN finds it."""
        network = connected(heartbeat=HeartbeatMode.INSTANT, heartbeat_defer_time=1.0)
        network.client.endpoint = REBOUND
        network.run(1.5)
        self.assertEqual(place(network), REBOUND)

    def test_answers_move_nothing(self) -> None:
        """DESIGN 3: the answer to a heartbeat goes where that came from, and the session stays."""
        network = connected()
        (session,) = network.client.node.cache
        assert session.sending is not None
        heartbeat = session.sending.control.send(Kind.HEARTBEAT)
        network.receive(network.gateways[0], heartbeat, REBOUND)
        (goal,) = [goal for _, data, _, goal in network.sent if data[4] == Kind.ANSWER]
        self.assertEqual((goal, place(network)), (REBOUND, CLIENT_ENDPOINT))

    def test_nobody_there(self) -> None:
        """DESIGN 3: an address that does not answer is not moved to; another move is possible later."""
        network = connected()
        (session,) = network.client.node.cache
        assert session.sending is not None
        network.receive(network.gateways[0], session.sending.outbound.seal(OUT, 4), THIEF)
        network.run(3)
        self.assertEqual(place(network), CLIENT_ENDPOINT)
        network.client.endpoint = REBOUND
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(place(network), REBOUND)

    def test_lost_challenge(self) -> None:
        """DESIGN 3: where the challenge gets lost a later packet starts another one."""
        network = connected()
        network.client.endpoint = REBOUND
        network.wire = lambda data, *_: () if data[4] == Kind.CHALLENGE and data[:4] == CONTROL else (DELAY,)
        network.send(network.client, OUT)
        network.run(0.5)
        network.wire = lambda *_: (DELAY,)
        network.run(2)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(place(network), REBOUND)

    def test_several_moves(self) -> None:
        """DESIGN 3: a client that goes on moving is followed."""
        network = connected()
        for port in range(20_001, 20_011):
            network.client.endpoint = CLIENT_ENDPOINT._replace(port=port)
            network.send(network.client, OUT)
            network.run(0.1)
            self.assertEqual(place(network).port, port)
        self.assertEqual(len(network.gateways[0].node.cache.by_endpoint), 1)

    def test_old_packets(self) -> None:
        """DESIGN 3: a packet that was overtaken moves nothing, wherever it comes from."""
        network = connected()
        (session,) = network.client.node.cache
        assert session.sending is not None
        late = session.sending.outbound.seal(OUT, 4)
        network.send(network.client, OUT)
        network.run(0.1)
        network.sent.clear()
        network.receive(network.gateways[0], late, REBOUND)
        self.assertEqual((network.sent, place(network)), ([], CLIENT_ENDPOINT))
        self.assertEqual(len(network.gateways[0].delivered), 3)

    def test_old_control_packets(self) -> None:
        """DESIGN 3: the same holds for control packets."""
        network = connected()
        (session,) = network.client.node.cache
        assert session.sending is not None
        control = session.sending.control
        late = control.send(Kind.HEARTBEAT)
        network.receive(network.gateways[0], control.send(Kind.HEARTBEAT), network.client.endpoint)
        network.receive(network.gateways[0], late, REBOUND)
        network.run(1)
        self.assertEqual((network.control(Kind.CHALLENGE), place(network)), ([], CLIENT_ENDPOINT))

    def test_new_keys_from_elsewhere(self) -> None:
        """DESIGN 3, 4: a key exchange from a new address moves the session, once its keys are confirmed."""
        network = connected()
        gateway = network.gateways[0]
        network.client.endpoint = REBOUND
        network.act(network.client, network.client.node.authenticate(gateway.endpoint.address, network.now))
        network.run(0.01)
        self.assertEqual(place(network), REBOUND)

    def test_ended_session(self) -> None:
        """DESIGN 3: a session that ends while it is challenged goes nowhere."""
        network = connected()
        network.client.endpoint = REBOUND
        network.send(network.client, OUT)
        network.run(2 * DELAY)
        network.act(network.client, network.client.node.close(network.now))
        network.run(3)
        self.assertEqual(network.gateways[0].node.cache.by_endpoint, {})

    def test_client_does_not_move_a_gateway(self) -> None:
        """DESIGN 3: packets of a gateway from another address are taken, and change nothing."""
        network = connected()
        (session,) = network.gateways[0].node.cache
        assert session.sending is not None
        datagrams = session.sending.outbound.seal(BACK, 4), session.sending.control.send(Kind.STATUS)
        for datagram in datagrams:
            network.receive(network.client, datagram, THIEF)
        (ours,) = network.client.node.cache
        self.assertEqual((network.client.delivered, ours.path.remote), ([BACK], network.gateways[0].endpoint))


class ThiefTests(SynchronousTestCase):
    """Somebody on the way wants the session at his own address."""

    def race(self, network: Network, *, drop: bool = False, forward: bool = False) -> None:
        """
        Let a thief bring every packet of the client to the gateway from his own address, ahead of the client.

        With `drop` the client's own packet never arrives. With `forward` he also brings the gateway's
        challenges to the client, and the client's answers to the gateway, ahead and from his address.
        """
        gateway, client = network.gateways[0], network.client

        def wire(datagram: bytes, source: Endpoint, destination: Endpoint) -> Iterable[float]:
            if destination == THIEF and forward:
                network.inject(datagram, gateway.endpoint, client.endpoint)
            if source == client.endpoint and (is_esp(datagram) or forward):
                network.inject(datagram, THIEF, destination)
                return () if drop and is_esp(datagram) else (2 * DELAY,)
            return (DELAY,)

        network.wire = wire

    def test_racing(self) -> None:
        """DESIGN 3: a thief whose copies always arrive first gets nothing while the client answers."""
        for drop in (False, True):
            for forward in (False, True):
                network = connected()
                self.race(network, drop=drop, forward=forward)
                for _ in range(100):
                    network.send(network.client, OUT)
                    network.send(network.gateways[0], BACK)
                    network.run(0.05)
                    self.assertEqual(place(network), CLIENT_ENDPOINT, (drop, forward))
                stolen = [data for _, data, _, goal in network.sent if goal == THIEF and is_esp(data)]
                self.assertEqual((stolen, len(network.client.delivered)), ([], 100))

    def test_replaying(self) -> None:
        """DESIGN 3: what was recorded and is played again from another address draws nothing at all."""
        network = connected()
        network.send(network.client, OUT)
        network.run(1)
        recorded = [data for _, data, _ in network.sent_by(network.client)]
        network.sent.clear()
        for datagram in recorded:
            network.inject(datagram, THIEF, network.gateways[0].endpoint)
        network.run(1)
        self.assertEqual((network.sent, place(network)), ([], CLIENT_ENDPOINT))

    def test_forged_response(self) -> None:
        """DESIGN 3: an answer to the new address's challenge counts from that address alone."""
        network = connected()
        gateway: Host[Any] = network.gateways[0]
        (session,) = network.client.node.cache
        assert session.sending is not None
        network.wire = lambda *_: ()
        network.receive(gateway, session.sending.outbound.seal(OUT, 4), THIEF)
        (challenge,) = [data for _, data, _, goal in network.sent if goal == THIEF]
        packet = memoryview(challenge)
        (response,) = network.client.node.control(packet, Path(gateway.endpoint), network.now)
        network.receive(gateway, response.datagram, CLIENT_ENDPOINT)  # type: ignore[union-attr] # it is a Send
        network.run(1)
        self.assertEqual(place(network), CLIENT_ENDPOINT)

    def test_stale_response(self) -> None:
        """DESIGN 3: an answer to an earlier challenge, held back, does not answer the present one."""
        network = connected()
        gateway: Host[Any] = network.gateways[0]
        (session,) = network.client.node.cache
        assert session.sending is not None
        network.wire = lambda *_: ()
        network.receive(gateway, session.sending.outbound.seal(OUT, 4), THIEF)
        (challenge,) = [data for _, data, _, goal in network.sent if goal == THIEF]
        (response,) = network.client.node.control(memoryview(challenge), Path(THIEF), network.now)
        network.run(3)
        network.receive(gateway, session.sending.outbound.seal(OUT, 4), THIEF)
        network.receive(gateway, response.datagram, THIEF)  # type: ignore[union-attr] # it is a Send
        network.run(1)
        self.assertEqual(place(network), CLIENT_ENDPOINT)

    def test_reflection(self) -> None:
        """DESIGN 3: a client cannot have its packets sent to somebody who never saw the challenge."""
        network = connected()
        gateway: Host[Any] = network.gateways[0]
        network.client.alive = False
        (session,), (theirs,) = network.client.node.cache, gateway.node.cache
        assert session.sending is not None
        assert theirs.sending is not None
        network.receive(gateway, session.sending.outbound.seal(OUT, 4), THIEF)
        for guess in range(theirs.sending.control.sequence + 5):
            response = session.sending.control.send(Kind.RESPONSE, in_reply_to=guess)
            network.receive(gateway, response, THIEF)
        network.run(1)
        self.assertEqual(place(network), CLIENT_ENDPOINT)

    def test_bounded(self) -> None:
        """DESIGN 3: both addresses answer and packets come by both in turn: challenges are few."""
        network = connected()
        other = Endpoint(ip_address("192.0.2.77"), 4500)
        home = Host(network.client.node, other)
        network.clients.append(home)
        seconds = 10
        for step in range(seconds * 100):
            network.send(home if step % 2 else network.client, OUT)
            network.run(0.01)
        challenges = len(network.control(Kind.CHALLENGE))
        self.assertGreater(challenges, 0)
        self.assertLessEqual(challenges, 2 * (seconds / ROAMING_PAUSE + 1))

    def test_no_amplification(self) -> None:
        """DESIGN 3: an unproven address gets one packet for one authentic one, of a control packet's size."""
        network = connected()
        network.client.alive = False
        (session,) = network.client.node.cache
        assert session.sending is not None
        for _ in range(100):
            network.receive(network.gateways[0], session.sending.outbound.seal(OUT, 4), THIEF)
            network.run(0.01)
        to_thief = [data for _, data, _, goal in network.sent if goal == THIEF]
        self.assertEqual(len(to_thief), 1)
        self.assertEqual(len(to_thief[0]), CONTROL_SIZE)
