"""
How long one policy lookup takes, by the number of tunnel entries:
`.venv/bin/python benchmarks/bench_policy_lookup.py`.

The data path's lookup, `TunnelIndex.find_packed`, with random overlapping entries and random targets of both
families. Prints nanoseconds per lookup, the loop around it included. It takes about a second.
"""

import random
import time
from ipaddress import IPv4Address, IPv6Address

from rvpn.policy import Cluster, Tunnel, TunnelIndex

LOOKUPS = 200_000
FAMILIES: dict[int, type[IPv4Address] | type[IPv6Address]] = {32: IPv4Address, 128: IPv6Address}


def entries(count: int, bits: int, source: random.Random) -> list[Tunnel]:
    """Return random ranges, each at most a thousandth of all addresses."""
    cluster = Cluster("192.0.2.1", (IPv4Address("192.0.2.1"),))
    address = FAMILIES[bits]
    tunnels = []
    for number in range(count):
        first = source.getrandbits(bits)
        last = min(first + source.getrandbits(bits - 10), (1 << bits) - 1)
        tunnels.append(Tunnel(number, address(first), address(last), cluster))
    return tunnels


def measure(count: int, bits: int) -> None:
    """Print one line of the report."""
    source = random.Random(count)
    tunnels = entries(count, bits, source)
    begin = time.perf_counter()
    index = TunnelIndex(tunnels)
    built = time.perf_counter() - begin
    targets = [source.randbytes(bits // 8) for _ in range(LOOKUPS)]
    begin = time.perf_counter()
    for target in targets:
        index.find_packed(target)
    each = (time.perf_counter() - begin) / LOOKUPS
    family = 4 if bits == 32 else 6
    print(f"IPv{family}  {count:6,} entries: built in {built * 1e3:6.1f} ms, {each * 1e9:4.0f} ns per lookup")


if __name__ == "__main__":
    for bits in FAMILIES:
        for count in (10, 1_000, 10_000):
            measure(count, bits)
