"""
What a packet costs on its way through the calculation: ns to segment, seal, open and coalesce it.

Run `.venv/bin/python benchmarks/bench_data_path.py`; it takes a minute and needs neither privileges nor
a network (`-o FILE` writes JSON that `pyperf compare_to` reads). Each figure is for one inner packet of a
super-packet of 44: `segment` cuts, `seal` and `open` are ESP alone, `coalesce` puts together; `outbound` and
`inbound` are a client's whole calculation, TUN device and socket left out, in plain ESP and as a `train`,
`small` with 64 packets of 100 bytes.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pyperf

from rvpn.client.node import Client
from rvpn.constants import BATCH_CAPACITY, Mechanism, NextHeader, TransformID
from rvpn.datapath.coalesce import Coalescer
from rvpn.datapath.offload import (
    CHECKSUM_OFFSET,
    GSO_TCPV4,
    NEEDS_CSUM,
    TCP,
    UDP,
    Segmentation,
    VnetHeader,
    transport,
)
from rvpn.datapath.packet import checksum
from rvpn.datapath.trains import Train
from rvpn.esp.codec import HEADER, TRAILERS, KeptSlots, sealed_size
from rvpn.esp.replay import ReplayWindow
from rvpn.esp.sa import InboundSA, OutboundSA
from rvpn.esp.transforms import KEY_SIZE, SALT_SIZE
from rvpn.interfaces import (
    Authentication,
    DatagramBatch,
    Endpoint,
    IPAddress,
    PacketBatch,
    Parameters,
    Path,
    PeerIdentity,
)
from rvpn.keyexchange.credentials import Credentials
from rvpn.policy.model import Cluster, Policy, Tunnel
from rvpn.session.sessions import SAPair, Session

SEGMENTS, SIZE, SMALL = 44, 1394, 64
HERE, THERE = ip_address("10.99.0.1"), ip_address("10.0.0.1")
GATEWAY = ip_address("198.51.100.21")


def inner_packet(protocol: int, payload: int, source: IPAddress, destination: IPAddress) -> bytes:
    """Return an IPv4 packet with a partial checksum."""
    header = bytes(12) + b"\x50\x10" + bytes(6) if protocol == TCP else bytes(8)
    length = 20 + len(header) + payload
    ip = b"\x45\0" + length.to_bytes(2) + b"\0\0\x40\0\x40" + bytes([protocol, 0, 0])
    ip += source.packed + destination.packed
    ip = ip[:10] + checksum(ip).to_bytes(2) + ip[12:]
    if protocol == UDP:
        header = bytes(4) + (length - 20).to_bytes(2) + bytes(2)
    at = CHECKSUM_OFFSET[protocol]
    total = (int.from_bytes(ip[12:]) + protocol + length - 20) % 0xFFFF
    return ip + header[:at] + total.to_bytes(2) + header[at + 2 :] + bytes(payload)


def vnet(packet: bytes, size: int) -> VnetHeader:
    """Return what the TUN device says of it."""
    where = transport(packet)
    kind = GSO_TCPV4 if size else 0
    return VnetHeader(NEEDS_CSUM, kind, where.payload, size, where.offset, CHECKSUM_OFFSET[where.protocol])


class Context:
    """An established security context whose keys are known."""

    established = True

    def __init__(self, trains: bool) -> None:
        said = Parameters(
            0x1000, (TransformID.AES_GCM_16_256,), (HERE,), 7200.0, partial_checksums=True, trains=trains
        )
        self.own_parameters, self.peer_parameters = said, replace(said, spi=0x2000)
        self.peer = PeerIdentity(Mechanism.NOISE, "")
        self.authentication = Authentication(Mechanism.NOISE, "", "")

    def step(self, token: bytes | None) -> bytes | None:
        """Never asked for."""
        raise NotImplementedError

    def export(self, label: bytes, length: int) -> bytes:
        """Return the same keys for either direction."""
        return bytes(length)


def client(trains: bool = False) -> tuple[Client, Session]:
    """Return a client with a session in use."""
    cluster = Cluster("Cluster 1", (GATEWAY,))
    policy = Policy(clusters=(cluster,), tunnels=(Tunnel(1, THERE, THERE, cluster),))
    node = Client(policy, Credentials(bytes(32)), (HERE,), random.Random(1), time.time, 0.0)
    node.offload(checksums=True, tcp=True, udp=True)
    path = Path(Endpoint(GATEWAY, 4500))
    pair = SAPair(Context(trains), initiator=True, path=path, now=0.0)
    session = Session(GATEWAY, PeerIdentity(Mechanism.NOISE, ""), path, (HERE,), 0.0)
    node.cache.add_pair(session, pair)
    node.cache.establish(session)
    pair.confirmed = True
    node.failover.clusters["Cluster 1"].in_use = session
    return node, session


def packets(*several: bytes) -> PacketBatch:
    """Return a batch from the TUN device."""
    batch = PacketBatch(BATCH_CAPACITY)
    for each in several:
        batch.view[batch.length : batch.length + len(each)] = each
        batch.add(len(each))
    return batch


def outbound(*several: bytes, trains: bool = False) -> Callable[[], None]:
    """Return a client's work for these packets from the TUN device."""
    node, _ = client(trains)
    batch, datagrams = packets(*several), DatagramBatch(BATCH_CAPACITY)

    def work() -> None:
        batch.taken = 0
        node.outbound(batch, datagrams, 1.0)

    return work


def sealed(plaintexts: list[bytes], transform: TransformID, spi: int) -> DatagramBatch:
    """Return a run of ESP packets."""
    datagrams, size = DatagramBatch(BATCH_CAPACITY), len(plaintexts[0]) + sealed_size(0) - 4
    sa = OutboundSA(spi, transform, bytes(KEY_SIZE), bytes(SALT_SIZE))
    count = len(plaintexts)
    slots = KeptSlots().of(datagrams.view, 0, size, 0, count)
    sa.seal_run(sa.spend(count), plaintexts, datagrams.buffer, slots)
    datagrams.add(Path(Endpoint(GATEWAY, 4500)), size * count, size)
    return datagrams


def inbound(plaintexts: list[bytes], trains: bool = False) -> Callable[[], None]:
    """Return a client's work for the run that brings these packets, which it never takes for replays."""
    node, session = client(trains)
    opened, pair = PacketBatch(BATCH_CAPACITY), session.sending
    assert pair is not None
    datagrams = sealed(plaintexts, pair.inbound.transform, pair.inbound.spi)

    def work() -> None:
        pair.inbound.window = ReplayWindow()
        opened.clear()
        node.inbound(datagrams, opened, 1.0)

    return work


def esp(transform: TransformID, plaintexts: list[bytes]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the work of sealing and of opening a run."""
    datagrams = sealed(plaintexts, transform, 0x1000)
    size, count = datagrams.runs[0].size, len(plaintexts)
    slots = KeptSlots().of(datagrams.view, 0, size, 0, count)
    outer = OutboundSA(0x1000, transform, bytes(KEY_SIZE), bytes(SALT_SIZE))
    inner = InboundSA(0x1000, transform, bytes(KEY_SIZE), bytes(SALT_SIZE))
    fresh = sealed(plaintexts, transform, 0x1000)
    arrived = [
        (sequence, bytes(fresh.buffer[at + 8 : at + HEADER.size]), additional, sealed)
        for sequence, (at, additional, sealed) in enumerate(
            zip(*KeptSlots().of(fresh.view, 0, size, 0, count), strict=True), start=1
        )
    ]

    def seal() -> None:
        outer.packets = 0
        outer.seal_run(outer.spend(count), plaintexts, datagrams.buffer, slots)

    def unseal() -> None:
        inner.window = ReplayWindow()
        for datagram in arrived:
            inner.open(*datagram)

    return seal, unseal


def coalesce(plaintexts: list[bytes], length: int) -> Callable[[], None]:
    """Return the work of putting packets together."""
    coalescer, batch = Coalescer({TCP, UDP}), PacketBatch(BATCH_CAPACITY)

    def work() -> None:
        batch.clear()
        coalescer.packets = batch
        for plaintext in plaintexts:
            if not coalescer.take(plaintext, length):
                coalescer.start(plaintext, length)
        coalescer.flush()

    return work


def discard(_segments: list[bytes]) -> None:
    """Take segments that are cut for nothing but the time it takes."""


def main() -> None:
    """Measure all."""
    runner = pyperf.Runner(processes=3, values=5, min_time=0.05)
    arguments = runner.parse_args()
    # Few values are few on purpose: pyperf would warn of it after each figure.
    arguments.quiet |= arguments.fast

    def measure(name: str, work: Callable[[], None], count: int) -> None:
        def loops(number: int) -> float:
            begin = time.perf_counter()
            for _ in range(number):
                work()
            return time.perf_counter() - begin

        runner.bench_time_func(name, loops, inner_loops=count)

    trailers = TRAILERS[NextHeader.PARTIAL]
    there, back = (inner_packet(TCP, SEGMENTS * SIZE, *ends) for ends in ((HERE, THERE), (THERE, HERE)))
    small = vnet(udp := inner_packet(UDP, 72, HERE, THERE), 0).encode() + udp
    plan = Segmentation(vnet(back, SIZE), memoryview(back))
    segments, one = plan.segments(trailers), inner_packet(UDP, 72, THERE, HERE)
    header, view = vnet(back, SIZE), memoryview(back)
    measure("segment", lambda: discard(Segmentation(header, view).segments(trailers)), SEGMENTS)
    measure("segment, checksums completed", lambda: discard(plan.segments(trailers, complete=True)), SEGMENTS)
    for transform in TransformID:
        seal, unseal = esp(transform, segments)
        measure(f"seal {transform.name}", seal, SEGMENTS)
        measure(f"open {transform.name}", unseal, SEGMENTS)
    measure("coalesce", coalesce(segments, plan.longest), SEGMENTS)
    measure("outbound", outbound(vnet(there, SIZE).encode() + there), SEGMENTS)
    measure("inbound", inbound(segments), SEGMENTS)
    train = Train.of(plan, view, 1)
    assert train is not None
    slices = train.cut(view)
    measure("outbound, train", outbound(vnet(there, SIZE).encode() + there, trains=True), SEGMENTS)
    measure("inbound, train", inbound(slices, trains=True), SEGMENTS)
    measure("outbound, small", outbound(*[small] * SMALL), SMALL)
    measure("outbound, one small", outbound(small), 1)
    measure("inbound, small", inbound([one + trailers[len(one) & 3]] * SMALL), SMALL)
    measure("inbound, one small", inbound([one + trailers[len(one) & 3]]), 1)


if __name__ == "__main__":
    main()
