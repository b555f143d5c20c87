"""
What ESP costs per packet: ns to seal and to open 64, 576 and 1400 bytes with each transform.

Run `python benchmarks/bench_esp.py`; it takes a few seconds and needs neither privileges nor a network. Each
figure is the median of several rounds on one core; `read` is what `rvpn.packet.addresses` adds to either.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter_ns

from rvpn.constants import NextHeader, TransformID
from rvpn.esp.codec import sealed_size
from rvpn.esp.sa import InboundSA, OutboundSA
from rvpn.esp.transforms import KEY_SIZE, SALT_SIZE
from rvpn.packet import addresses

SIZES = 64, 576, 1400
PACKETS, ROUNDS = 5000, 9
SPI = 0x1234ABCD


def inner_packet(size: int) -> memoryview:
    """Return an IPv4 packet of so many bytes."""
    return memoryview(b"\x45\0" + size.to_bytes(2, "big") + bytes(size - 4))


def cost(work: Callable[[], None]) -> float:
    """Return ns per packet for one round of `work`."""
    start = perf_counter_ns()
    work()
    return (perf_counter_ns() - start) / PACKETS


def measure(transform: TransformID, size: int) -> tuple[float, float, float]:
    """Return the median ns per packet to seal, to open, and to read the addresses."""
    outbound = OutboundSA(SPI, transform, bytes(KEY_SIZE), bytes(SALT_SIZE))
    inbound = InboundSA(SPI, transform, bytes(KEY_SIZE), bytes(SALT_SIZE))
    packet = inner_packet(size)
    datagrams = [memoryview(bytearray(sealed_size(size))) for _ in range(PACKETS)]
    out = memoryview(bytearray(65536))

    def seal() -> None:
        for datagram in datagrams:
            outbound.seal_into(packet, NextHeader.IPV4, datagram)

    def unseal() -> None:
        for datagram in datagrams:
            inbound.open_into(datagram, out)

    def read() -> None:
        for _ in datagrams:
            addresses(packet)

    rounds = [(cost(seal), cost(unseal), cost(read)) for _ in range(ROUNDS)]
    sealing, opening, reading = zip(*rounds, strict=True)
    return median(sealing), median(opening), median(reading)


def main() -> None:
    """Print the table."""
    print(f"{'transform':<20}{'bytes':>6}{'seal ns':>10}{'open ns':>10}{'read ns':>10}")
    for transform in TransformID:
        for size in SIZES:
            sealing, opening, reading = measure(transform, size)
            print(f"{transform.name:<20}{size:>6}{sealing:>10.0f}{opening:>10.0f}{reading:>10.0f}")


if __name__ == "__main__":
    main()
