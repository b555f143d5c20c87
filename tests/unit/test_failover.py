"""
Gateways fail, leave and come back: what a client does then, on a network in memory (R5 to R11, R13, R14, R17;
X1, X2, X4, X6, X8). The bounds are those of `Heartbeat` with 0.2 s and 0.1 s unless a test says otherwise.
"""

from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import (
    CONTROL_INTERVAL,
    CONTROL_REPEATS,
    KEY_EXCHANGE_MARKER,
    OLD_SA_LINGER,
    SHORTEST_DEFER,
    HeartbeatMode,
)
from rvpn.errors import DropReason
from rvpn.failover.seeking import SEEKS
from rvpn.interfaces import Endpoint, Path, Send
from rvpn.policy.model import Cluster, Tunnel
from rvpn.session.session_control import CONTROL_SIZE, Kind, Status
from rvpn.session.sessions import Session
from tests.unit.simulation import BACK, CONTROL, DELAY, INNER, OUT, Network, udp_packet

DEFER, RESPONSE = 0.2, 0.1
BOUND = DEFER + 2 * RESPONSE
NOTHING: list[Any] = []


def build(gateways: int = 3, **policy: Any) -> Network:
    """Return a network whose client watches its gateways, in the order of its policy."""
    chosen: dict[str, Any] = {
        "heartbeat": HeartbeatMode.INSTANT,
        "heartbeat_defer_time": DEFER,
        "heartbeat_response_time": RESPONSE,
        "randomize_clusters": False,
    }
    return Network(gateways, **(chosen | policy))


def connected(gateways: int = 3, **policy: Any) -> Network:
    """Return the same, with a session in use, and forget what was sent for it."""
    network = build(gateways, **policy)
    return network.connect()


def number(network: Network, session: Session) -> int:
    """Return the number of a session's gateway."""
    return [host.endpoint.address for host in network.gateways].index(session.gateway)


def sessions(network: Network) -> set[int]:
    """Return the numbers of the gateways that the client has sessions with."""
    return {number(network, session) for session in network.client.node.cache}


def session_with(network: Network, gateway: int) -> Session:
    """Return the client's session with a gateway."""
    session = network.client.node.cache.get(network.gateways[gateway].endpoint.address)
    assert session is not None
    return session


class DetectionTests(SynchronousTestCase):
    """When heartbeats go, and when a gateway is given up."""

    def test_bound(self) -> None:
        """R6, R7: after the last sign of life: defer, a heartbeat, response, another, response, failed."""
        network = connected()
        dead, last = network.gateways[0], session_with(network, 0).received_at
        dead.alive = False
        network.run(1)
        first, second = network.control(Kind.HEARTBEAT, network.client, dead)
        self.assertAlmostEqual(first, last + DEFER)
        self.assertAlmostEqual(second, last + DEFER + RESPONSE)
        self.assertAlmostEqual(network.control(Kind.CLOSE)[0], last + BOUND)
        self.assertEqual(network.in_use, 1)

    def test_nothing_while_anything_arrives(self) -> None:
        """R6: packets from the gateway more often than the defer time leave nothing to ask."""
        network = connected(heartbeat_confirm_time=0.0)
        for _ in range(100):
            network.send(network.gateways[0], BACK)
            network.run(DEFER - 2 * DELAY)
        self.assertEqual(network.control(Kind.HEARTBEAT), NOTHING)

    def test_sending_proves_nothing(self) -> None:
        """R6: a client that sends and hears nothing asks."""
        network = connected()
        for _ in range(100):
            network.send(network.client, OUT)
            network.run(0.1)
        self.assertGreater(len(network.control(Kind.HEARTBEAT)), 40)

    def test_only_those_in_use(self) -> None:
        """R6: of the gateways with sessions only the one in use gets heartbeats."""
        network = connected(standby=2)
        self.assertEqual(sessions(network), {0, 1, 2})
        network.run(60)
        asked = network.control(Kind.HEARTBEAT)
        self.assertEqual(asked, network.control(Kind.HEARTBEAT, network.client, network.gateways[0]))
        self.assertGreater(len(asked), 250)

    def test_one_detector_for_two_clusters(self) -> None:
        """R4: liveness is per gateway: two clusters that use it cause no more heartbeats than one."""
        network = build(1)
        (gateway,) = network.gateways
        single = Cluster(str(gateway.endpoint.address), (gateway.endpoint.address,))
        other = ip_address("10.0.0.9")
        tunnels = (*network.client_policy.tunnels, Tunnel(2, other, other, single))
        network.client.node.reload(replace(network.client_policy, tunnels=tunnels), network.now)
        network.send(network.client, OUT)
        network.send(network.client, udp_packet(INNER, other, b""))
        network.run(10)
        times = network.control(Kind.HEARTBEAT)
        self.assertGreaterEqual(min(later - earlier for earlier, later in pairwise(times)), DEFER)
        gateway.alive = False
        network.run(1)
        uses = {cluster.in_use for cluster in network.client.node.failover.clusters.values()}
        self.assertEqual(uses, {None})

    def test_reloads(self) -> None:
        """R1, R7: however often the policy is read again, a dead gateway is left in time."""
        network = connected(2, standby=1)
        network.gateways[0].alive = False
        for _ in range(8):
            network.run(DEFER / 4)
            network.act(network.client, network.client.node.reload(network.client_policy, network.now))
        network.run(BOUND - 2 * DEFER)
        self.assertEqual(network.in_use, 1)

    def test_other_times(self) -> None:
        """R6: from a reload on a gateway is watched by the times of the new policy."""
        network = connected(1)
        policy = replace(network.client_policy, heartbeat_defer_time=5.0)
        network.act(network.client, network.client.node.reload(policy, network.now))
        network.run(4.9)
        self.assertEqual(network.control(Kind.HEARTBEAT), NOTHING)
        network.run(0.2)
        self.assertEqual(len(network.control(Kind.HEARTBEAT)), 1)

    def test_late_wake_up(self) -> None:
        """R7: a client that was kept from running for longer than the bound gives no living gateway up."""
        for moment in (0.05, DEFER + RESPONSE / 2, DEFER + 0.9 * RESPONSE):
            network = connected()
            network.run(moment)
            network.client.frozen = True
            network.run(5)
            network.thaw(network.client)
            network.run(5)
            self.assertEqual((network.in_use, network.control(Kind.CLOSE)), (0, NOTHING))

    def test_lossy_path(self) -> None:
        """R7: single lost heartbeats or answers fail nobody."""
        network = connected()
        lost = [0]

        def drop_every_second(
            datagram: bytes, _source: Endpoint, _destination: Endpoint
        ) -> tuple[float, ...]:
            lost[0] += 1
            return () if lost[0] % 3 == 0 else (DELAY,)

        network.wire = drop_every_second
        network.run(60)
        self.assertEqual(network.in_use, 0)
        self.assertEqual(network.control(Kind.CLOSE), NOTHING)


class AnswerTests(SynchronousTestCase):
    """Who answers heartbeats, and how (R10, R17)."""

    def test_equal_answer(self) -> None:
        """R10: a gateway answers with a packet of equal length in the opposite direction."""
        network = connected(1)
        network.run(DEFER + 0.01)
        (asked,) = network.control(Kind.HEARTBEAT, network.client)
        (answered,) = network.control(Kind.ANSWER, network.gateways[0], network.client)
        self.assertAlmostEqual(answered, asked + DELAY)

    def test_client_never_answers(self) -> None:
        """R10: a client answers no heartbeat, not even an authentic one of its gateway."""
        network = connected(1)
        (session,) = network.gateways[0].node.cache
        assert session.sending is not None
        network.receive(
            network.client, session.sending.control.send(Kind.HEARTBEAT), network.gateways[0].endpoint
        )
        self.assertEqual(network.sent, NOTHING)
        self.assertEqual(network.drops(network.client), {DropReason.UNEXPECTED_CONTROL.value: 1})

    def test_gateway_only_for_sessions(self) -> None:
        """R10: a gateway answers for live sessions alone, not for one that was closed."""
        network = connected(1)
        (session,) = network.client.node.cache
        assert session.sending is not None
        control = session.sending.control
        network.act(network.gateways[0], network.gateways[0].node.close(network.now))
        network.run(0.01)
        network.sent.clear()
        network.receive(network.gateways[0], control.send(Kind.HEARTBEAT), network.client.endpoint)
        self.assertEqual(network.control(Kind.ANSWER), NOTHING)
        self.assertEqual(
            network.drops(network.gateways[0]).get(DropReason.UNKNOWN_SESSION.value), 1, "not counted"
        )

    def test_same_way(self) -> None:
        """R17: a heartbeat takes its session's path, an answer the way the heartbeat came."""
        network = connected(1)
        (session,) = network.client.node.cache
        (send,), _ = network.client.node.heartbeat(session)
        assert isinstance(send, Send)
        self.assertEqual(send.path, session.path)
        gateway = network.gateways[0]
        path = Path(network.client.endpoint, gateway.endpoint.address)
        (answer,) = gateway.node.control(memoryview(send.datagram), path, network.now)
        assert isinstance(answer, Send)
        self.assertEqual(answer.path, path)
        self.assertEqual(len(answer.datagram), CONTROL_SIZE)

    def test_control_beside_esp(self) -> None:
        """R17: whatever is said between two nodes goes between the two endpoints of their ESP."""
        network = build(2, standby=1, failback=True, failback_hold_down=1.0)
        network.send(network.client, OUT)
        network.run(5)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.run(5)
        gateways = {host.endpoint for host in network.gateways}
        ways = {(source, destination) for _, _, source, destination in network.sent}
        client = network.client.endpoint
        self.assertEqual(ways, {(client, g) for g in gateways} | {(g, client) for g in gateways})
        self.assertTrue(network.control(Kind.STATUS))


class FailureTests(SynchronousTestCase):
    """What follows a failure (R8)."""

    def failed(self, **policy: Any) -> tuple[Network, Session]:
        """Return a network at the moment after its first gateway was given up, and the session with it."""
        network = connected(**policy)
        session = session_with(network, 0)
        network.gateways[0].alive = False
        network.run(BOUND)
        self.assertTrue(session.closed)
        return network, session

    def test_outbound_key_gone(self) -> None:
        """R8: the outbound key leaves the cache at once; the inbound SA stays 10 s, and then goes too."""
        network, session = self.failed()
        (pair,) = session.pairs
        self.assertIsNone(session.sending)
        self.assertIsNone(network.client.node.cache.get(session.key))
        network.run(OLD_SA_LINGER - 0.5)
        self.assertIn(pair.inbound.spi, network.client.node.cache.by_spi)
        network.run(1)
        self.assertNotIn(pair.inbound.spi, network.client.node.cache.by_spi)

    def test_inbound_proves_no_life(self) -> None:
        """R8: what still arrives under the old keys is delivered, and brings the gateway no life."""
        network, session = self.failed()
        heard = session.received_at
        gateway = network.gateways[0]
        gateway.alive = True
        network.send(gateway, BACK)
        network.run(0.01)
        self.assertEqual(network.client.delivered, [BACK])
        self.assertEqual(session.received_at, heard)
        self.assertNotEqual(network.in_use, 0)

    def test_close_is_sent(self) -> None:
        """R8, DESIGN 6: the gateway is told, again until it acknowledges, at most four times."""
        network, _ = self.failed()
        network.run(3)
        times = network.control(Kind.CLOSE, network.client, network.gateways[0])
        self.assertEqual(len(times), CONTROL_REPEATS)
        for earlier, later in pairwise(times):
            self.assertAlmostEqual(later - earlier, CONTROL_INTERVAL)

    def test_close_is_acknowledged(self) -> None:
        """R8, DESIGN 6: a gateway that hears the close forgets the session, and is told no more."""
        network = connected()
        gateway = network.gateways[0]
        network.cuts = {(gateway.endpoint, network.client.endpoint)}
        network.run(BOUND + DELAY)
        network.cuts.clear()
        network.run(3)
        self.assertEqual(len(gateway.node.cache), 0)
        self.assertLess(len(network.control(Kind.CLOSE)), CONTROL_REPEATS)

    def test_late_answer(self) -> None:
        """R8: an answer that comes after the decision is counted and dropped."""
        network = connected()
        session = session_with(network, 0)
        _, sequence = network.client.node.heartbeat(session)
        (there,) = network.gateways[0].node.cache
        assert there.sending is not None
        network.gateways[0].alive = False
        network.run(BOUND + 0.01)
        late = there.sending.control.send(Kind.ANSWER, in_reply_to=sequence)
        network.receive(network.client, late, network.gateways[0].endpoint)
        self.assertNotEqual(network.in_use, 0)
        self.assertEqual(network.drops(network.client), {DropReason.UNEXPECTED_CONTROL.value: 1})

    def test_another_session_at_once(self) -> None:
        """R8: where there is another live session the switch takes no time and no handshake."""
        network, _ = self.failed(standby=1)
        self.assertEqual(network.in_use, 1)
        claims = network.control(Kind.CLAIM, network.client, network.gateways[1])
        self.assertEqual(claims[:1], network.control(Kind.CLOSE)[:1])
        network.send(network.client, OUT)
        network.run(2 * DELAY)
        self.assertEqual(network.gateways[1].delivered, [OUT])

    def test_key_request_without_payload(self) -> None:
        """R8: an INSTANT client without another session asks the KMS for one at once, idle as it is."""
        network, _ = self.failed()
        network.run(4 * DELAY)
        self.assertEqual(network.in_use, 1)

    def test_key_requests_back_off(self) -> None:
        """R3, R8: while all gateways are dead an idle client goes on asking, with the back-off between."""
        network = connected()
        for gateway in network.gateways:
            gateway.alive = False
        network.run(120)
        firsts: dict[bytes, float] = {}
        for time, datagram, _ in network.sent_by(network.client):
            if datagram[:4] == KEY_EXCHANGE_MARKER:
                firsts.setdefault(datagram[8:16], time)
        rounds = list(firsts.values())[::3]
        pauses = [later - earlier - 6.0 for earlier, later in pairwise(rounds)]
        for pause, nominal in zip(pauses, (1, 2, 4, 8, 8, 8), strict=False):
            self.assertTrue(0.75 * nominal <= pause <= 1.25 * nominal + 0.1, pauses)
        self.assertGreater(len(pauses), 5)
        self.assertLess(max(pauses), 8.1)
        network.gateways[2].alive = True
        network.run(10 + 3 * 2)
        self.assertEqual(network.in_use, 2)

    def test_failed_ones_last(self) -> None:
        """R3: gateways that failed or gave no keys are asked after the others."""
        network = build()
        network.gateways[0].alive = False
        network.send(network.client, OUT)
        network.run(3)
        self.assertEqual(network.in_use, 1)
        network.gateways[1].alive = False
        network.run(BOUND + 0.1)
        self.assertEqual(network.in_use, 2)

    def test_not_before_payload(self) -> None:
        """R8, R9: a DEFERRED client that has lost its gateway asks for keys with the next packet alone."""
        network = connected(2, heartbeat=HeartbeatMode.DEFERRED)
        network.gateways[0].alive = False
        network.run(1)
        network.send(network.client, OUT)
        network.run(1)
        self.assertIsNone(network.in_use)
        network.sent.clear()
        network.run(60)
        self.assertEqual(network.sent, NOTHING)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(network.in_use, 1)
        self.assertEqual(network.gateways[1].delivered, [OUT])

    def test_comes_back_by_authentication(self) -> None:
        """R11: a gateway that came back is used once the client authenticates to it because it is next."""
        network = connected(2)
        network.gateways[0].alive = False
        network.run(1)
        network.restart(0)
        network.run(60)
        self.assertEqual((network.in_use, sessions(network)), (1, {1}))
        network.gateways[1].alive = False
        network.run(1)
        self.assertEqual(network.in_use, 0)

    def test_old_gateway_may_still_answer(self) -> None:
        """R13: after a move, packets over the session that is no longer in use are taken."""
        network = connected(2, standby=1)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.run(1)
        self.assertEqual(network.in_use, 1)
        network.send(network.gateways[0], BACK)
        network.run(0.01)
        self.assertEqual(network.client.delivered, [BACK])


class LimitTests(SynchronousTestCase):
    """What a gateway asks of its clients."""

    def test_shortest_defer(self) -> None:
        """X7: a client keeps to the gateway's lower limit, whatever its own policy says."""
        network = connected(1, heartbeat_defer_time=0.001, heartbeat_response_time=0.01)
        network.run(2)
        times = network.control(Kind.HEARTBEAT)
        self.assertGreaterEqual(min(b - a for a, b in pairwise(times)), SHORTEST_DEFER)
        self.assertGreater(len(times), 80)

    def test_auto(self) -> None:
        """X7: with `auto` a gateway 1 ms away that dies under traffic is left within 0.1 s."""
        network = connected(
            2, standby=1, heartbeat_defer_time=None, heartbeat_response_time=None, heartbeat_confirm_time=0.0
        )
        for step in range(600):
            if step == 400:
                network.gateways[0].alive = False
                died = network.now
            network.send(network.client, OUT)
            network.run(0.005)
            if network.in_use == 1:
                break
        self.assertEqual(network.in_use, 1)
        self.assertLess(network.now - died, 0.06)
        self.assertGreater(len(network.control(Kind.HEARTBEAT)), 20)


class FirstSecondsTests(SynchronousTestCase):
    """A gateway that has just come into use, with `auto` times (X7)."""

    def auto(self, **policy: Any) -> Network:
        """Return a network with `auto` times whose key exchanges take long, and first answers longer."""
        network = build(3, standby=1, heartbeat_defer_time=None, heartbeat_response_time=None, **policy)
        begun = network.now

        def slow_at_first(datagram: bytes, *_: Endpoint) -> tuple[float, ...]:
            slow = datagram[:4] == KEY_EXCHANGE_MARKER or network.now < begun + 0.05
            return (0.01 if slow else DELAY,)

        network.wire = slow_at_first
        return network

    def busy(self, network: Network, seconds: float, expected: int) -> float:
        """Send a packet each 5 ms until another gateway than the one expected is used; return when."""
        network.echo = True
        for _ in range(round(seconds / 0.005)):
            network.send(network.client, OUT)
            network.run(0.005)
            if network.in_use not in (None, expected):
                break
        return network.now

    def test_first_gateway(self) -> None:
        """X7: a second after the first packet a dead gateway is left as fast as ever."""
        network = self.auto()
        died = self.busy(network, 1.0, 0)
        self.assertAlmostEqual(float(network.client.node.failover.promise(network.now)["bound"]), 0.045)
        network.gateways[0].alive = False
        self.assertLess(self.busy(network, 1.0, 0) - died, 0.06)

    def test_standby(self) -> None:
        """X7: so is a standby that was taken over a second ago."""
        network = self.auto()
        self.busy(network, 1.0, 0)
        network.gateways[0].alive = False
        self.busy(network, 1.0, 0)
        died = self.busy(network, 1.0, 1)
        network.gateways[1].alive = False
        self.assertLess(self.busy(network, 1.0, 1) - died, 0.06)

    def test_idle(self) -> None:
        """X7: an idle client asks once a second, whatever happens: a change of gateway is no payload."""
        network = self.auto()
        self.busy(network, 0.5, 0)
        network.run(12)
        for gateway in (0, 1):
            network.gateways[gateway].alive = False
            network.run(3)
            network.sent.clear()
            network.run(60)
            self.assertLessEqual(len(network.control(Kind.HEARTBEAT)), 62)
        self.assertEqual(network.in_use, 2)


class ModeTests(SynchronousTestCase):
    """DEFERRED and NONE (R9)."""

    def test_deferred_follows_payload(self) -> None:
        """R9: a due heartbeat directly follows the next payload packet, the second goes by the timer."""
        network = connected(1, heartbeat=HeartbeatMode.DEFERRED)
        network.gateways[0].alive = False
        network.run(60)
        self.assertEqual(network.sent, NOTHING)
        network.send(network.client, OUT)
        start = network.now
        network.run(1)
        kinds = [(round(time - start, 6), data[:4] == CONTROL) for time, data, *_ in network.sent]
        self.assertEqual(kinds[:3], [(0.0, False), (0.0, True), (RESPONSE, True)])
        self.assertAlmostEqual(network.control(Kind.CLOSE)[0], start + 2 * RESPONSE)

    def test_deferred_saves_a_living_gateway(self) -> None:
        """R9: a DEFERRED client's heartbeat is answered and all is well, however long it was idle."""
        network = connected(1, heartbeat=HeartbeatMode.DEFERRED)
        for _ in range(5):
            network.run(100)
            network.send(network.client, OUT)
        network.run(1)
        self.assertEqual((network.in_use, len(network.control(Kind.HEARTBEAT))), (0, 5))

    def idle_hour(self, **policy: Any) -> Network:
        """Let a DEFERRED client be idle for an hour in which everything would like to be done."""
        network = build(
            heartbeat=HeartbeatMode.DEFERRED,
            standby=2,
            failback=True,
            failback_hold_down=30.0,
            key_lifetime=600.0,
            **policy,
        )
        network.gateways[0].alive = False
        network.send(network.client, OUT)
        network.run(5)
        self.assertEqual(network.in_use, 1)
        network.sent.clear()
        network.run(1800)
        network.act(network.client, network.client.node.host_changed(network.now))
        network.run(1800)
        return network

    def test_deferred_idle(self) -> None:
        """
        R9: an idle DEFERRED client sends nothing in an hour: no keepalive, rekey, standby exchange, seek,
        retry, key request or good-bye, though its keys grow old and an earlier gateway may be back.
        """
        network = self.idle_hour()
        self.assertEqual(network.sent_by(network.client), NOTHING)

    def test_deferred_wakes_up(self) -> None:
        """R9: with the next payload packet it has a session again, and its standbys."""
        network = self.idle_hour()
        network.gateways[0].alive = True
        for _ in range(50):
            network.send(network.client, OUT)
            network.run(0.5)
        self.assertEqual(sessions(network), {0, 1, 2})
        self.assertGreater(sum(len(host.delivered) for host in network.gateways), 49)

    def test_deferred_background_work(self) -> None:
        """R9, X1, X2, DESIGN 3: busy, it renews its keys, keeps its standbys and returns as others do."""
        network = build(
            heartbeat=HeartbeatMode.DEFERRED,
            standby=2,
            failback=True,
            failback_hold_down=30.0,
            key_lifetime=20.0,
        )
        network.gateways[0].alive = False
        for step in range(400):
            if step == 100:
                network.gateways[0].alive = True
            network.send(network.client, OUT)
            network.run(0.25)
        self.assertEqual((network.in_use, sessions(network)), (0, {0, 1, 2}))
        self.assertNotIn("expired", " ".join(network.client.events))

    def test_none(self) -> None:
        """R9: with NONE there is no heartbeat ever, and a gateway that died is not noticed."""
        network = connected(standby=2, failback=True, failback_hold_down=1.0, heartbeat=HeartbeatMode.NONE)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.run(10)
        network.act(network.gateways[0], network.gateways[0].node.drain(False, network.now))
        network.run(10)
        for gateway in network.gateways:
            gateway.alive = False
        for _ in range(100):
            network.send(network.client, OUT)
            network.act(network.client, network.client.node.host_changed(network.now))
            network.run(1)
        self.assertEqual(network.control(Kind.HEARTBEAT), NOTHING)
        self.assertIsNotNone(network.in_use)


class StandbyTests(SynchronousTestCase):
    """`Standby = k` (X1)."""

    def test_next_in_order(self) -> None:
        """X1: sessions are kept with the next k gateways after the one in use, cyclically."""
        for standby, expected in ((0, {0}), (1, {0, 1}), (2, {0, 1, 2}), (5, {0, 1, 2, 3})):
            self.assertEqual(sessions(connected(4, standby=standby)), expected)

    def test_cyclically(self) -> None:
        """X1: after the last gateway in the order comes the first."""
        network = connected(3, standby=1)
        for dead, expected in ((0, {1, 2}), (1, {2, 0})):
            network.gateways[dead].alive = False
            network.run(1)
            network.restart(dead)
            network.run(15)
            self.assertEqual((network.in_use, sessions(network)), (dead + 1, expected))

    def test_switch_to_one_proven_alive(self) -> None:
        """X1: if the first standby is dead too, the switch goes to one that answers, within the bound."""
        network = connected(4, standby=3)
        last = session_with(network, 0).received_at
        for dead in (0, 1, 3):
            network.gateways[dead].alive = False
        network.run(1)
        claims = network.control(Kind.CLAIM)
        self.assertAlmostEqual(claims[0], last + BOUND)
        self.assertEqual(claims, network.control(Kind.CLAIM, network.client, network.gateways[2]))
        self.assertEqual(network.in_use, 2)

    def test_one_heartbeat_each(self) -> None:
        """X1: each standby gets one heartbeat, between the first unanswered one and the decision."""
        network = connected(3, standby=2)
        last = session_with(network, 0).received_at
        network.gateways[0].alive = False
        network.run(BOUND)
        for standby in network.gateways[1:]:
            (asked,) = network.control(Kind.HEARTBEAT, network.client, standby)
            self.assertAlmostEqual(asked, last + DEFER + RESPONSE)

    def test_better_status_first(self) -> None:
        """X1, X4: of those proven alive the switch goes to one that is fit."""
        network = connected(3, standby=2)
        network.act(network.gateways[1], network.gateways[1].node.lan_changed(True, "", network.now))
        network.run(0.01)
        network.gateways[0].alive = False
        network.run(BOUND)
        claims = network.control(Kind.CLAIM)
        self.assertEqual(claims, network.control(Kind.CLAIM, network.client, network.gateways[2]))
        self.assertEqual(network.in_use, 2)

    def test_lost_standby_is_replaced(self) -> None:
        """X1: a standby that closes its session, and comes back, is a standby again."""
        network = connected(3, standby=2)
        network.act(network.gateways[2], network.gateways[2].node.close(network.now))
        network.run(0.5)
        self.assertEqual(sessions(network), {0, 1})
        network.run(12)
        self.assertEqual(sessions(network), {0, 1, 2})

    def test_dead_standby_is_retried(self) -> None:
        """X1: a gateway that gave no keys is asked again every few seconds, no more often."""
        network = build(2, standby=1)
        network.gateways[1].alive = False
        network.send(network.client, OUT)
        network.run(60)
        exchanges = {
            data[8:16]
            for _, data, goal in network.sent_by(network.client)
            if data[:4] == KEY_EXCHANGE_MARKER and goal == network.gateways[1].endpoint
        }
        self.assertTrue(5 <= len(exchanges) <= 8, len(exchanges))
        network.gateways[1].alive = True
        network.run(12)
        self.assertEqual(sessions(network), {0, 1})

    def test_standbys_are_renewed(self) -> None:
        """X1, DESIGN 3: the keys of standbys are renewed before they expire."""
        network = connected(3, standby=2, key_lifetime=20.0)
        network.run(120)
        self.assertEqual(sessions(network), {0, 1, 2})
        self.assertNotIn("ended", " ".join(network.client.events))

    def test_wanted_late(self) -> None:
        """X1, DESIGN 3: a session that comes into use when its keys are old has them renewed."""
        network = connected(2, key_lifetime=20.0)
        gateway = network.gateways[1]
        network.act(network.client, network.client.node.authenticate(gateway.endpoint.address, network.now))
        network.run(20.5)
        network.gateways[0].alive = False
        network.run(60)
        self.assertEqual((network.in_use, sessions(network)), (1, {1}))
        self.assertNotIn("expired", " ".join(network.client.events))

    def test_nobody_wants_it(self) -> None:
        """X1: a session that is neither in use nor a standby ends with its keys, and nobody has failed."""
        network = connected(3, key_lifetime=20.0, failback=True, failback_hold_down=5.0)
        gateway = network.gateways[2]
        network.act(network.client, network.client.node.authenticate(gateway.endpoint.address, network.now))
        network.run(1)
        self.assertEqual(sessions(network), {0, 2})
        network.run(60)
        self.assertEqual((network.in_use, sessions(network)), (0, {0}))
        self.assertNotIn(gateway.endpoint.address, network.client.node.kms.failed_at)


class FailbackTests(SynchronousTestCase):
    """`Failback = yes` (X2)."""

    HOLD = 10.0

    def left(self, **policy: Any) -> Network:
        """Return a network whose first gateway was dead long enough to be left, and is alive again."""
        network = connected(2, failback_hold_down=self.HOLD, **policy)
        network.gateways[0].alive = False
        network.run(1)
        self.assertEqual(network.in_use, 1)
        network.restart(0)
        return network

    def test_after_the_hold_down(self) -> None:
        """X2: the client returns to the earlier gateway when the hold-down is over, not before."""
        network = self.left(failback=True)
        network.run(self.HOLD - 1.5)
        self.assertEqual((network.in_use, sessions(network)), (1, {1}))
        network.run(self.HOLD)
        self.assertEqual(network.in_use, 0)

    def read(self, network: Network, **policy: Any) -> None:
        """Let the client read its policy again, changed like this."""
        changed = replace(network.client_policy, **policy)
        network.act(network.client, network.client.node.reload(changed, network.now))

    def test_wanted_since_a_reload(self) -> None:
        """X2: a reload that sets Failback takes effect, one hold-down later, however often it is read."""
        network = self.left()
        network.run(10 * self.HOLD)
        for _ in range(9):
            self.read(network, failback=True)
            self.assertEqual(network.in_use, 1)
            network.run(0.1 * self.HOLD)
        network.run(0.2 * self.HOLD)
        self.assertEqual(network.in_use, 0)

    def test_other_hold_down(self) -> None:
        """X2: a shorter hold-down takes effect at once, a longer one too."""
        for before, after in ((1000.0, 5.0), (5.0, 100.0)):
            network = self.left(failback=True)
            self.read(network, failback=True, failback_hold_down=before)
            self.read(network, failback=True, failback_hold_down=after)
            network.run(after - 1.5)
            self.assertEqual(network.in_use, 1)
            network.run(3.0 if after < before else after)
            self.assertEqual(network.in_use, 0)

    def test_only_if_wanted(self) -> None:
        """X2: without Failback it stays where it is (R5)."""
        network = self.left()
        network.run(20 * self.HOLD)
        self.assertEqual((network.in_use, sessions(network)), (1, {1}))

    def test_make_before_break(self) -> None:
        """X2: under traffic both ways no packet is lost on the way back."""
        network = self.left(failback=True)
        network.echo = True
        heard, delivered = len(network.client.delivered), sum(len(g.delivered) for g in network.gateways)
        for _ in range(6000):
            network.send(network.client, OUT)
            network.run(0.005)
        network.run(0.1)
        self.assertEqual(network.in_use, 0)
        self.assertEqual(sum(len(g.delivered) for g in network.gateways) - delivered, 6000)
        self.assertEqual(len(network.client.delivered) - heard, 6000)

    def test_dead_one_is_not_returned_to(self) -> None:
        """X2: a gateway that does not answer is not returned to."""
        network = self.left(failback=True)
        network.gateways[0].alive = False
        network.run(10 * self.HOLD)
        self.assertEqual(network.in_use, 1)

    def test_no_flapping(self) -> None:
        """X2: the longer a gateway goes up and down the seldomer it is returned to."""
        network = connected(
            2,
            failback=True,
            failback_hold_down=self.HOLD,
            heartbeat_defer_time=2.0,
            heartbeat_response_time=0.5,
        )
        changes = [0]
        for _ in range(60):
            network.gateways[0].alive = False
            network.run(15)
            network.restart(0)
            network.run(15)
            changes.append(len(network.client.node.failover.journal.changes))
        first, later = changes[20] - changes[0], changes[60] - changes[40]
        self.assertLessEqual(changes[60], 16)
        self.assertLess(later, first)
        network.run(3600)
        self.assertEqual(network.in_use, 0)


class StatusTests(SynchronousTestCase):
    """Draining gateways, and such without a LAN (X4, R14)."""

    def lan_down(self, network: Network, *gateways: int) -> None:
        """Take the LAN side of gateways down."""
        for gateway in gateways:
            network.lan(network.gateways[gateway], up=False)

    def drain(self, network: Network, gateway: int, draining: bool = True) -> None:
        """Drain a gateway, or no more."""
        host = network.gateways[gateway]
        network.act(host, host.node.drain(draining, network.now))

    def test_lan_down(self) -> None:
        """R14, X4: a gateway whose LAN is down says so, and the client moves to a standby that answers."""
        network = connected(standby=2)
        self.lan_down(network, 0)
        network.run(5 * DELAY)
        self.assertEqual(network.in_use, 1)
        self.assertIn(0, sessions(network))
        network.sent.clear()
        network.run(5)
        self.assertEqual(network.control(Kind.HEARTBEAT, network.client, network.gateways[0]), NOTHING)

    def test_without_standby(self) -> None:
        """X4: without another session one is made first, and the old one serves until then."""
        network = connected()
        network.run(1)
        self.lan_down(network, 0)
        network.run(8 * DELAY)
        self.assertEqual((network.in_use, sessions(network)), (1, {0, 1, 2}))

    def test_every_mode(self) -> None:
        """X4: a change of status is told, and moves the client, in every heartbeat mode."""
        for mode in HeartbeatMode:
            network = connected(heartbeat=mode, standby=1)
            self.drain(network, 0)
            network.run(0.01)
            network.send(network.client, OUT)
            network.run(0.1)
            self.assertEqual(network.in_use, 1, mode)

    def test_told_until_acknowledged(self) -> None:
        """X4, DESIGN 6: a status that gets lost is told again, at most four times."""
        network = connected(1)
        network.wire = lambda *_: ()
        self.drain(network, 0)
        network.run(0.35)
        self.assertEqual(len(network.control(Kind.STATUS)), CONTROL_REPEATS)
        network.run(1)
        self.assertEqual(len(network.control(Kind.STATUS)), CONTROL_REPEATS)
        network = connected(1)
        self.drain(network, 0)
        network.run(1)
        self.assertEqual((len(network.control(Kind.STATUS)), len(network.control(Kind.ACK))), (1, 1))

    def test_in_each_answer(self) -> None:
        """X4: where every status packet is lost, the answer to the next heartbeat tells it."""
        network = connected(standby=1)
        network.wire = lambda data, *_: () if data[:4] == CONTROL and data[4] == Kind.STATUS else (DELAY,)
        self.lan_down(network, 0)
        network.run(DEFER + 0.01)
        self.assertEqual(network.in_use, 1)

    def test_in_the_exchange(self) -> None:
        """X4: a gateway without a LAN says so when it gives keys, and is left for a better one at once."""
        network = build()
        self.lan_down(network, 0)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(network.in_use, 1)

    def test_draining_refuses_new_clients(self) -> None:
        """X4: a draining gateway takes no new client, which goes to the next gateway without delay."""
        network = build()
        self.drain(network, 0)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual((network.in_use, sessions(network)), (1, {1}))
        self.assertIn("it refuses: it is draining", " ".join(network.client.events))

    def test_draining_refuses_who_comes_back(self) -> None:
        """X4: a client that was killed and has a dead session there is new, one with old keys is not."""
        for old in (False, True):
            network = connected(1, key_lifetime=10.0)
            gateway = network.gateways[0]
            self.drain(network, 0)
            network.run(9.1 if old else 1.0)
            made = network.client.node.kms.established
            network.act(
                network.client, network.client.node.authenticate(gateway.endpoint.address, network.now)
            )
            network.run(0.5)
            refused = "it refuses: it is draining" in " ".join(network.client.events)
            self.assertEqual(refused, not old)
            self.assertEqual(network.client.node.kms.established - made, int(old))

    def test_drain_loses_nothing(self) -> None:
        """X4: while clients move off a draining gateway, no packet is lost in either direction."""
        for standby in (0, 1):
            network = connected(standby=standby)
            network.echo = True
            network.client.delivered.clear()
            network.gateways[0].delivered.clear()
            for step in range(400):
                if step == 200:
                    self.drain(network, 0)
                network.send(network.client, OUT)
                network.run(0.005)
            network.run(0.1)
            self.assertEqual(network.in_use, 1)
            self.assertEqual(sum(len(host.delivered) for host in network.gateways), 400)
            self.assertEqual(len(network.client.delivered), 400)
            self.assertTrue(network.gateways[1].delivered)

    def test_no_move_among_equals(self) -> None:
        """X4: where all are as bad the client stays, and asks each of the others once a second."""
        network = connected(standby=2)
        self.lan_down(network, 0, 1, 2)
        network.run(0.1)
        place = network.in_use
        changes = len(network.client.node.failover.journal.changes)
        network.sent.clear()
        network.run(30)
        self.assertEqual(network.in_use, place)
        self.assertEqual(len(network.client.node.failover.journal.changes), changes)
        for other in {0, 1, 2} - {place}:
            sent = [goal for _, _, goal in network.sent_by(network.client)]
            self.assertLessEqual(sent.count(network.gateways[other].endpoint), 30)

    def test_old_word(self) -> None:
        """X4: what a standby said of itself is no reason never to ask it: it may be well by now."""
        for mode in HeartbeatMode:
            for wire in ("status", "killed", "killed twice"):
                network = connected(2, standby=1, heartbeat=mode)
                self.lan_down(network, 1)
                network.run(1)
                self.assertEqual(session_with(network, 1).status, Status.LAN_DOWN)
                if wire == "status":
                    network.cut(network.client, network.gateways[1])
                    network.lan(network.gateways[1], up=True)
                    network.run(1)
                    network.cuts.clear()
                else:
                    network.gateways[1].lan_up = True
                    for _ in range(wire.count(" ") + 1):
                        network.restart(1)
                self.drain(network, 0)
                for _ in range(40):
                    network.send(network.client, OUT)
                    network.run(0.25)
                self.assertEqual(network.in_use, 1, (mode, wire))

    def test_overtaken_word(self) -> None:
        """X4: a status that was overtaken by a newer one, or an answer, counts for nothing."""
        for newer in (Kind.STATUS, Kind.ANSWER):
            network = connected(2, standby=1)
            (session,) = network.gateways[0].node.cache
            assert session.sending is not None
            _, asked = network.client.node.heartbeat(session_with(network, 0))
            well = session.sending.control.send(Kind.STATUS, Status.OK)
            down = session.sending.control.send(newer, Status.LAN_DOWN, asked)
            for datagram in (down, well):
                network.receive(network.client, datagram, network.gateways[0].endpoint)
            self.assertEqual(session_with(network, 0).status, Status.LAN_DOWN)
            network.run(2 * DELAY)
            self.assertEqual(network.in_use, 1)

    def test_word_of_a_session_given_up(self) -> None:
        """X4, R8: what a gateway says in a session that was given up moves nobody there."""
        network = connected(2, standby=1)
        (there,) = network.gateways[0].node.cache
        assert there.sending is not None
        network.gateways[0].alive = False
        network.run(BOUND + 0.01)
        self.lan_down(network, 1)
        late = there.sending.control.send(Kind.ANSWER, Status.DRAINING)
        network.run(0.01)
        network.receive(network.client, late, network.gateways[0].endpoint)
        self.assertEqual(network.in_use, 1)

    def test_keys_are_dear(self) -> None:
        """X4, R9: without heartbeats, gateways as bad as the one in use are asked for keys every 8 s."""
        network = connected(2, standby=1, heartbeat=HeartbeatMode.NONE)
        self.lan_down(network, 0, 1)
        network.run(0.1)
        made = network.client.node.kms.established
        network.run(40)
        self.assertIn(network.client.node.kms.established - made, range(4, 7))

    def test_strictly_better(self) -> None:
        """X4: ok is better than draining, and draining better than no LAN."""
        network = connected(standby=2)
        self.lan_down(network, 0)
        self.drain(network, 1)
        self.drain(network, 2)
        network.run(0.1)
        self.assertEqual(network.in_use, 1)
        self.drain(network, 2, False)
        network.run(1.5)
        self.assertEqual(network.in_use, 2)
        self.lan_down(network, 2)
        self.drain(network, 1, False)
        network.run(1.5)
        self.assertEqual(network.in_use, 1)

    def test_only_to_one_proven_alive(self) -> None:
        """X4: a standby that was well when last heard of, and is dead now, is not moved to."""
        network = connected(standby=1)
        for gateway in network.gateways[1:]:
            gateway.alive = False
        self.lan_down(network, 0)
        network.run(30)
        self.assertEqual(network.in_use, 0)
        network.gateways[2].alive = True
        network.run(15)
        self.assertEqual(network.in_use, 2)

    def test_asked_again(self) -> None:
        """X4: gateways that were dead when the client wanted to leave are asked again, in every mode."""
        for mode in HeartbeatMode:
            network = connected(2, heartbeat=mode)
            network.gateways[1].alive = False
            self.lan_down(network, 0)
            network.run(5)
            network.gateways[1].alive = True
            for _ in range(15):
                network.send(network.client, OUT)
                network.run(1)
            self.assertEqual(network.in_use, 1, mode)

    def test_many_words(self) -> None:
        """X4: a gateway that changes its mind again and again makes the client ask others at a rate."""
        network = connected(2, standby=1)
        network.gateways[1].alive = False
        gateway = network.gateways[0]
        (session,) = gateway.node.cache
        assert session.sending is not None
        network.sent.clear()
        for turn in range(500):
            status = session.sending.control.send(Kind.STATUS, (Status.DRAINING, Status.LAN_DOWN)[turn % 2])
            network.act(gateway, [Send(status, session.path)])
            network.run(0.002)
        asked = network.control(Kind.HEARTBEAT, network.client, network.gateways[1])
        self.assertIn(len(asked), range(SEEKS, 2 * SEEKS + 2))

    def test_while_failback_waits(self) -> None:
        """X2, X4: a client that waits to return to an earlier gateway leaves a bad one at once."""
        network = connected(standby=2, failback=True, failback_hold_down=60.0)
        network.gateways[0].alive = False
        network.run(1)
        self.assertEqual(network.in_use, 1)
        self.lan_down(network, 1)
        network.run(5 * DELAY)
        self.assertEqual(network.in_use, 2)

    def test_undrain(self) -> None:
        """X4: a gateway that drains no more takes clients again."""
        network = connected(2)
        self.drain(network, 0)
        network.run(1)
        self.assertEqual(network.in_use, 1)
        self.drain(network, 0, False)
        network.gateways[1].alive = False
        network.run(1)
        self.assertEqual(network.in_use, 0)

    def test_order_of_status(self) -> None:
        """X4: a gateway that drains and has no LAN says the worse."""
        network = connected(1)
        gateway = network.gateways[0].node
        self.assertEqual(gateway.fitness, Status.OK)
        gateway.drain(True, network.now)
        self.assertEqual(gateway.fitness, Status.DRAINING)
        gateway.lan_changed(True, "", network.now)
        self.assertEqual(gateway.fitness, Status.LAN_DOWN)
        gateway.lan_changed(False, "", network.now)
        self.assertEqual(gateway.fitness, Status.DRAINING)
        gateway.drain(False, network.now)
        self.assertEqual(gateway.fitness, Status.OK)


class HintTests(SynchronousTestCase):
    """Hints that a gateway may be gone (X6)."""

    def measured(self, **policy: Any) -> Network:
        """Return a network whose client has measured its gateways' round trips, and sends every 5 ms."""
        network = connected(standby=2, heartbeat_defer_time=5.0, heartbeat_response_time=1.0, **policy)
        network.run(20)
        network.sent.clear()
        return network

    def test_killed_process_on_a_live_host(self) -> None:
        """X6: ICMP from the host of a dead process fails the gateway within two of the shortest waits."""
        network = self.measured()
        network.gateways[0].alive, network.gateways[0].refuses = False, True
        died = network.now
        while network.in_use == 0 and network.now < died + 1:
            network.send(network.client, OUT)
            network.run(0.005)
        self.assertEqual(network.in_use, 1)
        self.assertLess(network.now - died, 0.03)

    def test_a_hint_alone(self) -> None:
        """X6: hints about a living gateway cost a heartbeat in each RTO, and nothing else."""
        network = self.measured()
        network.send(network.client, OUT)
        (session,) = (s for s in network.client.node.cache if s.detector is not None)
        rto = session.round_trip.timeout
        assert rto is not None
        quote = network.sent[-1][1]
        for _ in range(1000):
            network.act(
                network.client,
                network.client.node.refused(network.gateways[0].endpoint, quote, network.now),
            )
            network.run(0.001)
        self.assertEqual(network.in_use, 0)
        self.assertLessEqual(len(network.control(Kind.HEARTBEAT)), 1 + 1 / rto)
        self.assertGreater(len(network.control(Kind.HEARTBEAT)), 10)

    def test_forged(self) -> None:
        """X6: an error that quotes another SPI, an old or a future sequence, or too little, is ignored."""
        network = self.measured()
        for _ in range(300):
            network.send(network.client, OUT)
        esp = [data for _, data, _ in network.sent_by(network.client)]
        pair = session_with(network, 0).sending
        assert pair is not None
        future = (pair.outbound.packets + 5).to_bytes(4)
        network.run(0.01)
        network.sent.clear()
        for quote in (b"", esp[-1][:4], bytes(8), b"\1\2\3\4" + esp[-1][4:8], esp[0][:4] + future):
            endpoint = network.gateways[0].endpoint
            network.act(network.client, network.client.node.refused(endpoint, quote, network.now))
        stranger = Endpoint(ip_address("203.0.113.1"), 4500)
        network.act(network.client, network.client.node.refused(stranger, esp[-1], network.now))
        self.assertEqual(network.sent, NOTHING)

    def test_modes(self) -> None:
        """X6: NONE ignores hints; DEFERRED only marks the heartbeat due, which follows the next payload."""
        for mode, heartbeats in ((HeartbeatMode.NONE, 0), (HeartbeatMode.DEFERRED, 1)):
            network = connected(heartbeat=mode, heartbeat_defer_time=5.0)
            network.act(network.client, network.client.node.host_changed(network.now))
            network.run(1)
            self.assertEqual(network.sent, NOTHING, mode)
            network.send(network.client, OUT)
            network.run(0.01)
            self.assertEqual(len(network.control(Kind.HEARTBEAT)), heartbeats, mode)

    def test_host_changed(self) -> None:
        """X6: after a link or address event or a sleep the gateway in use is asked at once, no other."""
        network = self.measured()
        network.act(network.client, network.client.node.host_changed(network.now))
        self.assertEqual([goal for *_, goal in network.sent], [network.gateways[0].endpoint])
        self.assertEqual(len(network.control(Kind.HEARTBEAT)), 1)

    def test_transmit_error(self) -> None:
        """X6: a datagram that the kernel could not send makes the heartbeat due."""
        network = self.measured()
        endpoint = network.gateways[0].endpoint
        network.act(network.client, network.client.node.unreachable(endpoint, network.now))
        self.assertEqual(len(network.control(Kind.HEARTBEAT)), 1)

    def test_back_off_ends(self) -> None:
        """R3: a change of the network ends the back-off of key requests."""
        network = connected()
        for gateway in network.gateways:
            gateway.alive = False
        network.run(40)
        while network.client.node.status(network.now)["exchanges"]["running"]:
            network.run(0.1)
        for gateway in network.gateways:
            gateway.alive = True
        network.act(network.client, network.client.node.host_changed(network.now))
        network.run(0.1)
        self.assertIsNotNone(network.in_use)


class ConfirmTests(SynchronousTestCase):
    """One-way loss (X8)."""

    def one_way(self, confirm: float, *, sends: bool, seconds: float) -> Network:
        """Cut the way from client to gateway while packets from the gateway go on arriving."""
        network = connected(standby=1, heartbeat_confirm_time=confirm)
        network.run(1)
        network.sent.clear()
        network.cuts = {(network.client.endpoint, network.gateways[0].endpoint)}
        for _ in range(round(seconds / 0.05)):
            if sends:
                network.send(network.client, OUT)
            network.send(network.gateways[0], BACK)
            network.run(0.05)
        return network

    def test_noticed(self) -> None:
        """X8: the client leaves a gateway that does not hear it within the confirm time and the bound."""
        network = self.one_way(2.0, sends=True, seconds=2.0 + BOUND)
        self.assertEqual(network.in_use, 1)

    def test_needs_payload(self) -> None:
        """X8: a client that sends nothing has nothing confirmed."""
        network = self.one_way(2.0, sends=False, seconds=10)
        self.assertEqual((network.in_use, network.control(Kind.HEARTBEAT)), (0, NOTHING))

    def test_the_patent(self) -> None:
        """X8: with a confirm time of 0 any packet is a sign of life, as in the patent."""
        network = self.one_way(0.0, sends=True, seconds=10)
        self.assertEqual(network.in_use, 0)

    def test_other_way(self) -> None:
        """R6, R7: where nothing arrives any more the bound holds, whatever gets through to the gateway."""
        network = connected(standby=1)
        network.cuts = {(network.gateways[0].endpoint, network.client.endpoint)}
        last = session_with(network, 0).received_at
        while network.in_use == 0 and network.now < last + 1:
            network.send(network.client, OUT)
            network.run(0.005)
        self.assertEqual(network.in_use, 1)
        self.assertLess(network.now - last, BOUND + 0.01)
