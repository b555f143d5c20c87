"""
Peers that authenticate and then do what they like, in any order and at any time.

After each step the victim's session cache holds together. At the end what they left behind is gone, and who
is honest is served.
"""

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import BACKOFF_LAST, OLD_SA_LINGER
from rvpn.errors import DropReason
from rvpn.gateway.node import Gateway
from rvpn.keyexchange.acceptor import HALF_OPEN_TIME
from rvpn.session.sessions import SessionCache
from tests.fuzz.hostile import KEY, OWN, HostileClient, HostileGateway, Peer
from tests.fuzz.scene import GROWTH, INNER_6, Memory, Misbehaviour, Scene, check_agenda, report
from tests.unit.simulation import INNER, Host, perfect

#: What a step costs is mostly key exchanges, of which the hostile client makes more.
CLIENT_STEPS, GATEWAY_STEPS = 4000, 15000


def check_cache(cache: SessionCache) -> None:
    """Raise `Misbehaviour` unless every session that can be found lives and can send."""
    sessions = list(cache)
    for session in sessions:
        if session.closed or session.sending is None or session.sending not in session.pairs:
            raise Misbehaviour("a session in the cache cannot send")
    if any(found not in sessions for found in (*cache.by_inner.values(), *cache.by_endpoint.values())):
        raise Misbehaviour("a session is found that is not in the cache")
    for spi, pair in cache.by_spi.items():
        if pair.inbound.spi != spi or pair.session is None or pair not in pair.session.pairs:
            raise Misbehaviour("an SPI leads to a pair of no session")


def check_presence(gateway: Gateway) -> None:
    """Raise `Misbehaviour` unless every address is owned for a session that lives."""
    for ownership in gateway.presence._by_client.values():
        if gateway.cache.get(ownership.session.key) is not ownership.session:
            raise Misbehaviour("an address is owned for a session that has ended")


class SequenceTests(SynchronousTestCase):
    """A hostile peer against a node."""

    def attack(self, scene: Scene, hostile: Peer, victim: Host[Any], steps: int) -> None:
        """Let the peer do so many things, and print what came of it."""
        appointments = pairs = 0
        with Memory() as memory:
            for number in range(steps):
                hostile.step()
                check_cache(victim.node.cache)
                check_agenda(scene, victim)
                if isinstance(victim.node, Gateway):
                    check_presence(victim.node)
                appointments = max(appointments, len(victim.node.agenda))
                pairs = max(pairs, len(victim.node.cache.by_spi))
                if number % 50 == 0:
                    scene.forget()
                if number == steps // 10:
                    memory.begin()
            scene.run(HALF_OPEN_TIME + OLD_SA_LINGER)
            growth = memory.growth()
        figures = f"{steps} steps, {hostile.handshakes} handshakes, {hostile.granted} pairs of SAs"
        report(self, f"{figures}, at most {pairs} and {appointments} appointments at a time", growth)
        self.assertLessEqual(growth, GROWTH)

    def test_hostile_client(self) -> None:
        """A client of the policy harms nobody but itself: another one's session lives, with its keys."""
        scene = Scene(other=(KEY, OWN), literal_heartbeats=True)
        scene.ping()
        keys = scene.sending()
        gateway = scene.gateway.node
        hostile = HostileClient(scene, Random(6))
        scene.wire = hostile.wire
        self.attack(scene, hostile, scene.gateway, CLIENT_STEPS)
        self.assertTrue(scene.ping())
        self.assertEqual(scene.sending(), keys)
        self.assertLessEqual(len(gateway.cache.by_spi), 2)
        self.assertLessEqual(len(gateway.agenda), 2)
        self.assertEqual((len(gateway.acceptances.acceptor), len(gateway.acceptances)), (0, 0))
        self.assertGreater(gateway.filter.drops[DropReason.TOO_MANY_HEARTBEATS], 0)

    def test_hostile_gateway(self) -> None:
        """A gateway of the policy harms its client only as long as it is there; then the true one serves."""
        scene = Scene(exchange_time=4.0, key_lifetime=2.0)
        scene.gateway.alive = False
        hostile = HostileGateway(scene, Random(7))
        scene.wire = hostile.wire
        scene.expected[scene.gateway.endpoint] = INNER, INNER_6
        client = scene.client.node
        self.attack(scene, hostile, scene.client, GATEWAY_STEPS)
        scene.run(2 * BACKOFF_LAST)
        self.assertLessEqual(len(client.agenda), 1)
        self.assertEqual(client.cache.by_spi, {})
        scene.wire, scene.gateway.alive = perfect, True
        self.assertTrue(scene.ping())
