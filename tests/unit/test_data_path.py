"""The data path with whole batches: runs sealed and opened, each packet judged for itself."""

from ipaddress import ip_address
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import (
    BATCH_CAPACITY,
    KEY_EXCHANGE_MARKER,
    RUN_BYTES,
    RUN_DATAGRAMS,
    TRAIN_FIELDS,
    VNET_HEADER,
    NextHeader,
)
from rvpn.datapath.offload import COMPLETE, GSO_NONE, NEEDS_CSUM, TCP, UDP, VnetHeader
from rvpn.datapath.packet import addresses, inspect
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.codec import SHORTEST, sealed_size
from rvpn.interfaces import Action, DatagramBatch, Deliver, Endpoint, PacketBatch, Path, Run, Send
from rvpn.node import TunnelEnd
from rvpn.session.session_control import CONTROL_SIZE
from rvpn.session.sessions import Session
from tests.unit import inner_packets
from tests.unit.inner_packets import DESTINATION, SOURCE, partial, recomputed, vnet
from tests.unit.simulation import INNER, TARGET, Host, Network, batch_of, delivered_in

THERE, BACK = {"src": str(INNER), "dst": str(TARGET)}, {"src": str(TARGET), "dst": str(INNER)}


def packet(protocol: int, length: int, way: dict[str, str] = THERE, **fields: Any) -> bytes:
    """Return an IPv4 packet with a complete checksum."""
    made = inner_packets.packet(4, protocol, bytes(length), **fields)
    ends = ip_address(way["src"]).packed + ip_address(way["dst"]).packed
    return recomputed(made[:12] + ends + made[20:])


def super_packet(protocol: int, length: int, size: int, **fields: Any) -> bytes:
    """Return a super-packet behind its virtio_net_hdr."""
    whole = partial(packet(protocol, length, **fields))
    return vnet(whole, size).encode() + whole


class DataPathTestCase(SynchronousTestCase):
    """A client and a gateway with a session, and batches between them."""

    checksums = True

    def setUp(self) -> None:
        """Establish a session with the offloads that the test wants."""
        self.network = network = Network()
        for host in network.hosts:
            self.offload(host.node)
        network.send(network.client, packet(UDP, 4))
        network.run(1.0)
        self.client, self.gateway = network.client, network.gateways[0]
        self.assertEqual(len(self.gateway.delivered), 1)
        self.to_gateway, self.to_client = Path(self.gateway.endpoint), Path(self.client.endpoint)

    def offload(self, node: TunnelEnd) -> None:
        """Tell a node what its TUN device does."""
        node.offload(checksums=self.checksums, tcp=self.checksums, udp=self.checksums)

    def seal(self, host: Host[Any], *packets: bytes) -> tuple[list[Run], list[bytes], list[Action]]:
        """Let a batch come out of a TUN device; return the runs, the datagrams and the actions."""
        batch, datagrams = batch_of(*packets), DatagramBatch(BATCH_CAPACITY)
        runs: list[Run] = []
        sealed: list[bytes] = []
        actions: list[Action] = []
        while batch.taken < len(batch.spans):
            taken = batch.taken
            actions += host.node.outbound(batch, datagrams, self.network.now)
            self.assertGreater(batch.taken, taken)
            runs += datagrams.runs
            sealed += [bytes(datagram) for _, datagram in datagrams.datagrams()]
            datagrams.runs = []
        return runs, sealed, actions

    def open(self, host: Host[Any], *runs: list[bytes], origin: Path | None = None) -> list[bytes]:
        """Let runs arrive in one batch, all of one path; return what is for the TUN device."""
        path = origin or (self.to_client if host is self.gateway else self.to_gateway)
        self.batch, packets = DatagramBatch(BATCH_CAPACITY), PacketBatch(BATCH_CAPACITY)
        for run in runs:
            joined = b"".join(run)
            self.batch.view[self.batch.length : self.batch.length + len(joined)] = joined
            self.batch.add(path, len(joined), len(run[0]))
        self.actions = host.node.inbound(self.batch, packets, self.network.now)
        return [bytes(packets.view[start:end]) for start, end in packets.spans]

    def session(self, host: Host[Any]) -> Any:
        """Return the host's session."""
        (session,) = host.node.cache
        return session

    def drops(self, host: Host[Any]) -> dict[DropReason, int]:
        """Return what a host dropped."""
        return dict(host.node.filter.drops)


class OutboundTests(DataPathTestCase):
    """From the TUN device to the socket."""

    def test_super_packet(self) -> None:
        """A super-packet is sealed as runs that the kernel takes, and comes out as the very same."""
        for protocol in (TCP, UDP):
            whole = super_packet(protocol, 60 * 1000, 1000)
            runs, sealed, _ = self.seal(self.client, whole)
            self.assertEqual(len(sealed), 60)
            for run in runs:
                self.assertLessEqual((run.count, run.end - run.start), (RUN_DATAGRAMS, RUN_BYTES))
            self.assertTrue(self.open(self.gateway, sealed) == [whole])

    def test_small_packets(self) -> None:
        """Packets of one size make one run, also out of several spans, and a shorter one ends it."""
        same, short = COMPLETE + packet(UDP, 100), COMPLETE + packet(UDP, 50)
        runs, sealed, _ = self.seal(self.client, *[same] * 5, short, same)
        self.assertEqual([run.count for run in runs], [6, 1])
        self.assertEqual(self.open(self.gateway, sealed[:6], sealed[6:]), [same] * 5 + [short, same])
        runs, sealed, _ = self.seal(self.client, *[same] * 70)
        self.assertEqual([run.count for run in runs], [RUN_DATAGRAMS, 70 - RUN_DATAGRAMS])

    def test_alike(self) -> None:
        """Each packet of a batch is treated as it would be alone, much as it resembles the one before."""
        same, half = packet(UDP, 100), partial(packet(UDP, 100))
        ends = (
            {"src": str(source), "dst": str(target)}
            for source, target in (("10.99.0.9", TARGET), (INNER, "192.0.2.7"))
        )
        segment = partial(packet(TCP, 88))
        offset = bytearray(segment)
        offset[32] = 0xF0  # TCP's header would be longer than the packet
        kinds = [
            COMPLETE + same,
            vnet(half).encode() + half,
            vnet(segment).encode() + segment,
            vnet(segment).encode() + offset,
            VnetHeader(1, 0, 0, 0, 28, 2).encode() + same,
            *(COMPLETE + packet(UDP, 100, way) for way in ends),
            COMPLETE + packet(UDP, 99),
            COMPLETE + same[:19],
            COMPLETE + packet(TCP, 88),
            COMPLETE + packet(UDP, 100, tos=4),
        ]
        self.assert_as_alone(kinds, refused=3)

    def test_after_a_failure(self) -> None:
        """What raised in one batch has no part in the next: each packet is routed anew."""
        same = COMPLETE + packet(UDP, 100)

        def fail(_source: bytes, _destination: bytes) -> None:
            raise ValueError("as asked")

        route = self.client.node.route
        answers = iter((route, fail, route))
        self.patch(self.client.node, "route", lambda *ends: next(answers)(*ends))
        self.assertRaises(ValueError, self.seal, self.client, same, COMPLETE + packet(UDP, 200))
        _, sealed, _ = self.seal(self.client, same)
        self.assertEqual(len(sealed), 1)
        self.assertEqual(list(answers), [])

    def test_alike_ipv6(self) -> None:
        """So is each packet of IPv6."""

        def route(source: bytes, destination: bytes) -> Session:
            if ip_address(source) != ip_address(SOURCE[6]) or ip_address(destination) != ip_address(
                DESTINATION[6]
            ):
                raise RemoteError(DropReason.NO_TUNNEL)
            session: Session = self.session(self.client)
            return session

        self.patch(self.client.node, "route", route)
        same = inner_packets.packet(6, UDP, bytes(100))
        elsewhere = bytearray(same), bytearray(same)
        elsewhere[0][23] ^= 1  # the source
        elsewhere[1][39] ^= 1  # the destination
        longer = inner_packets.packet(6, UDP, bytes(104))
        half = partial(same)
        kinds = [COMPLETE + each for each in (same, *map(bytes, elsewhere), longer, longer[:108], same[:19])]
        self.assert_as_alone([*kinds, vnet(half).encode() + half], refused=2)

    def assert_as_alone(self, kinds: list[bytes], refused: int) -> None:
        """Hold that a batch of all kinds gives what each gives alone, and `refused` reasons to drop some."""
        batch = [each for first in kinds for second in kinds for each in (first, first, second)]
        alone = [plain for each in batch for plain in self.plain(self.seal(self.client, each)[1])]
        dropped = self.drops(self.client)
        self.assertEqual(self.plain(self.seal(self.client, *batch)[1]), alone)
        self.assertEqual(self.drops(self.client), {reason: 2 * count for reason, count in dropped.items()})
        self.assertEqual(len(dropped), refused)

    def plain(self, sealed: list[bytes]) -> list[bytes]:
        """Return what the client sealed, with trailers."""
        inbound = self.session(self.gateway).sending.inbound
        return [inbound._decrypt(inbound._salt + each[8:16], each[16:], each[:8]) for each in sealed]

    def test_more_than_fits(self) -> None:
        """What has no room in the batch is left for the next call, and nothing is lost or out of order."""
        whole = super_packet(TCP, 64000, 1000)
        _, sealed, _ = self.seal(self.client, *[whole] * 7)
        self.assertEqual(len(sealed), 7 * 64)
        self.assertEqual([datagram[4:8] for datagram in sealed], sorted(datagram[4:8] for datagram in sealed))

    def test_counters(self) -> None:
        """Inner packets and their bytes are counted, segment by segment, at both ends."""
        before = self.session(self.client).packets_out, self.session(self.client).bytes_out
        _, sealed, _ = self.seal(self.client, super_packet(TCP, 1050, 100), COMPLETE + packet(UDP, 10))
        session = self.session(self.client)
        packets, octets = session.packets_out - before[0], session.bytes_out - before[1]
        self.assertEqual((packets, octets), (12, 10 * 140 + 90 + 38))
        opened = self.session(self.gateway)
        before = opened.packets_in, opened.bytes_in
        self.open(self.gateway, sealed[:11], sealed[11:])
        self.assertEqual((opened.packets_in - before[0], opened.bytes_in - before[1]), (packets, octets))

    def test_too_big(self) -> None:
        """A super-packet whose segments are too long for the path draws one ICMP error, and nothing goes."""
        self.client.node.path_mtu(self.gateway.endpoint, 1400, self.network.now)
        mtu = self.session(self.client).inner_mtu
        fitting, too_long = super_packet(TCP, 9000, mtu - 40), super_packet(TCP, 9000, mtu - 39)
        _, sealed, actions = self.seal(self.client, too_long, fitting)
        (error,) = actions
        assert isinstance(error, Deliver)
        headers = inspect(memoryview(error.packet))
        self.assertEqual((headers.protocol, headers.destination), (1, INNER.packed))
        self.assertEqual(int.from_bytes(error.packet[26:28]), mtu)
        self.assertEqual(self.drops(self.client)[DropReason.TOO_BIG], 1)
        self.assertTrue(sealed)
        self.assertLessEqual(max(map(len, sealed)), sealed_size(mtu + TRAIN_FIELDS))

    def test_endless_segments(self) -> None:
        """A super-packet of segments of a byte is refused before it fills the memory."""
        _, sealed, _ = self.seal(self.client, super_packet(UDP, 60000, 1))
        self.assertEqual((sealed, self.drops(self.client)[DropReason.MALFORMED_PACKET]), ([], 1))

    def test_hard_limit_within_a_super_packet(self) -> None:
        """An SA that would pass its limit in a super-packet ends its session, and no IV is used again."""
        pair = self.session(self.client).sending
        pair.outbound.packets = pair.outbound._hard_limit - 5
        runs, sealed, _ = self.seal(self.client, super_packet(TCP, 1000, 100))
        self.assertEqual((runs, sealed), ([], []))
        self.assertIsNone(self.client.node.cache.get(self.gateway.endpoint.address))

    def test_waiting(self) -> None:
        """R2: a super-packet that waited for a session goes out in segments when there is one."""
        network = Network()
        for host in network.hosts:
            self.offload(host.node)
        batch = batch_of(super_packet(TCP, 1000, 100))
        actions = network.client.node.outbound(batch, DatagramBatch(BATCH_CAPACITY), network.now)
        self.assertEqual(batch.taken, 1)
        network.act(network.client, actions)
        network.run(1.0)
        self.assertEqual(len(network.gateways[0].delivered), 10)

    def test_partial_is_marked(self) -> None:
        """Partial checksums, and only they, travel under their own next header."""
        half = partial(packet(UDP, 9))
        for data, header in (
            (vnet(half).encode() + half, NextHeader.PARTIAL),
            (COMPLETE + packet(UDP, 9), 4),
        ):
            (plaintext,) = self.plain(self.seal(self.client, data)[1])
            self.assertEqual(plaintext[-1], header)

    def test_foreign_checksum(self) -> None:
        """A partial checksum elsewhere than in TCP and UDP is completed in any case."""
        data = packet(UDP, 40)
        header = VnetHeader(1, 0, 0, 0, 28, 2)
        _, sealed, _ = self.seal(self.client, header.encode() + data)
        (written,) = self.open(self.gateway, sealed)
        self.assertEqual(written[:VNET_HEADER], COMPLETE)
        self.assertNotEqual(written[VNET_HEADER:], data)


class PlainTests(DataPathTestCase):
    """Towards a peer that takes no partial checksums."""

    def offload(self, node: TunnelEnd) -> None:
        """Let the client alone have offloads."""
        client = node is self.network_client
        node.offload(checksums=client, tcp=client, udp=client)

    def setUp(self) -> None:
        """See the base."""
        self.network_client: TunnelEnd | None = None
        network = Network()
        self.network_client = network.client.node
        for host in network.hosts:
            self.offload(host.node)
        network.send(network.client, packet(UDP, 4))
        network.run(1.0)
        self.network, self.client, self.gateway = network, network.client, network.gateways[0]
        self.to_gateway, self.to_client = Path(self.gateway.endpoint), Path(self.client.endpoint)

    def test_completed(self) -> None:
        """What leaves the tunnel are whole packets, with the checksums that scapy computes."""
        half = partial(packet(UDP, 9))
        sent = [super_packet(TCP, 950, 100), super_packet(UDP, 950, 100), vnet(half).encode() + half]
        for data in sent:
            _, sealed, _ = self.seal(self.client, data)
            written = self.open(self.gateway, sealed)
            self.assertEqual(len(written), len(sealed))
            for each in written:
                self.assertEqual(each[:VNET_HEADER], COMPLETE)
                self.assertEqual(recomputed(each[VNET_HEADER:]), each[VNET_HEADER:])

    def test_unasked(self) -> None:
        """A packet marked as partial is malformed where that was not agreed on."""
        pair, half = self.session(self.client).sending, partial(packet(UDP, 9))
        self.assertEqual(self.open(self.gateway, [pair.outbound.seal(half, NextHeader.PARTIAL)]), [])
        self.assertEqual(self.drops(self.gateway), {DropReason.MALFORMED_PACKET: 1})


class InboundTests(DataPathTestCase):
    """From the socket to the TUN device."""

    def sealed(self, count: int = 10) -> list[bytes]:
        """Return a run of segments of one super-packet from the client."""
        return self.seal(self.client, super_packet(TCP, 100 * count, 100))[1]

    def lengths(self, written: list[bytes]) -> list[int]:
        """Return how many bytes of payload each written packet has."""
        return [len(each) - VNET_HEADER - 40 for each in written]

    def test_two_runs(self) -> None:
        """A super-packet that took two runs is written as one if both come in one batch."""
        run = self.sealed()
        self.assertEqual(self.lengths(self.open(self.gateway, run[:7], run[7:])), [1000])

    def test_bad_tag(self) -> None:
        """A forgery in the middle of a run costs that packet alone, and leaves nothing of itself."""
        run = self.sealed()
        run[4] = run[4][:-1] + bytes([run[4][-1] ^ 1])
        self.assertEqual(self.lengths(self.open(self.gateway, run)), [400, 500])
        self.assertEqual(self.drops(self.gateway), {DropReason.BAD_ICV: 1})

    def test_replay(self) -> None:
        """Repetitions within a batch and between batches are dropped, each counted."""
        run = self.sealed()
        self.assertEqual(
            self.lengths(self.open(self.gateway, [*run[:5], run[2], *run[5:]], run[3:7])), [1000]
        )
        self.assertEqual(self.drops(self.gateway), {DropReason.REPLAYED: 5})
        self.assertEqual(self.open(self.gateway, run), [])

    def test_complete(self) -> None:
        """A packet whose checksum nobody verified is written as it is, in its place; nothing continues it."""
        segments = [packet(TCP, 100, seq=100 * number, flags="A", ack=5, id=number) for number in range(4)]
        wrong = segments[2][:-1] + b"x"
        header = VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, 20, 16).encode()
        sealed = self.seal(
            self.client,
            *(header + partial(each) for each in segments[:2]),
            COMPLETE + wrong,
            header + partial(segments[3]),
        )[1]
        written = self.open(self.gateway, sealed)
        self.assertEqual(self.lengths(written), [200, 100, 100])
        self.assertEqual(written[1], COMPLETE + wrong)

    def test_reordered(self) -> None:
        """A run in another order loses nothing."""
        run = self.sealed()
        written = self.open(self.gateway, [*run[5:], *run[:5]])
        self.assertEqual(self.lengths(written), [500, 500])

    def test_short_last(self) -> None:
        """A run's last datagram may be anything: too short for ESP, for an SPI, or a keepalive."""
        for last, reason in (
            (b"\xff", None),
            (b"\0\0", DropReason.UNKNOWN_SPI),
            (self.sealed(1)[0][: SHORTEST - 1], DropReason.SHORT_DATAGRAM),
            (b"\1\2\3\4" * 12, DropReason.UNKNOWN_SPI),
        ):
            self.gateway.node.filter.drops.clear()
            self.assertEqual(self.lengths(self.open(self.gateway, [*self.sealed(), last])), [1000])
            self.assertEqual(self.drops(self.gateway), {reason: 1} if reason else {})

    def test_mixed(self) -> None:
        """Control packets, key exchange and unknown SPIs in one batch with ESP go where they belong."""
        pair = self.session(self.client).sending
        control = pair.control.send(1)
        exchange = KEY_EXCHANGE_MARKER + bytes(SHORTEST)
        runs = self.sealed()[:9], [control], [exchange, exchange[:7]], [b"\7" * 60] * 2, self.sealed()
        self.assertEqual(self.lengths(self.open(self.gateway, *runs)), [900, 1000])
        self.assertEqual(self.batch.set_aside, [(exchange, self.to_client), (exchange[:7], self.to_client)])
        self.assertEqual(self.drops(self.gateway)[DropReason.UNKNOWN_SPI], 2)
        answers = [each for each in self.actions if isinstance(each, Send) and each.path == self.to_client]
        self.assertIn(CONTROL_SIZE, [len(each.datagram) for each in answers])

    def test_control_between_segments(self) -> None:
        """A control packet as long as the ESP packets around it is none of theirs."""
        pair = self.session(self.client).sending
        length = CONTROL_SIZE - sealed_size(0) + 2
        size = next(n for n in range(length + 1) if sealed_size(28 + n) >= CONTROL_SIZE)
        same = [COMPLETE + packet(UDP, size)] * 2
        _, sealed, _ = self.seal(self.client, *same)
        if len(sealed[0]) == CONTROL_SIZE:
            written = self.open(self.gateway, [sealed[0], pair.control.send(1), sealed[1]])
            self.assertEqual(written, same)

    def test_admission(self) -> None:
        """Each packet that begins anew is judged by its addresses, wherever in a run it stands."""
        good, wrong = packet(UDP, 9), packet(UDP, 9, {"src": "10.99.0.2", "dst": str(TARGET)})
        pair = self.session(self.client).sending
        run = [pair.outbound.seal(data, NextHeader.IPV4) for data in (good, wrong, good, good)]
        self.assertEqual(self.open(self.gateway, run), [COMPLETE + good] * 3)
        self.assertEqual(self.drops(self.gateway), {DropReason.WRONG_SOURCE: 1})

    def test_partial_as_complete(self) -> None:
        """A packet that looks like the next segment but is not marked as one is not put to it."""
        half = [partial(packet(TCP, 100, seq=at, id=at // 100)) for at in (0, 100, 200)]
        pair = self.session(self.client).sending
        marks = (NextHeader.PARTIAL, NextHeader.IPV4, NextHeader.PARTIAL)
        run = [pair.outbound.seal(data, mark) for data, mark in zip(half, marks, strict=True)]
        written = self.open(self.gateway, run)
        self.assertEqual([each[VNET_HEADER:] for each in written], half)
        self.assertEqual(written[1][:VNET_HEADER], COMPLETE)

    def test_two_clients(self) -> None:
        """Packets of one client never continue those of another, whatever they look like."""
        network = Network(clients=2)
        for host in network.hosts:
            self.offload(host.node)
        inners = [client.node.exchanges.inner_addresses[0] for client in network.clients]
        for client, inner in zip(network.clients, inners, strict=True):
            network.send(client, packet(UDP, 4, {"src": str(inner), "dst": str(TARGET)}))
        network.run(1.0)
        gateway = network.gateways[0]
        pairs = [next(iter(client.node.cache)).sending for client in network.clients]
        half = [partial(packet(TCP, 100, seq=at, id=at // 100)) for at in (0, 100)]
        batch, packets = DatagramBatch(BATCH_CAPACITY), PacketBatch(BATCH_CAPACITY)
        for pair, data, client in zip(pairs, half, network.clients, strict=True):
            assert pair is not None
            datagram = pair.outbound.seal(data, NextHeader.PARTIAL)
            batch.view[batch.length : batch.length + len(datagram)] = datagram
            batch.add(Path(client.endpoint), len(datagram), len(datagram))
        gateway.node.inbound(batch, packets, network.now)
        self.assertEqual(delivered_in(packets), half[:1])
        self.assertEqual(gateway.node.filter.drops[DropReason.WRONG_SOURCE], 1)

    def test_confirmation(self) -> None:
        """The first packet of a run confirms new keys, and the rest of it goes through under them."""
        network = self.network
        actions = self.client.node.authenticate(self.gateway.endpoint.address, network.now)
        network.wire = lambda datagram, *_: (0.001,) if datagram[:4] == KEY_EXCHANGE_MARKER else ()
        network.act(self.client, actions)
        network.run(0.05)
        (session,) = self.client.node.cache
        newest = session.pairs[-1]
        self.assertFalse(newest.confirmed)
        data = packet(UDP, 9)
        run = [newest.outbound.seal(data, NextHeader.IPV4) for _ in range(4)]
        self.assertEqual(self.open(self.gateway, run), [COMPLETE + data] * 4)
        self.assertEqual(self.session(self.gateway).sending.inbound.spi, newest.outbound.spi)

    def test_new_address(self) -> None:
        """A run from a new address of the client draws the challenge that a single packet would."""
        elsewhere = Path(Endpoint(ip_address("203.0.113.9"), 999))
        self.assertEqual(self.lengths(self.open(self.gateway, self.sealed(), origin=elsewhere)), [1000])
        sent = [each.path for each in self.actions if isinstance(each, Send)]
        self.assertEqual(set(sent), {elsewhere, self.session(self.gateway).path})

    def test_addresses_of_super_packets(self) -> None:
        """What is written is a packet whose lengths are right, behind a header that tells its segments."""
        (written,) = self.open(self.gateway, self.sealed())
        header = VnetHeader.read(memoryview(written))
        self.assertEqual((header.gso_size, header.hdr_len), (100, 40))
        self.assertEqual(addresses(memoryview(written)[VNET_HEADER:])[1:], (INNER.packed, TARGET.packed))
