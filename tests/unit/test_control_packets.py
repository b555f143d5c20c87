"""Session control between two nodes: what is repeated, what is counted and dropped (DESIGN 6)."""

from itertools import pairwise
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import CONTROL_INTERVAL, CONTROL_REPEATS, HeartbeatMode
from rvpn.session.session_control import CONTROL_SIZE, ControlChannel, Kind, Status
from tests.unit.simulation import CONTROL, DELAY, INNER, OUT, Host, Network, perfect


def connected(gateways: int = 1) -> Network:
    """Return a network whose client has a session, with nothing on record."""
    network = Network(gateways, randomize_clusters=False)
    return network.connect(1)


def channel(host: Host[Any]) -> ControlChannel:
    """Return the control channel of a node's only session."""
    (session,) = host.node.cache
    control: ControlChannel = session.sending.control
    return control


class RepetitionTests(SynchronousTestCase):
    """Claim, close and status draw an acknowledgement, and are repeated for want of it."""

    def say(self, network: Network, kind: Kind) -> Host[Any]:
        """Let the node that says such things say one; return it."""
        client, gateway = network.client, network.gateways[0]
        if kind is Kind.CLAIM:
            (session,) = client.node.cache
            network.act(client, client.node.claim(session, network.now))
        elif kind is Kind.CLOSE:
            network.act(client, client.node.close(network.now))
        else:
            network.act(gateway, gateway.node.drain(True, network.now))
            return gateway
        return client

    def test_acknowledged(self) -> None:
        """Each goes once, and draws one acknowledgement of equal length."""
        for kind in (Kind.CLAIM, Kind.CLOSE, Kind.STATUS):
            network = connected()
            self.say(network, kind)
            network.run(3)
            self.assertEqual((len(network.control(kind)), len(network.control(Kind.ACK))), (1, 1), kind)
            self.assertEqual({len(data) for _, data, *_ in network.sent}, {CONTROL_SIZE})

    def test_at_most_four_times(self) -> None:
        """Nobody answers: each goes four times in all, a tenth of a second apart."""
        for kind in (Kind.CLAIM, Kind.CLOSE, Kind.STATUS):
            network = connected()
            network.wire = lambda *_: ()
            self.say(network, kind)
            network.run(10)
            times = network.control(kind)
            self.assertEqual((len(times), CONTROL_REPEATS), (4, 4), kind)
            for earlier, later in pairwise(times):
                self.assertAlmostEqual(later - earlier, CONTROL_INTERVAL)

    def test_until_acknowledged(self) -> None:
        """A lost packet or a lost acknowledgement costs one repetition each."""
        for kind in (Kind.CLAIM, Kind.CLOSE, Kind.STATUS):
            for lost in (kind, Kind.ACK):
                network = connected()
                losses = [1]

                def lose(
                    data: bytes, *_: object, lost: Kind = lost, losses: list[int] = losses
                ) -> tuple[float, ...]:
                    if data[4] == lost and losses:
                        losses.pop()
                        return ()
                    return (DELAY,)

                network.wire = lose
                self.say(network, kind)
                network.run(3)
                self.assertEqual(len(network.control(kind)), 2, (kind, lost))

    def test_any_acknowledgement(self) -> None:
        """An acknowledgement of the first packet that comes after the second was sent is enough."""
        network = connected()
        network.wire = lambda data, *_: (1.7 * CONTROL_INTERVAL,) if data[4] == Kind.ACK else (DELAY,)
        self.say(network, Kind.CLAIM)
        network.run(3)
        self.assertEqual(len(network.control(Kind.CLAIM)), 2)

    def test_foreign_acknowledgement(self) -> None:
        """An acknowledgement of something else ends nothing."""
        network = connected()
        network.wire = lambda *_: ()
        self.say(network, Kind.CLAIM)
        sequence = channel(network.client).sequence
        for wrong in (0, sequence - 1, sequence + 1):
            acknowledgement = channel(network.gateways[0]).send(Kind.ACK, in_reply_to=wrong)
            network.receive(network.client, acknowledgement, network.gateways[0].endpoint)
        network.run(1)
        self.assertEqual(len(network.control(Kind.CLAIM)), CONTROL_REPEATS)

    def test_newer_claim(self) -> None:
        """A claim takes the place of the one before, with a newer generation."""
        network = connected()
        network.wire = lambda *_: ()
        self.say(network, Kind.CLAIM)
        self.say(network, Kind.CLAIM)
        network.run(1)
        self.assertEqual(len(network.control(Kind.CLAIM)), 1 + CONTROL_REPEATS)
        generations = [int.from_bytes(data[28:40]) for _, data, *_ in network.sent]
        self.assertEqual(len(set(generations)), 2)
        self.assertEqual(generations, sorted(generations))


class LostClaimTests(SynchronousTestCase):
    """A claim that never arrived, though the session lives (DESIGN 8)."""

    def cut_off(self, mode: HeartbeatMode) -> Network:
        """Return a network in which the client changed to its second gateway unheard, and that is over."""
        network = Network(2, randomize_clusters=False, heartbeat=mode, heartbeat_defer_time=5.0, standby=1)
        network.send(network.client, OUT)
        network.run(1)
        network.act(network.gateways[0], network.gateways[0].node.drain(True, network.now))
        network.wire = lambda data, *_: () if data[:5] == CONTROL + bytes([Kind.CLAIM]) else (DELAY,)
        network.send(network.client, OUT)
        network.run(1)
        network.wire = perfect
        self.assertFalse(network.gateways[1].node.presence.owns(INNER.packed))
        return network

    def test_instant(self) -> None:
        """An INSTANT client claims again about every second until it is heard, and then no more."""
        network = self.cut_off(HeartbeatMode.INSTANT)
        network.run(2)
        self.assertTrue(network.gateways[1].node.presence.owns(INNER.packed))
        network.sent.clear()
        network.run(60)
        self.assertEqual(network.control(Kind.CLAIM), [])

    def test_with_payload(self) -> None:
        """Others claim again with the next payload packet, and send nothing before."""
        for mode in (HeartbeatMode.DEFERRED, HeartbeatMode.NONE):
            network = self.cut_off(mode)
            network.sent.clear()
            network.run(600)
            self.assertEqual(network.sent, [])
            network.send(network.client, OUT)
            network.run(0.1)
            self.assertTrue(network.gateways[1].node.presence.owns(INNER.packed))


class RefusalTests(SynchronousTestCase):
    """Packets that are counted and dropped."""

    def check(self, host: Host[Any], network: Network, datagram: bytes, reason: str) -> None:
        """A datagram draws nothing but a count."""
        network.sent.clear()
        host.node.filter.drops.clear()
        network.receive(host, datagram, network.gateways[0].endpoint)
        self.assertEqual((network.sent, host.node.drop_counts()), ([], {reason: 1}))

    def test_replayed(self) -> None:
        """Whatever kind was taken once is not taken again, at either end."""
        network = connected()
        client, gateway = network.client, network.gateways[0]
        for sender, receiver in (client, gateway), (gateway, client):
            for kind in Kind:
                if kind is Kind.CLOSE:
                    continue
                datagram = channel(sender).send(kind)
                network.receive(receiver, datagram, sender.endpoint)
                self.check(receiver, network, datagram, "replayed-control")

    def test_replayed_close(self) -> None:
        """A close that was recorded does not end the next session with the same peer."""
        network = connected()
        client, gateway = network.client, network.gateways[0]
        network.act(client, client.node.close(network.now))
        closes = [data for _, data, _ in network.sent_by(client) if data[4] == Kind.CLOSE]
        network.run(12)
        network.send(client, OUT)
        network.run(1)
        for close in closes:
            network.inject(close, client.endpoint, gateway.endpoint)
        network.run(1)
        self.assertEqual((len(client.node.cache), len(gateway.node.cache)), (1, 1))

    def test_reflected(self) -> None:
        """What a node sent does not come back to it as its peer's: the keys differ by direction."""
        network = connected()
        client, gateway = network.client, network.gateways[0]
        for host in (client, gateway):
            datagram = bytearray(channel(host).send(Kind.CLOSE))
            (session,) = host.node.cache
            assert session.sending is not None
            datagram[8:12] = session.sending.inbound.spi.to_bytes(4)
            self.check(host, network, bytes(datagram), "bad-control-tag")

    def test_foreign(self) -> None:
        """A packet of one gateway's session is not taken for another's."""
        network = connected(2)
        client, (first, second) = network.client, network.gateways
        network.act(client, client.node.authenticate(second.endpoint.address, network.now))
        network.run(1)
        (session,) = second.node.cache
        assert session.sending is not None
        datagram = bytearray(channel(first).send(Kind.CLOSE))
        datagram[8:12] = session.sending.outbound.spi.to_bytes(4)
        self.check(client, network, bytes(datagram), "bad-control-tag")
        self.assertEqual(len(client.node.cache), 2)

    def test_tampered(self) -> None:
        """Not a bit of a packet can be changed on the way."""
        network = connected()
        for bit in range(12 * 8, 40 * 8):
            datagram = bytearray(channel(network.gateways[0]).send(Kind.STATUS, Status.LAN_DOWN))
            datagram[bit // 8] ^= 1 << bit % 8
            self.check(network.client, network, bytes(datagram), "bad-control-tag")

    def test_unexpected(self) -> None:
        """A role takes no kind that only the other role is sent."""
        network = connected()
        client, gateway = network.client, network.gateways[0]
        for sender, receiver, kinds in (
            (gateway, client, (Kind.HEARTBEAT, Kind.RESPONSE, Kind.CLAIM)),
            (client, gateway, (Kind.ANSWER, Kind.STATUS, Kind.OWNER)),
        ):
            for kind in kinds:
                self.check(receiver, network, channel(sender).send(kind), "unexpected-control")

    def test_unasked_answer(self) -> None:
        """An authentic answer that nobody waits for is counted, and brings its status all the same."""
        network = connected()
        answer = channel(network.gateways[0]).send(Kind.ANSWER, Status.DRAINING, in_reply_to=5)
        self.check(network.client, network, answer, "unexpected-control")


class OwnerTests(SynchronousTestCase):
    """`owner?` and what it draws (DESIGN 8)."""

    def test_in_use(self) -> None:
        """The client claims its addresses again from the gateway in use, with a newer generation."""
        network = connected()
        before = network.client.node.session_control.generation
        owner = channel(network.gateways[0]).send(Kind.OWNER)
        network.receive(network.client, owner, network.gateways[0].endpoint)
        self.assertEqual(len(network.control(Kind.CLAIM)), 1)
        self.assertGreater(network.client.node.session_control.generation, before)

    def test_not_in_use(self) -> None:
        """A gateway that is not in use gets no claim."""
        network = connected(2)
        client, second = network.client, network.gateways[1]
        network.act(client, client.node.authenticate(second.endpoint.address, network.now))
        network.run(1)
        network.sent.clear()
        network.receive(client, channel(second).send(Kind.OWNER), second.endpoint)
        self.assertEqual(network.control(Kind.CLAIM), [])
        self.assertEqual(len(network.sent), 1)

    def test_generations_grow(self) -> None:
        """Each claim is newer than the one before though the clock stands still or goes back."""
        network = connected()
        client = network.client.node
        (session,) = client.cache
        generations = [client.session_control.generation]
        for time in (1.7e9, 1.7e9, 1.0, 0.0, 2.0e9):
            client.time_of_day = lambda time=time: time  # type: ignore[misc] # a default, not a parameter
            client.claim(session, network.now)
            generations.append(client.session_control.generation)
        self.assertEqual(generations, sorted(set(generations)))

    def test_lan_comes_back(self) -> None:
        """DESIGN 8: a gateway whose LAN was away doubts what it owned, and asks the client."""
        network = connected(2)
        first = network.gateways[0]
        self.assertTrue(first.node.presence.owns(INNER.packed))
        network.lan(first, up=False)
        network.run(1)
        self.assertTrue(network.gateways[1].node.presence.owns(INNER.packed))
        network.lan(first, up=True)
        self.assertFalse(first.node.presence.owns(INNER.packed))
        network.run(10)
        self.assertFalse(first.node.presence.owns(INNER.packed))
        self.assertTrue(network.gateways[1].node.presence.owns(INNER.packed))
