"""
Which tunnel entry a target address belongs to: the first match in numeric order (DESIGN 7).

Entries may overlap. `TunnelIndex` cuts the address space of each family at every edge of an entry, notes for
each piece the entry that wins it, and answers by bisection over the packed addresses at which pieces start;
these sort as the numbers they stand for.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range
from itertools import chain, groupby
from operator import attrgetter
from typing import NamedTuple

from rvpn.interfaces import IPAddress
from rvpn.policy.model import Tunnel


class _Pieces(NamedTuple):
    """One family's addresses in pieces: `owners[i]` wins from `starts[i]` to before `starts[i + 1]`."""

    starts: list[bytes]
    owners: list[Tunnel | None]


def _cut(tunnels: Sequence[Tunnel], size: int) -> _Pieces:
    """Cut the addresses of `size` bytes; `tunnels` are in the order of search. O(n log n)."""
    edges = {0, *(int(tunnel.first) for tunnel in tunnels), *(int(tunnel.last) + 1 for tunnel in tunnels)}
    waiting = sorted(((int(tunnel.first), rank) for rank, tunnel in enumerate(tunnels)), reverse=True)
    begun: list[int] = []  # a heap of ranks; those that ended leave when they reach its top
    pieces = _Pieces([], [])
    for edge in sorted(edges - {1 << 8 * size}):
        while waiting and waiting[-1][0] == edge:
            heappush(begun, waiting.pop()[1])
        while begun and int(tunnels[begun[0]].last) < edge:
            heappop(begun)
        owner = tunnels[begun[0]] if begun else None
        if not pieces.owners or owner is not pieces.owners[-1]:
            pieces.starts.append(edge.to_bytes(size, "big"))
            pieces.owners.append(owner)
    return pieces


class TunnelIndex:
    """Tunnel entries, searched in O(log n); building takes O(n log n)."""

    def __init__(self, tunnels: Iterable[Tunnel]) -> None:
        ordered = sorted(tunnels, key=attrgetter("number"))
        self._pieces = {
            size: _cut([tunnel for tunnel in ordered if len(tunnel.first.packed) == size], size)
            for size in (4, 16)
        }

    def find(self, address: IPAddress) -> Tunnel | None:
        """Return the entry for a target address, or None."""
        return self.find_packed(address.packed)

    def find_packed(self, address: bytes) -> Tunnel | None:
        """Return the entry for a target address of 4 or 16 bytes in network order, or None."""
        starts, owners = self._pieces[len(address)]
        return owners[bisect_right(starts, address) - 1]

    def winners(self) -> frozenset[int]:
        """Return the numbers of the entries that win at least one address."""
        return frozenset(owner.number for pieces in self._pieces.values() for owner in pieces.owners if owner)

    def within(self, first: IPAddress, last: IPAddress) -> Iterator[Tunnel]:
        """Yield the entries that win addresses from `first` to `last`, in the order of the addresses."""
        starts, owners = self._pieces[len(first.packed)]
        for index in range(bisect_right(starts, first.packed) - 1, bisect_right(starts, last.packed)):
            owner = owners[index]
            if owner is not None:
                yield owner

    def networks(self) -> list[IPv4Network | IPv6Network]:
        """Return the fewest networks that hold exactly the entries' addresses: IPv4 first, ascending."""
        ipv4 = (summarize_address_range(IPv4Address(a), IPv4Address(b)) for a, b in self._covered(4))
        ipv6 = (summarize_address_range(IPv6Address(a), IPv6Address(b)) for a, b in self._covered(16))
        return [*chain.from_iterable(ipv4), *chain.from_iterable(ipv6)]

    def _covered(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield the first and last address of each unbroken run of pieces that an entry wins."""
        starts, owners = self._pieces[size]
        edges = [int.from_bytes(start, "big") for start in starts] + [1 << 8 * size]
        for won, run in groupby(range(len(owners)), key=lambda index: owners[index] is not None):
            if won:
                indices = list(run)
                yield edges[indices[0]], edges[indices[-1] + 1] - 1
