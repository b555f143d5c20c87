"""Lookup of a target's tunnel entry, held against a search entry by entry in the order of the numbers."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rvpn.interfaces import IPAddress
from rvpn.policy import Tunnel, TunnelIndex

#: Bits of the addresses that the oracle tests draw, so that entries overlap, adjoin and reach either end.
BITS = 4


def address(number: int, low: bool, version: int) -> IPAddress:
    """Return one of the 16 lowest or highest addresses of a family."""
    size = 32 if version == 4 else 128
    value = number if low else (1 << size) - (1 << BITS) + number
    return IPv4Address(value) if version == 4 else IPv6Address(value)


addresses = st.builds(address, st.integers(0, (1 << BITS) - 1), st.booleans(), st.sampled_from([4, 6]))


@st.composite
def tunnel_lists(draw: st.DrawFn) -> list[Tunnel]:
    """Draw entries with distinct numbers, in any order."""
    numbers = draw(st.lists(st.integers(0, 99), unique=True, max_size=8))
    tunnels = []
    for number in numbers:
        ends = [draw(addresses), draw(addresses)]
        if ends[0].version != ends[1].version:
            ends[1] = ends[0]
        first, last = sorted(ends, key=int)
        tunnels.append(Tunnel(number, first, last, None))
    return tunnels


def search(tunnels: list[Tunnel], target: IPAddress) -> Tunnel | None:
    """Return the first match in numeric order, the slow way (DESIGN 7)."""
    for tunnel in sorted(tunnels, key=lambda tunnel: tunnel.number):
        if tunnel.first.version == target.version and int(tunnel.first) <= int(target) <= int(tunnel.last):
            return tunnel
    return None


def entry(number: int, first: str, last: str) -> Tunnel:
    """Return an entry, from texts."""
    return Tunnel(number, ip_address(first), ip_address(last), None)


ALL = [
    address(number, low, version)
    for number in range(1 << BITS)
    for low in (True, False)
    for version in (4, 6)
]


class FindTests(SynchronousTestCase):
    """`find` and `find_packed` give the first match in numeric order."""

    @settings(derandomize=True, deadline=None)
    @given(tunnel_lists())
    def test_oracle(self, tunnels: list[Tunnel]) -> None:
        """Every address has the entry that the naive search gives it."""
        index = TunnelIndex(tunnels)
        expected = [search(tunnels, target) for target in ALL]
        self.assertEqual([index.find(target) for target in ALL], expected)
        self.assertEqual([index.find_packed(target.packed) for target in ALL], expected)

    def test_first_number_wins(self) -> None:
        """The lowest number decides, whatever the order of the list or the sizes of the ranges."""
        narrow, wide = entry(2, "10.0.0.5", "10.0.0.5"), entry(1, "10.0.0.0", "10.0.0.255")
        self.assertIs(TunnelIndex([narrow, wide]).find(IPv4Address("10.0.0.5")), wide)

    def test_families_are_apart(self) -> None:
        """An IPv4 entry holds no IPv6 address of the same value."""
        index = TunnelIndex([entry(1, "0.0.0.0", "255.255.255.255")])
        self.assertIsNone(index.find(IPv6Address("::1")))

    def test_no_entries(self) -> None:
        """Without entries nothing enters the tunnel."""
        index = TunnelIndex([])
        self.assertEqual(
            [index.find_packed(bytes(4)), index.find_packed(bytes(16)), index.networks()], [None, None, []]
        )

    def test_ten_thousand_entries(self) -> None:
        """Ten thousand overlapping entries make ten thousand pieces, not one for each pair that overlaps."""
        tunnels = [
            entry(n, str(IPv4Address(n << 16)), str(IPv4Address((n << 16) + 99_999))) for n in range(10_000)
        ]
        index = TunnelIndex(tunnels)
        self.assertEqual(sum(1 for _ in index.within(IPv4Address(0), IPv4Address("255.255.255.255"))), 10_000)
        self.assertIs(index.find(IPv4Address((5000 << 16) + 34_464)), tunnels[5000])
        self.assertIs(index.find(IPv4Address((5000 << 16) + 34_463)), tunnels[4999])


class WinnersTests(SynchronousTestCase):
    """Which entries win anything, for the linter."""

    @settings(derandomize=True, deadline=None)
    @given(tunnel_lists())
    def test_winners(self, tunnels: list[Tunnel]) -> None:
        """`winners` are the entries that some address maps to, and `within` finds those of a range."""
        index = TunnelIndex(tunnels)
        found = {target: search(tunnels, target) for target in ALL}
        self.assertEqual(index.winners(), {tunnel.number for tunnel in found.values() if tunnel})
        for tunnel in tunnels:
            inside = [target for target in ALL if search([tunnel], target)]
            if int(tunnel.last) - int(tunnel.first) == len(inside) - 1:  # not from the lowest to the highest
                expected = {winner.number for target in inside if (winner := found[target])}
                self.assertEqual(
                    {winner.number for winner in index.within(tunnel.first, tunnel.last)}, expected
                )


class NetworkTests(SynchronousTestCase):
    """The networks for the host's routes."""

    @settings(derandomize=True, deadline=None)
    @given(tunnel_lists())
    def test_exact_and_fewest(self, tunnels: list[Tunnel]) -> None:
        """They hold an address if and only if an entry does, and no two of them make one larger network."""
        networks = TunnelIndex(tunnels).networks()
        for target in ALL:
            holders = [network for network in networks if target in network]
            self.assertEqual(len(holders), 1 if search(tunnels, target) else 0)
        parts = set(networks)
        unions = [network.supernet() for network in networks if network.prefixlen]
        self.assertEqual([union for union in unions if parts.issuperset(union.subnets())], [])

    def test_overlapping_and_adjacent(self) -> None:
        """Entries that overlap or adjoin are summarised together, IPv4 first."""
        index = TunnelIndex(
            [
                entry(1, "2001:db8::", "2001:db8::ffff"),
                entry(2, "10.0.0.0", "10.0.0.127"),
                entry(3, "10.0.0.100", "10.0.0.255"),
                entry(4, "10.0.1.0", "10.0.1.255"),
                entry(5, "10.0.3.1", "10.0.3.1"),
            ]
        )
        expected = ["10.0.0.0/23", "10.0.3.1/32", "2001:db8::/112"]
        self.assertEqual(index.networks(), [ip_network(text) for text in expected])

    def test_everything(self) -> None:
        """Entries for all addresses are the two default networks."""
        index = TunnelIndex([entry(1, "0.0.0.0", "255.255.255.255"), entry(2, "::", "f" * 4 + 7 * ":ffff")])
        self.assertEqual(index.networks(), [ip_network("0.0.0.0/0"), ip_network("::/0")])
