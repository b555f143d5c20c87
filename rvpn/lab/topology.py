"""
What the laboratory consists of: nodes, links, addresses and routes, as values without any effect.

The picture is the patent's Fig. 2. `client` and each gateway have an outside link of their own to `router`,
which stands for the Internet; each gateway also has an interface on the LAN, the bridge in node `lan`, where
the targets are. The outside is IPv4 or IPv6, one of them per laboratory; the LAN and the client's inner
addresses are both. The inner addresses are the LAN's own where gateways answer for them there (DESIGN 8), and
of another network where targets have routes to a gateway.

    Topology -> nodes (interfaces, routes, forwarding) and links -> rvpn.lab.network
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from rvpn.interfaces import IPAddress, IPNetwork

LAN_NETWORKS: tuple[IPNetwork, ...] = (IPv4Network("10.0.0.0/24"), IPv6Network("fd00:10::/64"))
#: The client's addresses inside the tunnel, behind a gateway and on the LAN.
INNER_ADDRESSES: tuple[IPAddress, ...] = (IPv4Address("10.99.0.1"), IPv6Address("fd00:99::1"))
INNER_ON_LAN: tuple[IPAddress, ...] = (IPv4Address("10.0.0.99"), IPv6Address("fd00:10::99"))
#: Where the client's address comes from while the impairment plays a NAT.
NAT_NETWORKS: dict[int, IPNetwork] = {4: IPv4Network("203.0.113.0/24"), 6: IPv6Network("2001:db8:0:ff::/64")}
#: Gateways are numbered from 21 on the LAN, as in the patent, and targets from 1.
FIRST_GATEWAY = 21
MAX_NODES = 20

OUTSIDE, LAN = "outside", "lan"
#: The directions of a path as the client sees them.
OUT, BACK = "out", "back"
BOTH = (OUT, BACK)
#: The TUN device of `rvpn.lab.impair` in the router's namespace.
IMPAIRMENT_DEVICE = "impair"


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a link. Addresses are written with their prefix lengths; a port of the bridge has none."""

    name: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """A route out of `interface`, through `via` unless the destination is on the link itself."""

    destination: IPNetwork
    interface: str
    via: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A network namespace. `bridge` names the bridge that its interfaces are ports of."""

    name: str
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...] = ()
    forwarding: bool = False
    bridge: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two (node, interface) ends."""

    near: tuple[str, str]
    far: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Topology:
    """
    The patent's Fig. 2 with a chosen outside `family` (4 or 6), and one to twenty gateways and targets.

    `proxy_arp` tells whether gateways answer for the client's addresses on the LAN.
    """

    family: int = 4
    gateways: int = 3
    targets: int = 3
    proxy_arp: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for what the address plan has no room for."""
        if self.family not in (4, 6):
            raise ValueError(f"family is 4 or 6, not {self.family}")
        if not (1 <= self.gateways <= MAX_NODES and 1 <= self.targets <= MAX_NODES):
            raise ValueError(
                f"one to {MAX_NODES} gateways and targets, not {self.gateways} and {self.targets}"
            )

    @property
    def gateway_names(self) -> tuple[str, ...]:
        """`gateway1` and so on, in the order of the cluster."""
        return tuple(f"gateway{number}" for number in range(1, self.gateways + 1))

    @property
    def target_names(self) -> tuple[str, ...]:
        """`target1` and so on."""
        return tuple(f"target{number}" for number in range(1, self.targets + 1))

    @property
    def client_address(self) -> IPAddress:
        """The client's outer address."""
        return ip_address("192.0.2.1" if self.family == 4 else "2001:db8:0:1::1")

    @property
    def inner_addresses(self) -> tuple[IPAddress, ...]:
        """The client's addresses inside the tunnel."""
        return INNER_ON_LAN if self.proxy_arp else INNER_ADDRESSES

    def gateway_address(self, name: str) -> IPAddress:
        """Return the outer address of a gateway."""
        host = FIRST_GATEWAY + self.gateway_names.index(name)
        return ip_address(f"198.51.100.{host}" if self.family == 4 else f"2001:db8:0:{host}::1")

    def lan_addresses(self, name: str) -> tuple[IPAddress, ...]:
        """Return the IPv4 and IPv6 address on the LAN of a gateway or target."""
        host = 1 + self.target_names.index(name) if name in self.target_names else self._gateway_host(name)
        return ip_address(f"10.0.0.{host}"), ip_address(f"fd00:10::{host}")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every network namespace of the laboratory."""
        return tuple(self._nodes())

    @property
    def links(self) -> tuple[Link, ...]:
        """Every cable, from the client side to the target side."""
        outside = tuple(Link(("router", name), (name, OUTSIDE)) for name in ("client", *self.gateway_names))
        inside = tuple(Link(("lan", name), (name, LAN)) for name in (*self.gateway_names, *self.target_names))
        return outside + inside

    def _gateway_host(self, name: str) -> int:
        return FIRST_GATEWAY + self.gateway_names.index(name)

    def _nodes(self) -> Iterator[Node]:
        yield self._client()
        yield self._router()
        for name in self.gateway_names:
            yield self._gateway(name)
        yield Node("lan", tuple(map(Interface, (*self.gateway_names, *self.target_names))), bridge=LAN)
        for name in self.target_names:
            yield Node(name, (Interface(LAN, self._on_lan(name)),))

    def _client(self) -> Node:
        length = 24 if self.family == 4 else 64
        outside = Interface(OUTSIDE, (f"{self.client_address}/{length}",))
        return Node("client", (outside,), (Route(self._everything, OUTSIDE, self._router_address("client")),))

    def _router(self) -> Node:
        """Each gateway hangs on a link of its own, so that each path can be cut on its own."""
        host_length = 32 if self.family == 4 else 64
        interfaces, routes = [], []
        for name in ("client", *self.gateway_names):
            length = 24 if self.family == 4 and name == "client" else host_length
            interfaces.append(Interface(name, (f"{self._router_address(name)}/{length}",)))
            if self.family == 4 and name != "client":
                routes.append(Route(ip_network(self.gateway_address(name)), name))
        return Node("router", tuple(interfaces), tuple(routes), forwarding=True)

    def _gateway(self, name: str) -> Node:
        length = 32 if self.family == 4 else 64
        router = self._router_address(name)
        outside = Interface(OUTSIDE, (f"{self.gateway_address(name)}/{length}",))
        routes = [Route(self._everything, OUTSIDE, router)]
        if self.family == 4:
            routes.insert(0, Route(ip_network(router), OUTSIDE))
        return Node(name, (outside, Interface(LAN, self._on_lan(name))), tuple(routes))

    def _on_lan(self, name: str) -> tuple[str, ...]:
        pairs = zip(self.lan_addresses(name), LAN_NETWORKS, strict=True)
        return tuple(f"{address}/{network.prefixlen}" for address, network in pairs)

    def _router_address(self, neighbour: str) -> IPAddress:
        """Return the router's own address on its link to `neighbour`."""
        if neighbour == "client":
            return ip_address("192.0.2.254" if self.family == 4 else "2001:db8:0:1::fe")
        if self.family == 4:
            return ip_address("198.51.100.254")
        return ip_address(f"2001:db8:0:{self._gateway_host(neighbour)}::fe")

    @property
    def _everything(self) -> IPNetwork:
        return ip_network("0.0.0.0/0" if self.family == 4 else "::/0")


def routes_to_client(gateway: tuple[IPAddress, ...]) -> tuple[Route, ...]:
    """Return a target's routes to the client's inner addresses through one gateway's LAN addresses."""
    pairs = zip(INNER_ADDRESSES, gateway, strict=True)
    return tuple(Route(ip_network(inner), LAN, address) for inner, address in pairs)
