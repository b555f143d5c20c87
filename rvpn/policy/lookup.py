"""Which tunnel entry a target address belongs to: the first match in numeric order (DESIGN 7)."""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from rvpn.interfaces import IPAddress
from rvpn.policy.model import Tunnel


class TunnelIndex:
    """Tunnel entries, searched in O(log n)."""

    def __init__(self, tunnels: Iterable[Tunnel]) -> None:
        raise NotImplementedError

    def find(self, address: IPAddress) -> Tunnel | None:
        """Return the entry for a target address, or None."""
        raise NotImplementedError

    def find_packed(self, address: bytes) -> Tunnel | None:
        """Return the entry for a target address of 4 or 16 bytes, or None."""
        raise NotImplementedError

    def networks(self) -> list[IPv4Network | IPv6Network]:
        """Return the fewest networks that hold exactly the addresses of all entries."""
        raise NotImplementedError
