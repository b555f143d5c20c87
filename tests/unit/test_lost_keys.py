"""A gateway that lost its keys proves it, and does not look alive (X3, R16)."""

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import CONTROL_SPI, KEY_EXCHANGE_MARKER, NOTICES_PER_SECOND, OLD_SA_LINGER, HeartbeatMode
from rvpn.interfaces import Endpoint
from rvpn.session.lost_keys import NOTICE_SIZE, LostKeys, proves
from rvpn.session.session_control import CONTROL_SIZE, Kind
from rvpn.session.sessions import SAPair
from tests.unit.simulation import BACK, CONTROL, DELAY, INNER, OUT, STRANGER, Host, Network

SECRET = bytes(range(32))
ROUND_TRIP = 2 * DELAY


class NoticeTests(SynchronousTestCase):
    """Tokens and notices as bytes."""

    def test_layout(self) -> None:
        """X3: a notice is the control SPI, four zero bytes, the SPI it is about and 16 bytes of token."""
        notice = LostKeys(SECRET, 8).notice(0x01020304)
        self.assertEqual(notice[:12], CONTROL_SPI.to_bytes(4) + bytes(4) + b"\1\2\3\4")
        self.assertEqual((len(notice), NOTICE_SIZE), (28, 28))
        self.assertEqual(notice[12:], LostKeys(SECRET, 7).token(0x01020304))

    def test_proves_the_start_before(self) -> None:
        """X3: a notice of start N shows tokens of start N - 1, of no other start, SPI or gateway."""
        notice = LostKeys(SECRET, 8).notice(1000)
        self.assertTrue(proves(notice, LostKeys(SECRET, 7).token(1000)))
        for secret, start, spi in (
            (SECRET, 8, 1000),
            (SECRET, 6, 1000),
            (SECRET, 7, 1001),
            (SECRET[::-1], 7, 1000),
        ):
            self.assertFalse(proves(notice, LostKeys(secret, start).token(spi)))

    def test_no_token(self) -> None:
        """X3: a session whose gateway told no token cannot be proved lost."""
        self.assertFalse(proves(LostKeys(SECRET, 8).notice(1000), b""))


def exchanges(network: Network) -> int:
    """Return how many exchanges the client has begun."""
    return len({d[8:16] for _, d, _ in network.sent_by(network.client) if d[:4] == KEY_EXCHANGE_MARKER})


def notices(network: Network) -> list[bytes]:
    """Return the notices that were sent."""
    return [data for _, data, *_ in network.sent if data[:4] == CONTROL and len(data) == NOTICE_SIZE]


def connected(gateways: int = 1, **policy: Any) -> Network:
    """Return a network whose client has a session, with nothing on record."""
    network = Network(gateways, randomize_clusters=False, **policy)
    return network.connect()


def sending(network: Network) -> SAPair:
    """Return the pair that the client sends on."""
    (session,) = network.client.node.cache
    assert session.sending is not None
    return session.sending


class RestartTests(SynchronousTestCase):
    """A gateway that starts again, or forgets its keys, under a client that has them."""

    def test_two_round_trips(self) -> None:
        """X3: the first packet after a restart draws the notice, and the client keys anew at once."""
        network = connected()
        network.restart(0)
        start = network.now
        network.send(network.client, OUT)
        network.run(ROUND_TRIP)
        self.assertEqual((len(notices(network)), exchanges(network)), (1, 1))
        self.assertLessEqual(network.now - start, 2 * ROUND_TRIP)
        network.run(3 * ROUND_TRIP)
        network.send(network.client, OUT)
        network.run(ROUND_TRIP)
        self.assertEqual(network.gateways[0].delivered, [OUT, OUT])

    def test_forgotten_keys(self) -> None:
        """X3: the same for keys that are lost inside the running process."""
        network = connected()
        gateway = network.gateways[0]
        lost = LostKeys(network.keys[0], 2)
        network.act(gateway, gateway.node.forget_keys(lost, network.now))
        self.assertEqual((len(gateway.node.cache), gateway.node.cache.by_spi), (0, {}))
        network.send(network.client, OUT)
        network.run(4 * ROUND_TRIP)
        network.send(network.client, OUT)
        network.run(ROUND_TRIP)
        self.assertEqual(gateway.delivered, [OUT, OUT])

    def test_idle_client(self) -> None:
        """X3: a client without payload hears of it by its heartbeat, long before R7 would tell."""
        network = connected(
            heartbeat=HeartbeatMode.INSTANT, heartbeat_defer_time=0.5, heartbeat_response_time=5.0
        )
        network.restart(0)
        network.run(0.6)
        self.assertEqual((len(notices(network)), len(network.gateways[0].node.cache)), (1, 1))

    def test_does_not_look_alive(self) -> None:
        """R16: a restarted gateway answers no heartbeat under keys that it does not have, and is given up."""
        network = connected(
            heartbeat=HeartbeatMode.INSTANT, heartbeat_defer_time=0.2, heartbeat_response_time=0.1
        )
        network.restart(0)
        network.wire = lambda data, *_: () if len(data) == NOTICE_SIZE else (DELAY,)
        network.run(0.35)
        self.assertEqual(len(network.control(Kind.HEARTBEAT)), 2)
        self.assertEqual(network.control(Kind.ANSWER), [])
        network.run(0.1)
        self.assertEqual(len(network.control(Kind.CLOSE)[:1]), 1)

    def test_claimed_again(self) -> None:
        """R16, DESIGN 8: a gateway that lost its keys lost the claim too, and gets another with new keys."""
        network = connected()
        self.assertTrue(network.gateways[0].node.presence.owns(INNER.packed))
        network.restart(0)
        self.assertFalse(network.gateways[0].node.presence.owns(INNER.packed))
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertTrue(network.gateways[0].node.presence.owns(INNER.packed))
        network.send(network.gateways[0], BACK)
        network.run(0.1)
        self.assertEqual(network.client.delivered, [BACK])

    def test_old_keys_stay(self) -> None:
        """X3: until the new exchange succeeds the old SA stays in use; the gateway is not given up for it."""
        network = connected()
        before = sending(network)
        network.restart(0)
        network.wire = lambda data, *_: () if data[:4] == KEY_EXCHANGE_MARKER else (DELAY,)
        network.send(network.client, OUT)
        network.run(5)
        self.assertEqual(len(notices(network)), 1)
        self.assertIs(sending(network), before)

    def test_two_restarts(self) -> None:
        """X3: tokens of older starts are not disclosed, so that two restarts in a row are left to R7."""
        network = connected()
        network.restart(0)
        network.restart(0)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual((len(notices(network)), exchanges(network)), (1, 0))

    def test_unfinished_exchanges(self) -> None:
        """X3: keys that the client has not confirmed yet are forgotten with the others."""
        network = Network(1)
        gateway = network.gateways[0]
        network.wire = lambda data, *_: (DELAY,) if data[:4] == KEY_EXCHANGE_MARKER else ()
        network.send(network.client, OUT)
        network.run(0.01)
        network.act(gateway, gateway.node.forget_keys(LostKeys(network.keys[0], 2), network.now))
        running = gateway.node.status(network.now)["exchanges"]["running"]
        self.assertEqual((gateway.node.cache.by_spi, running), ({}, 0))


class ForgeryTests(SynchronousTestCase):
    """Notices that prove nothing."""

    def check_ignored(self, network: Network, notice: bytes, source: Endpoint | None = None) -> None:
        """A notice does nothing, and is counted."""
        before, drops = sending(network), network.client.node.drop_counts().get("unexpected-control", 0)
        network.sent.clear()
        network.receive(network.client, notice, source or network.gateways[0].endpoint)
        self.assertEqual(network.sent, [])
        self.assertIs(sending(network), before)
        self.assertEqual(network.client.node.drop_counts()["unexpected-control"], drops + 1)

    def test_forged(self) -> None:
        """X3: without the token, or for an SPI that the client does not send to, a notice does nothing."""
        network = connected()
        spi = sending(network).outbound.spi
        for notice in (
            LostKeys(SECRET, 2).notice(spi),
            LostKeys(network.keys[0], 1).notice(spi),
            LostKeys(network.keys[0], 2).notice(spi ^ 1),
            LostKeys(network.keys[0], 2).notice(sending(network).inbound.spi),
        ):
            self.check_ignored(network, notice)

    def test_from_elsewhere(self) -> None:
        """X3: the true notice counts from the gateway's address alone."""
        network = connected()
        notice = LostKeys(network.keys[0], 2).notice(sending(network).outbound.spi)
        self.check_ignored(network, notice, STRANGER)

    def test_random_bytes(self) -> None:
        """X3: a million guesses would not hit; a thousand do not."""
        network = connected()
        random = Random(1)
        head = CONTROL + bytes(4) + sending(network).outbound.spi.to_bytes(4)
        for _ in range(1000):
            network.receive(network.client, head + random.randbytes(16), network.gateways[0].endpoint)
        self.assertEqual(network.sent, [])

    def test_replayed(self) -> None:
        """X3: once there are new keys a notice for the old ones does nothing, though those still linger."""
        network = connected()
        network.restart(0)
        network.send(network.client, OUT)
        network.run(0.1)
        (notice,) = notices(network)
        for pause in (0, OLD_SA_LINGER / 2, OLD_SA_LINGER):
            network.run(pause)
            self.check_ignored(network, notice)

    def test_repeated_at_once(self) -> None:
        """X3: however many notices a burst of packets draws, one exchange follows."""
        network = connected()
        network.restart(0)
        for _ in range(50):
            network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual((len(notices(network)), exchanges(network)), (50, 1))


class BoundTests(SynchronousTestCase):
    """What strangers get for packets of nobody."""

    def test_never_longer(self) -> None:
        """X3: no notice is longer than the datagram that drew it."""
        network = Network(1)
        gateway: Host[Any] = network.gateways[0]
        for size in range(1, 100):
            network.run(1)
            network.sent.clear()
            network.receive(gateway, bytes([1] * size), STRANGER)
            self.assertEqual([len(data) for _, data, *_ in network.sent], [28] if size >= 28 else [])

    def test_rate(self) -> None:
        """X3: notices are limited in each second, for ESP and control packets together."""
        network = Network(1)
        gateway: Host[Any] = network.gateways[0]
        control = CONTROL + b"\1" + bytes(CONTROL_SIZE - 5)
        for datagram in [bytes([1] * 60), control] * 1000:
            network.receive(gateway, datagram, STRANGER)
        self.assertEqual(len(network.sent), NOTICES_PER_SECOND)
        network.run(1)
        for _ in range(1000):
            network.receive(gateway, control, STRANGER)
        self.assertEqual(len(network.sent), 2 * NOTICES_PER_SECOND)
        counts = gateway.node.drop_counts()
        self.assertEqual((counts["unknown-spi"], counts["unknown-session"]), (1000, 2000))

    def test_no_loop(self) -> None:
        """X3: notices that two gateways are made to send each other draw nothing."""
        network = Network(2)
        one, other = network.gateways
        for _ in range(10):
            network.inject(bytes([1] * 60), one.endpoint, other.endpoint)
            network.inject(bytes([1] * 60), other.endpoint, one.endpoint)
        network.run(10)
        self.assertEqual(len(network.sent), 20)
