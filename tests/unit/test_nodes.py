"""
A client and gateways, joined in memory: sessions, rekeying, refusals, and what R1 to R5 and R13 ask of them.
"""

from base64 import b64encode
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import (
    KEY_EXCHANGE_MARKER,
    PATH_MTU_LIFETIME,
    QUEUE_LENGTH,
    Mechanism,
    Role,
    TransformID,
)
from rvpn.datapath.packet import inspect
from rvpn.errors import DropReason
from rvpn.interfaces import Endpoint, PeerIdentity
from rvpn.policy.model import Cluster, Tunnel
from tests.unit.simulation import (
    BACK,
    DELAY,
    INNER,
    OUT,
    TARGET,
    Host,
    Network,
    key_exchange_only,
    perfect,
    udp_packet,
)

GATEWAY = ip_address("198.51.100.21")
ICMP = 1


def gateway_of(network: Network) -> str | None:
    """Return the address of the gateway that the client's cluster uses."""
    (cluster,) = network.client.node.status(network.now)["clusters"]
    in_use: str | None = cluster["in_use"]
    return in_use


class SessionTests(SynchronousTestCase):
    """One client and one gateway."""

    def test_packets_both_ways(self) -> None:
        """A first packet makes a session, goes through it, and the answer comes back."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered, [OUT])
        network.send(network.gateways[0], BACK)
        network.run(1)
        self.assertEqual(network.client.delivered, [BACK])
        self.assertEqual(network.drops(network.client), {})
        self.assertEqual(network.drops(network.gateways[0]), {})

    def test_fastest_transform(self) -> None:
        """The client's order decides where the policies leave it open, which is that of a measurement."""
        for order in ([*TransformID], [*TransformID][::-1]):
            network = Network()
            network.client.node.terms.fastest_first = tuple(order)
            network.send(network.client, udp_packet(INNER, TARGET, b"first"))
            network.run(1.0)
            (session,) = network.gateways[0].node.cache
            assert session.sending is not None
            self.assertEqual(session.sending.outbound.transform, order[0])

    def test_both_transforms(self) -> None:
        """Either transform carries packets, and the status names the one in use."""
        for transform, name in (
            (TransformID.AES_GCM_16_256, "aes-gcm-256"),
            (TransformID.CHACHA20_POLY1305, "chacha20-poly1305"),
        ):
            network = Network(transforms=(transform,))
            network.send(network.client, OUT)
            network.run(1)
            self.assertEqual(network.gateways[0].delivered, [OUT])
            self.assertEqual(network.client.node.status(network.now)["sessions"][0]["transform"], name)

    def test_nothing_in_clear(self) -> None:
        """No inner packet's bytes are on the wire."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        self.assertFalse(any(b"to the LAN" in datagram for _, datagram, _, _ in network.sent))

    def test_no_common_transform(self) -> None:
        """
        A gateway that shares no transform refuses inside the authenticated answer, so the client knows at
        once.
        """
        network = Network()
        network.gateways[0].node.reload(replace(network.gateway_policy, transforms=()), network.now)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertIn("no transform in common", " ".join(network.client.events))
        self.assertEqual(network.client.delivered[0][9], ICMP)

    def test_unknown_client(self) -> None:
        """A client that the gateway's policy does not list gets no session, and a hint in its log."""
        network = Network()
        network.gateways[0].node.reload(replace(network.gateway_policy, clients=()), network.now)
        network.send(network.client, OUT)
        network.run(5)
        self.assertEqual(len(network.client.node.cache), 0)
        self.assertIn("authentication-failed", network.drops(network.gateways[0]))
        self.assertIn("message said: authentication failed", " ".join(network.client.events))

    def test_refusals_in_the_log(self) -> None:
        """However often a gateway refuses a client, its log has a line in ten seconds, which counts that."""
        network = Network()
        network.gateways[0].node.reload(replace(network.gateway_policy, clients=()), network.now)
        for _ in range(300):
            network.act(network.client, network.client.node.authenticate(GATEWAY, network.now))
            network.run(0.1)
            network.act(
                network.client, network.client.node.unreachable(network.gateways[0].endpoint, network.now)
            )
        refusals = [event for event in network.gateways[0].events if "refused a key exchange" in event]
        self.assertEqual(len(refusals), 3)
        self.assertNotIn("more", refusals[0])
        self.assertRegex(refusals[1], r"from 192.0.2.1:4500: .* \([0-9]+ more before it\)$")

    def test_foreign_inner_address(self) -> None:
        """A client cannot get an inner address that the gateway's policy grants to nobody or to another."""
        network = Network()
        clients = tuple(
            replace(client, inner_addresses=(ip_address("10.99.0.2"),))
            for client in network.gateway_policy.clients
        )
        network.gateways[0].node.reload(replace(network.gateway_policy, clients=clients), network.now)
        network.send(network.client, OUT)
        network.run(1)
        self.assertIn("other inner addresses", " ".join(network.client.events))

    def test_too_big(self) -> None:
        """
        A packet too big for a lowered path MTU draws an ICMP error with the inner MTU; smaller ones go
        through.
        """
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        network.act(
            network.client, network.client.node.path_mtu(network.gateways[0].endpoint, 1400, network.now)
        )
        network.send(network.client, udp_packet(INNER, TARGET, bytes(1372)))
        error = network.client.delivered[-1]
        self.assertEqual((error[20], error[21]), (3, 4))
        mtu = int.from_bytes(error[26:28])
        self.assertEqual(inspect(memoryview(error)).source, TARGET.packed)
        network.send(network.client, udp_packet(INNER, TARGET, bytes(mtu - 28)))
        network.run(1)
        self.assertEqual(len(network.gateways[0].delivered[-1]), mtu)
        largest = max(len(datagram) for _, datagram, _, _ in network.sent)
        self.assertLessEqual(largest + 28, 1400)

    def test_fragmentable_passes(self) -> None:
        """
        A packet that may be fragmented is sent whatever the path MTU; the kernel fragments its datagram.
        """
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        network.client.node.path_mtu(network.gateways[0].endpoint, 1300, network.now)
        packet = udp_packet(INNER, TARGET, bytes(1400), dont_fragment=False)
        network.send(network.client, packet)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered[-1], packet)

    def test_path_mtu_is_forgotten(self) -> None:
        """What was learnt of a path is believed for ten minutes, the last that was learnt counts."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        (session,) = network.client.node.cache
        gateway, at_first = network.gateways[0].endpoint, session.inner_mtu
        network.client.node.path_mtu(gateway, 1400, network.now)
        network.run(PATH_MTU_LIFETIME / 2)
        network.client.node.path_mtu(gateway, 1350, network.now)
        learnt = session.inner_mtu
        network.run(PATH_MTU_LIFETIME - 1)
        self.assertEqual(session.inner_mtu, learnt)
        network.run(2)
        self.assertEqual(session.inner_mtu, at_first)
        self.assertGreater(at_first, learnt + 100)

    def test_link_mtu(self) -> None:
        """The sessions of either node follow the MTU of its outside link."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        gateway = network.gateways[0].endpoint
        for host in network.hosts:
            (session,) = host.node.cache
            at_first = session.inner_mtu
            host.node.path_mtu(gateway, 1300, network.now)
            host.node.paths.link_changed(1400)
            self.assertEqual(session.inner_mtu, at_first - 100)
            host.node.paths.link_changed(1500)
            self.assertEqual(session.inner_mtu, at_first)
            host.node.paths.link_changed(9000)
            self.assertGreater(session.inner_mtu, 8900)
        network.act(network.client, network.client.node.authenticate(gateway.address, network.now))
        network.run(1)
        self.assertGreater(session.inner_mtu, 8900, "new keys change nothing")

    def test_same_link_mtu(self) -> None:
        """A reload that finds the link as it was leaves alone what was learnt of a path."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        (session,) = network.client.node.cache
        network.client.node.path_mtu(network.gateways[0].endpoint, 1300, network.now)
        learnt = session.inner_mtu
        network.client.node.paths.link_changed(1500)
        self.assertEqual(session.inner_mtu, learnt)

    def test_close(self) -> None:
        """A node that stops tells its peer, which acknowledges and forgets the session (DESIGN 6)."""
        for leaves, stays in ((0, 1), (1, 0)):
            network = Network()
            network.send(network.client, OUT)
            network.run(1)
            hosts: list[Host[Any]] = [network.client, network.gateways[0]]
            network.act(hosts[leaves], hosts[leaves].node.close(network.now))
            self.assertFalse(hosts[leaves].node.quiet)
            network.run(0.05)
            self.assertTrue(hosts[leaves].node.quiet)
            self.assertEqual(len(hosts[stays].node.cache), 0)
            network.send(network.client, OUT)
            network.run(3)
            self.assertEqual(network.gateways[0].delivered, [OUT, OUT])

    def test_close_is_repeated(self) -> None:
        """A close that gets lost is sent four times in all, then the node gives up."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        network.wire = lambda *_: ()
        network.sent.clear()
        network.act(network.client, network.client.node.close(network.now))
        network.run(5)
        self.assertEqual(len(network.sent), 4)
        self.assertTrue(network.client.node.quiet)

    def test_wrong_inner_source(self) -> None:
        """
        Neither end accepts an inner packet whose source is not the peer's, or whose destination it does not
        serve.
        """
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        client: Host[Any] = network.client
        gateway: Host[Any] = network.gateways[0]
        stranger = ip_address("10.99.0.77")
        for sender, receiver, packet, reason in (
            (client, gateway, udp_packet(stranger, TARGET, b""), DropReason.WRONG_SOURCE),
            (client, gateway, udp_packet(INNER, ip_address("10.1.0.1"), b""), DropReason.WRONG_DESTINATION),
            (gateway, client, udp_packet(stranger, INNER, b""), DropReason.WRONG_SOURCE),
            (gateway, client, udp_packet(TARGET, stranger, b""), DropReason.WRONG_DESTINATION),
        ):
            (session,) = sender.node.cache
            before = len(receiver.delivered)
            assert session.sending is not None
            network.inject(session.sending.outbound.seal(packet, 4), sender.endpoint, receiver.endpoint)
            network.run(0.1)
            self.assertEqual(network.drops(receiver).pop(reason.value), 1)
            receiver.node.filter.drops.clear()
            self.assertEqual(len(receiver.delivered), before)

    def test_outside_the_policy(self) -> None:
        """
        A packet that no tunnel entry covers, or that is not from our inner address, is dropped and counted.
        """
        network = Network()
        network.send(network.client, udp_packet(INNER, ip_address("10.0.0.9"), b""))
        network.send(network.client, udp_packet(ip_address("10.99.0.9"), TARGET, b""))
        network.send(network.client, b"\x45junk")
        network.run(1)
        self.assertEqual(network.sent, [])
        self.assertEqual(
            network.drops(network.client), {"malformed-packet": 1, "no-tunnel": 1, "wrong-source": 1}
        )

    def test_gateway_without_session(self) -> None:
        """A gateway answers a packet for a client it has no session with by ICMP host unreachable (R12)."""
        network = Network()
        network.send(network.gateways[0], BACK)
        error = network.gateways[0].delivered[0]
        self.assertEqual((error[20], error[21]), (3, 1))
        self.assertEqual(inspect(memoryview(error)).destination, TARGET.packed)


class ConfirmationTests(SynchronousTestCase):
    """Nothing changes at a gateway before the client proved that it has the keys (DESIGN 4)."""

    def test_recorded_first_message(self) -> None:
        """
        A recorded first message that is played again changes nothing, neither at once nor after a restart.
        """
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        firsts = [
            d
            for _, d, source, _ in network.sent
            if d[:4] == KEY_EXCHANGE_MARKER and source == network.client.endpoint
        ]
        thief = Endpoint(ip_address("203.0.113.66"), 4500)
        for restarted in (False, True):
            if restarted:
                network.restart(0)
            gateway = network.gateways[0]
            before = [s["endpoint"] for s in gateway.node.status(network.now)["sessions"]]
            network.sent.clear()
            for first in firsts:
                network.inject(first, thief, gateway.endpoint)
            network.run(1)
            after = [s["endpoint"] for s in gateway.node.status(network.now)["sessions"]]
            self.assertEqual(before, after)
            self.assertEqual(gateway.node.status(network.now)["exchanges"]["running"], 0)
            answers = [d for _, d, source, _ in network.sent if source == gateway.endpoint]
            self.assertLessEqual(sum(map(len, answers)), sum(map(len, firsts)))

    def test_unconfirmed_sends_nothing(self) -> None:
        """
        A gateway that heard only the first message has keys, but sends no ESP and takes no session for live.
        """
        network = Network(wire=key_exchange_only)
        network.send(network.client, OUT)
        network.run(1)
        gateway = network.gateways[0]
        self.assertEqual(len(gateway.node.cache), 0)
        network.send(gateway, BACK)
        self.assertEqual(network.drops(gateway), {"no-session": 1})
        network.run(20)
        self.assertEqual(gateway.node.cache.by_spi, {})
        self.assertEqual(len(network.client.node.cache), 0)
        self.assertIn("never confirmed", " ".join(network.client.events))

    def test_wrong_clock(self) -> None:
        """A client whose clock fell back gets in all the same: the stale timestamp draws a cookie."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        network.act(network.client, network.client.node.close(network.now))
        network.run(1)
        network.client.node.time_of_day = lambda: 1.0
        network.run(3)
        network.send(network.client, OUT)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered, [OUT, OUT])


class RekeyTests(SynchronousTestCase):
    """Make-before-break (DESIGN 3)."""

    def test_no_packet_lost(self) -> None:
        """
        Keys are renewed every second for half a minute, with packets both ways every 5 ms: none is lost.
        """
        network = Network(key_lifetime=1.0)
        network.send(network.client, OUT)
        network.run(1)
        for _ in range(6000):
            network.send(network.client, OUT)
            network.send(network.gateways[0], BACK)
            network.run(0.005)
        network.run(1)
        self.assertEqual(len(network.gateways[0].delivered), 6001)
        self.assertEqual(len(network.client.delivered), 6000)
        exchanges = network.client.node.status(network.now)["exchanges"]
        self.assertGreaterEqual(exchanges["established"], 28)
        self.assertLess(len(network.gateways[0].node.cache.by_spi), 20)
        self.assertLess(len(network.client.node.agenda), 200)

    def test_lossy_rekey(self) -> None:
        """With a fifth of the datagrams lost, rekeying goes on and the session lives."""
        network = Network(key_lifetime=5.0)
        network.wire = lambda *_: () if network.random.random() < 0.2 else (DELAY,)
        for _ in range(1200):
            network.send(network.client, OUT)
            network.run(0.1)
        self.assertGreater(len(network.gateways[0].delivered), 0.7 * 1200)
        self.assertNotIn("expired", " ".join(network.client.events))

    def test_receiver_rekeys_too(self) -> None:
        """A client that only receives renews its keys as well."""
        network = Network(key_lifetime=10.0)
        network.send(network.client, OUT)
        for _ in range(400):
            network.run(0.1)
            network.send(network.gateways[0], BACK)
        network.run(1)
        self.assertEqual(len(network.client.delivered), 400)

    def test_by_packets(self) -> None:
        """An SA is renewed after 2^31 packets however young it is."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        (session,) = network.client.node.cache
        old = session.sending
        assert old is not None
        old.outbound.packets = 1 << 31
        network.run(120)
        self.assertIsNot(session.sending, old)

    def test_hard_limit(self) -> None:
        """A session that could not be renewed by the hard limit counts as failed, at both ends."""
        network = Network(key_lifetime=10.0)
        network.send(network.client, OUT)
        network.run(1)
        network.wire = lambda *_: ()
        network.run(60)
        self.assertEqual(len(network.client.node.cache), 0)
        self.assertEqual(len(network.gateways[0].node.cache), 0)
        self.assertIn("expired", " ".join(network.client.events))

    def test_packet_counter_exhausted(self) -> None:
        """
        No IV is used twice: a packet beyond the last sequence number ends the session, the next makes a new
        one.
        """
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        (session,) = network.client.node.cache
        assert session.sending is not None
        session.sending.outbound.packets = 0xFFFFFFFF
        network.send(network.client, OUT)
        self.assertEqual(len(network.client.node.cache), 0)
        network.send(network.client, OUT)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered, [OUT, OUT])


class KeyRequestTests(SynchronousTestCase):
    """The KMS and the cluster's order (R1 to R5)."""

    def test_order_is_shuffled(self) -> None:
        """
        R1: the order is random, differs between clients, and `RandomizeClusters = no` keeps the policy's.
        """
        firsts = {str(Network(3, seed).client.node.kms.order("Cluster 1")[0]) for seed in range(20)}
        self.assertEqual(len(firsts), 3)
        network = Network(3, randomize_clusters=False)
        self.assertEqual(
            tuple(network.client.node.kms.order("Cluster 1")), network.client_policy.clusters[0].members
        )

    def test_one_request(self) -> None:
        """R2: packets that wait cause one exchange, and go out when it is done."""
        network = Network()
        for _ in range(10):
            network.send(network.client, OUT)
        firsts = [d for _, d, _, _ in network.sent]
        self.assertEqual(len(firsts), 1)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered, [OUT] * 10)

    def test_bounded_queue(self) -> None:
        """R2: of too many waiting packets the oldest are dropped and counted."""
        network = Network()
        packets = [udp_packet(INNER, TARGET, b"%d" % number) for number in range(QUEUE_LENGTH + 5)]
        for packet in packets:
            network.send(network.client, packet)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered, packets[5:])
        self.assertEqual(network.drops(network.client), {"queue-full": 5})

    def test_next_gateway(self) -> None:
        """
        R3: a dead gateway costs one ExchangeTime, then the next in order is asked, and packets that waited
        arrive.
        """
        network = Network(3, randomize_clusters=False)
        network.gateways[0].alive = False
        network.send(network.client, OUT)
        network.run(2.2)
        self.assertEqual(network.gateways[1].delivered, [OUT])
        self.assertEqual(gateway_of(network), "198.51.100.22")

    def test_unreachable_network(self) -> None:
        """R3: ENETUNREACH means the next gateway now."""
        network = Network(2, randomize_clusters=False)
        network.gateways[0].alive = False
        network.send(network.client, OUT)
        network.act(
            network.client, network.client.node.unreachable(network.gateways[0].endpoint, network.now)
        )
        network.run(0.1)
        self.assertEqual(network.gateways[1].delivered, [OUT])

    def test_all_fail(self) -> None:
        """
        R3: if all fail, what waited is answered with ICMP unreachable, and the next request waits for the
        back-off.
        """
        network = Network(2)
        for host in network.gateways:
            host.alive = False
        network.send(network.client, OUT)
        network.run(4.1)
        self.assertEqual([packet[20] for packet in network.client.delivered], [3])
        network.sent.clear()
        network.send(network.client, OUT)
        self.assertEqual((len(network.sent), len(network.client.delivered)), (0, 2))
        network.run(2)
        network.send(network.client, OUT)
        self.assertEqual(len(network.sent), 1)

    def test_back_off_grows(self) -> None:
        """R3: the back-off is 1 s at first, doubles to 8 s, and is jittered by a quarter."""
        network = Network(1)
        network.gateways[0].alive = False
        starts = []
        for _ in range(3000):
            before = len(network.sent)
            network.send(network.client, OUT)
            if len(network.sent) > before:
                starts.append(network.now)
            network.run(0.02)
        waits = [later - earlier - 2.0 for earlier, later in pairwise(starts)]
        for wait, nominal in zip(waits, (1, 2, 4, 8, 8), strict=False):
            self.assertTrue(0.75 * nominal <= wait <= 1.25 * nominal + 0.05, waits)

    def test_failed_one_last(self) -> None:
        """R3: a gateway that failed is asked last next time, but asked."""
        network = Network(2, randomize_clusters=False)
        network.gateways[0].alive = False
        network.send(network.client, OUT)
        network.run(3)
        network.act(network.gateways[1], network.gateways[1].node.close(network.now))
        network.run(1)
        network.gateways[0].alive = True
        network.gateways[1].alive = False
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(network.gateways[0].delivered, [OUT])

    def test_shared_session(self) -> None:
        """R4: two clusters that name one gateway share its session and its exchange."""
        network = Network()
        (address,) = network.client_policy.clusters[0].members
        single = Cluster(str(address), (address,))
        other = ip_address("10.0.0.9")
        policy = replace(
            network.client_policy, tunnels=(*network.client_policy.tunnels, Tunnel(2, other, other, single))
        )
        network.client.node.reload(policy, network.now)
        packet = udp_packet(INNER, other, b"")
        network.send(network.client, OUT)
        network.send(network.client, packet)
        network.run(1)
        self.assertEqual(network.gateways[0].delivered, [OUT, packet])
        self.assertEqual(network.client.node.status(network.now)["exchanges"]["established"], 1)

    def test_any_session_of_the_cluster(self) -> None:
        """
        R13: an answer may come over any established session of the cluster; R5: the one in use stays in use.
        """
        network = Network(2, randomize_clusters=False)
        network.send(network.client, OUT)
        network.run(1)
        network.act(
            network.client,
            network.client.node.authenticate(network.gateways[1].endpoint.address, network.now),
        )
        network.run(1)
        network.send(network.gateways[1], BACK)
        network.run(1)
        self.assertEqual(network.client.delivered, [BACK])
        self.assertEqual(gateway_of(network), "198.51.100.21")

    def test_stays_in_use(self) -> None:
        """R5: the gateway in use stays so, though an earlier one gets a session, until its own ends."""
        network = Network(2, randomize_clusters=False)
        earlier, later = (host.endpoint.address for host in network.gateways)
        for address in later, earlier:
            network.act(network.client, network.client.node.authenticate(address, network.now))
            network.run(1)
            network.send(network.client, OUT)
            network.run(1)
            self.assertEqual(gateway_of(network), str(later))
        for host, then in zip(reversed(network.gateways), (str(earlier), None), strict=True):
            network.act(host, host.node.close(network.now))
            network.run(1)
            self.assertEqual(gateway_of(network), then)

    def test_first_live_session_in_order(self) -> None:
        """R5: of several live sessions the first in the cluster's order is taken."""
        network = Network(3, randomize_clusters=False)
        for index in (2, 1):
            address = network.gateways[index].endpoint.address
            network.act(network.client, network.client.node.authenticate(address, network.now))
            network.run(1)
            cluster = network.client.node.failover.clusters["Cluster 1"]
            cluster.in_use = None
        network.send(network.client, OUT)
        network.run(1)
        self.assertEqual(gateway_of(network), "198.51.100.22")

    def test_without_the_gateways_key(self) -> None:
        """A gateway that [PEERS] has no key for is passed over with a line in the log."""
        network = Network(2, randomize_clusters=False)
        peers = dict(network.client_policy.peers)
        del peers[network.gateways[0].endpoint.address]
        network.client.node.reload(replace(network.client_policy, peers=peers), network.now)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(network.gateways[1].delivered, [OUT])
        self.assertIn("no key for it in [PEERS]", " ".join(network.client.events))

    def test_impossible_gateway_key(self) -> None:
        """A gateway whose key in [PEERS] is impossible gives no session, and a line in the log each time."""
        network = Network(1)
        (address,) = network.client_policy.clusters[0].members
        peers = {address: PeerIdentity(Mechanism.NOISE, b64encode(bytes(32)).decode())}
        network.client.node.reload(replace(network.client_policy, peers=peers), network.now)
        for _ in range(2):
            network.send(network.client, OUT)
            network.run(2)
        self.assertEqual(network.client.node.status(network.now)["exchanges"]["failed"], 2)
        self.assertEqual(len([event for event in network.client.events if "cannot be anybody's" in event]), 2)
        self.assertEqual([packet[20] for packet in network.client.delivered], [3, 3])

    def test_wrong_gateway_key(self) -> None:
        """A gateway that does not have the key of the policy gives no session."""
        network = Network(1)
        network.keys[0] = bytes(range(32))
        network.restart(0)
        network.send(network.client, OUT)
        network.run(3)
        self.assertEqual(network.gateways[0].delivered, [])
        self.assertEqual(len(network.client.node.cache), 0)


class ReloadTests(SynchronousTestCase):
    """A policy read again."""

    def test_sessions_live(self) -> None:
        """
        R1: a reload shuffles again but moves no gateway in use while the cluster's members are the same.
        """
        network = Network(3)
        network.send(network.client, OUT)
        network.run(1)
        in_use = gateway_of(network)
        for _ in range(10):
            network.act(network.client, network.client.node.reload(network.client_policy, network.now))
            self.assertEqual(gateway_of(network), in_use)

    def test_gateway_gone(self) -> None:
        """A session with a gateway that the new policy does not name is closed."""
        network = Network(2, randomize_clusters=False)
        network.send(network.client, OUT)
        network.run(1)
        kept = Cluster("Cluster 1", network.client_policy.clusters[0].members[1:])
        tunnel = replace(network.client_policy.tunnels[0], cluster=kept)
        policy = replace(network.client_policy, clusters=(kept,), tunnels=(tunnel,))
        network.act(network.client, network.client.node.reload(policy, network.now))
        network.run(1)
        self.assertEqual(len(network.gateways[0].node.cache), 0)
        network.send(network.client, OUT)
        network.run(1)
        self.assertEqual(network.gateways[1].delivered, [OUT])

    def test_gateway_gone_while_asked(self) -> None:
        """R3: if a new policy lacks the gateway that is being asked, the next one is asked at once."""
        network = Network(2, randomize_clusters=False)
        network.gateways[0].alive = False
        network.send(network.client, OUT)
        network.run(0.5)
        kept = Cluster("Cluster 1", network.client_policy.clusters[0].members[1:])
        tunnel = replace(network.client_policy.tunnels[0], cluster=kept)
        policy = replace(network.client_policy, clusters=(kept,), tunnels=(tunnel,))
        network.act(network.client, network.client.node.reload(policy, network.now))
        network.run(0.1)
        network.send(network.client, OUT)
        network.run(0.1)
        self.assertEqual(network.gateways[1].delivered[-1], OUT)

    def test_rekey_with_gateway_gone(self) -> None:
        """An exchange with a gateway that a new policy lacks ends, though nobody waits for it."""
        network = Network(2, randomize_clusters=False)
        network.gateways[0].alive = False
        network.act(network.client, network.client.node.authenticate(GATEWAY, network.now))
        kept = Cluster("Cluster 1", network.client_policy.clusters[0].members[1:])
        tunnel = replace(network.client_policy.tunnels[0], cluster=kept)
        policy = replace(network.client_policy, clusters=(kept,), tunnels=(tunnel,))
        network.act(network.client, network.client.node.reload(policy, network.now))
        exchanges = network.client.node.status(network.now)["exchanges"]
        self.assertEqual(exchanges, {"running": 0, "established": 0, "failed": 1})
        network.sent.clear()
        network.run(10)
        self.assertEqual(network.sent, [])

    def test_client_gone(self) -> None:
        """A gateway closes the session of a client that its new policy does not list."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        gateway = network.gateways[0]
        network.act(gateway, gateway.node.reload(replace(network.gateway_policy, clients=()), network.now))
        network.run(1)
        self.assertEqual(len(network.client.node.cache), 0)


class RestartTests(SynchronousTestCase):
    """Ends that lost their keys."""

    def test_client_restart(self) -> None:
        """
        A client that starts again takes its session over at the gateway, which keeps one session for it.
        """
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        again = Network(seed=1)
        again.gateways = network.gateways
        again.now = network.now + 1
        again.random.seed(2)
        again.send(again.client, OUT)
        again.run(1)
        again.send(again.gateways[0], BACK)
        again.run(1)
        self.assertEqual(again.client.delivered, [BACK])
        self.assertEqual(len(again.gateways[0].node.cache), 1)
        self.assertEqual(again.client.node.status(again.now)["role"], Role.CLIENT.value)
        self.assertIs(again.wire, perfect)


class TwoMachinesTests(SynchronousTestCase):
    """One identity in two places."""

    def elsewhere(self, network: Network) -> Network:
        """Return another network with a client that has the same key, at another address, and its gateway."""
        other = Network()
        other.gateways, other.now = network.gateways, network.now
        other.random.seed(2)
        other.client.endpoint = Endpoint(ip_address("192.0.2.77"), 4500)
        return other

    def warnings(self, network: Network) -> list[str]:
        """Return the gateway's lines about machines that share a key."""
        return [event for event in network.gateways[0].events if "two machines" in event]

    def test_each_takes_the_session(self) -> None:
        """The newest exchange wins, and the log tells of it, each time, with both endpoints (DESIGN 4)."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        other = self.elsewhere(network)
        other.send(other.client, OUT)
        other.run(1)
        (warning,) = self.warnings(network)
        self.assertIn("from 192.0.2.77:4500, and was at 192.0.2.1:4500", warning)
        other.send(other.gateways[0], BACK)
        other.run(1)
        self.assertEqual(other.client.delivered, [BACK])
        network.now = other.now
        network.act(network.client, network.client.node.authenticate(GATEWAY, network.now))
        network.run(1)
        self.assertEqual(len(self.warnings(network)), 2)
        self.assertIn("from 192.0.2.1:4500, and was at 192.0.2.77:4500", self.warnings(network)[1])

    def test_same_place(self) -> None:
        """New keys from the same endpoint, and a new session after one that ended, are nothing to tell."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        network.act(network.client, network.client.node.authenticate(GATEWAY, network.now))
        network.run(1)
        network.act(network.client, network.client.node.close(network.now))
        network.run(1)
        other = self.elsewhere(network)
        other.send(other.client, OUT)
        other.run(1)
        self.assertEqual(network.gateways[0].delivered, [OUT, OUT])
        self.assertEqual(self.warnings(network), [])

    def test_roaming(self) -> None:
        """A client that moved with its session may make new keys where it is now."""
        network = Network()
        network.send(network.client, OUT)
        network.run(1)
        network.client.endpoint = Endpoint(ip_address("192.0.2.77"), 4500)
        network.send(network.client, OUT)
        network.run(1)
        self.assertIn("moved from", network.gateways[0].events[-1])
        network.act(network.client, network.client.node.authenticate(GATEWAY, network.now))
        network.run(1)
        self.assertEqual(network.client.node.kms.established, 2)
        self.assertEqual(self.warnings(network), [])
