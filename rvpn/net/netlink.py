"""
Links, addresses, routes and rules of the kernel, by rtnetlink: all calls of pyroute2 are here.

Calls are synchronous, a third of a millisecond each: fit for the start, for a reload and for a new path,
not for each packet. To add what is there, or to remove what is gone, is no error, so that every change can
be made and taken back again.
"""

import errno
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from rvpn.constants import LINK_MTU
from rvpn.errors import LocalError
from rvpn.interfaces import IPAddress

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT, _IFF_RUNNING = 0x1, 0x8, 0x10, 0x40  # linux/if.h
_TABLE_MAIN, _UNICAST = 254, 1  # linux/rtnetlink.h
_FIB_RULE_INVERT = 0x2  # linux/fib_rules.h
_IFA_F_NODAD = 0x02  # linux/if_addr.h: usable at once; a TUN has no neighbours to ask
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.EAGAIN}
_GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


@dataclass(frozen=True, slots=True)
class Route:
    """
    A route for `network` (CIDR) in `table`.

    Kind `unicast` leads to the interface with the index `device`, with `source` for sockets that have no
    address yet; `unreachable` ends the search with an error; `throw` sends it on to the next rule.
    """

    network: str
    table: int
    kind: Literal["unicast", "unreachable", "throw"]
    metric: int
    device: int | None = None
    source: str | None = None

    def __str__(self) -> str:
        """Write it as `ip route` does."""
        return f"route {self.kind} {self.network} table {self.table} metric {self.metric}"


@dataclass(frozen=True, slots=True)
class Rule:
    """
    A rule of the routing policy database for IP `version`.

    It applies to packets with all of `mark`, `incoming` (interface; `lo` for our own packets) and `source`
    (0.0.0.0: has none yet) that are given, or, `inverted`, to all others; then it looks into `table`, or goes
    to the rule of priority `goto`, or does nothing.
    """

    version: int
    priority: int
    table: int | None = None
    goto: int | None = None
    mark: int | None = None
    incoming: str | None = None
    source: str | None = None
    inverted: bool = False

    def __str__(self) -> str:
        """Name it by what is unique."""
        return f"IPv{self.version} rule {self.priority}"


@dataclass(frozen=True, slots=True)
class OuterPath:
    """How the kernel reaches an outer address: from which address of ours, with packets of how many bytes."""

    source: IPAddress
    mtu: int


@dataclass(frozen=True, slots=True)
class Link:
    """
    An interface: its name, whether it can carry packets (set up, with a carrier), and whether to one peer.
    """

    name: str
    up: bool
    point_to_point: bool

    @classmethod
    def of(cls, name: str, flags: int) -> "Link":
        """Read the flags of netdevice(7)."""
        ready = _IFF_UP | _IFF_RUNNING
        return cls(name, flags & ready == ready, bool(flags & _IFF_POINTOPOINT))


class Netlink:
    """An rtnetlink socket in the network namespace in which it was made. Every method raises `LocalError`."""

    def __init__(self) -> None:
        self._kernel: Any = IPRoute()

    def close(self) -> None:
        """Close the socket."""
        self._kernel.close()

    def index(self, interface: str) -> int:
        """Return the index of an interface."""
        try:
            return socket.if_nametoindex(interface)
        except OSError as error:
            raise LocalError(f"there is no network interface {interface}") from error

    def bring_up(self, device: int, mtu: int) -> None:
        """Set the link up, with this MTU in bytes."""
        with _refused(f"set the link up with MTU {mtu}"):
            self._kernel.link("set", index=device, mtu=mtu, state="up")

    def add_name(self, device: int, name: str) -> bool:
        """
        Give an interface a further name; False if another interface of this namespace has it.

        It goes with the interface. A kernel before 5.5 has no such names, and nobody is ever refused one.
        """
        try:
            self._kernel.link("property_add", index=device, altname=name)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            if error.code != errno.EOPNOTSUPP:
                raise LocalError(f"cannot name the link {name}: {error}") from error
        return True

    def addresses(self, device: int) -> set[IPAddress]:
        """Return the addresses of an interface."""
        with _refused("read addresses"):
            return {ip_address(found.get("address")) for found in self._kernel.get_addr(index=device)}

    def all_addresses(self) -> set[IPAddress]:
        """Return the addresses of all interfaces."""
        with _refused("read addresses"):
            return {ip_address(found.get("address")) for found in self._kernel.get_addr()}

    def links(self) -> dict[int, Link]:
        """Return all interfaces by index."""
        with _refused("read the interfaces"):
            return {
                link["index"]: Link.of(link.get("ifname"), link["flags"]) for link in self._kernel.get_links()
            }

    def access_server(self, without: Collection[int]) -> IPAddress | None:
        """
        Return the access server that AUTO stands for (R15): of IPv4, else of IPv6, the peer of a point-to-
        point link, else the default gateway with the lowest metric; None if there is neither.

        Links that are down do not count, nor do those `without` (by index): our own TUN device. The default
        gateway of IPv6 is usually a link-local address, which tells sites apart only as far as it is unique.
        """
        links = {index: link for index, link in self.links().items() if link.up and index not in without}
        with _refused("look for the access server"):
            for family in _FAMILY.values():
                for server in (*self._peers(family, links), *self._default_gateways(family, links)):
                    return ip_address(server)
        return None

    def _peers(self, family: int, links: Mapping[int, Link]) -> Iterator[str]:
        for found in self._kernel.get_addr(family=family):
            own, peer = found.get("local"), found.get("address")
            link = links.get(found["index"])
            if link is not None and link.point_to_point and own not in (None, peer):
                yield peer

    def _default_gateways(self, family: int, links: Mapping[int, Link]) -> Iterator[str]:
        routes = self._kernel.get_default_routes(family=family, table=_TABLE_MAIN)
        for route in sorted(routes, key=lambda route: route.get("priority") or 0):
            hops = [(hop["oif"], hop.get("gateway")) for hop in route.get("multipath") or ()]
            for device, gateway in hops or [(route.get("oif"), route.get("gateway"))]:
                if route["type"] == _UNICAST and device in links and gateway is not None:
                    yield gateway

    def smallest_mtu(self, without: Collection[str]) -> int:
        """Return the smallest MTU of all links that are up but loopback and these; by default Ethernet's."""
        with _refused("read the MTU of the interfaces"):
            links = [link for link in self._kernel.get_links() if link["flags"] & _IFF_UP]
        mtus = (
            link.get("mtu")
            for link in links
            if not link["flags"] & _IFF_LOOPBACK and link.get("ifname") not in without
        )
        return min(mtus, default=LINK_MTU)

    def add_address(self, device: int, address: IPAddress) -> None:
        """Give an interface an address, without a network."""
        with _refused(f"add the address {address}", errno.EEXIST):
            self._kernel.addr("add", **_address(device, address), flags=_IFA_F_NODAD)

    def remove_address(self, device: int, address: IPAddress) -> None:
        """Take an address from an interface."""
        with _refused(f"remove the address {address}", *_GONE):
            self._kernel.addr("del", **_address(device, address))

    def add_route(self, route: Route) -> None:
        """Add a route."""
        with _refused(f"add {route}", errno.EEXIST):
            self._kernel.route("add", **_route(route))

    def remove_route(self, route: Route) -> None:
        """Remove a route."""
        with _refused(f"remove {route}", *_GONE):
            self._kernel.route("del", **_route(route))

    def add_rule(self, rule: Rule) -> None:
        """Add a rule."""
        with _refused(f"add {rule}", errno.EEXIST):
            self._kernel.rule("add", **_rule(rule))

    def remove_rule(self, rule: Rule) -> None:
        """Remove a rule."""
        with _refused(f"remove {rule}", *_GONE):
            self._kernel.rule("del", **_rule(rule))

    def path_to(self, address: IPAddress, mark: int) -> OuterPath | None:
        """Return how packets with `mark` get to `address`, None if there is no way now."""
        try:
            route = self._kernel.route("get", dst=str(address), mark=mark)[0]
        except NetlinkError as error:
            if error.code in _UNREACHABLE:
                return None
            raise LocalError(f"cannot look up the route to {address}: {error}") from error
        source = route.get("prefsrc")
        if source is None:
            return None
        link_mtu = self._link_mtu(route.get("oif"), address.version)
        # The metric is the route's own MTU, or the smaller path MTU that the kernel learnt from ICMP.
        return OuterPath(ip_address(source), min(link_mtu, route.get(("metrics", "mtu")) or link_mtu))

    def _link_mtu(self, device: int, version: int) -> int:
        with _refused("read the MTU of an interface"):
            link = self._kernel.link("get", index=device)[0]
        mtu: int = link.get("mtu")
        # A router may have announced less for IPv6 (RFC 4861 section 4.6.4).
        announced = Path("/proc/sys/net/ipv6/conf") / link.get("ifname") / "mtu"
        return min(mtu, int(announced.read_text())) if version == 6 else mtu


def _address(device: int, address: IPAddress) -> dict[str, Any]:
    family = _FAMILY[address.version]
    return {"index": device, "family": family, "address": str(address), "prefixlen": address.max_prefixlen}


def _route(route: Route) -> dict[str, Any]:
    return _given(
        family=socket.AF_INET6 if ":" in route.network else socket.AF_INET,
        dst=route.network,
        table=route.table,
        type=route.kind,
        priority=route.metric,
        oif=route.device,
        prefsrc=route.source,
    )


def _rule(rule: Rule) -> dict[str, Any]:
    return _given(
        family=_FAMILY[rule.version],
        priority=rule.priority,
        action="to_tbl" if rule.table else "goto" if rule.goto else "nop",
        table=rule.table,
        goto=rule.goto,
        fwmark=rule.mark,
        iifname=rule.incoming,
        src=rule.source,
        flags=_FIB_RULE_INVERT if rule.inverted else None,
    )


def _given(**words: object) -> dict[str, Any]:
    return {word: value for word, value in words.items() if value is not None}


@contextmanager
def _refused(what: str, *tolerated: int) -> Iterator[None]:
    """Turn the kernel's refusal into one line, unless its errno is `tolerated`."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in tolerated:
            hint = ": run as root or with CAP_NET_ADMIN" if error.code == errno.EPERM else ""
            raise LocalError(f"cannot {what}: {error.args[1]}{hint}") from error
