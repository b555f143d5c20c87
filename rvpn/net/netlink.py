"""
Links, addresses, routes and rules of the kernel, by rtnetlink (rvpn.net.rtnetlink).

Calls are synchronous, 20 us for a change of a route and more for a list: fit for the start, for a reload and
for a new path, not for each packet. To add what is there, or to remove what is gone, is no error, so that
every change can be made and taken back again.
"""

import errno
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

from rvpn.errors import LocalError
from rvpn.interfaces import IPAddress
from rvpn.net import rtnetlink
from rvpn.net.rtnetlink import CREATE, DUMP, EXCLUSIVE, Kind, Message, RoutingSocket, attribute, number

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT, _IFF_RUNNING = 0x1, 0x8, 0x10, 0x40  # linux/if.h
# linux/if_link.h
_IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 3, 4, 13, 52, 53
_NESTED = 0x8000
# linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02  # usable at once; a TUN has no neighbours to ask
# linux/rtnetlink.h
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE, _RTA_MARK, _RTAX_MTU = 8, 9, 15, 16, 2
_TABLE_MAIN, _STATIC, _UNICAST = 254, 4, 1
_ROUTE_TYPES = {"unicast": _UNICAST, "unreachable": 7, "throw": 9}
# linux/fib_rules.h
_FRA_SRC, _FRA_IIFNAME, _FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE = 2, 3, 4, 6, 10, 15
_TO_TABLE, _GOTO, _NOTHING = 1, 2, 3
_FIB_RULE_INVERT = 0x2
#: Packets that wait in a TUN device; the kernel has 500.
_QUEUE = 1000
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
    An interface: its name, whether it can carry packets (set up, with a carrier), whether to one peer, and of
    how many bytes.
    """

    name: str
    up: bool
    point_to_point: bool
    mtu: int

    @classmethod
    def of(cls, name: str, flags: int, mtu: int) -> "Link":
        """Read the flags of netdevice(7)."""
        ready = _IFF_UP | _IFF_RUNNING
        return cls(name, flags & ready == ready, bool(flags & _IFF_POINTOPOINT), mtu)


class Netlink:
    """An rtnetlink socket in the network namespace in which it was made. Every method raises `LocalError`."""

    def __init__(self) -> None:
        with _refused("open an rtnetlink socket"):
            self._kernel = RoutingSocket()

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
        """Set the link of a TUN device up, with this MTU in bytes."""
        with _refused(f"set the link up with MTU {mtu}"):
            attributes = attribute(_IFLA_MTU, mtu) + attribute(_IFLA_TXQLEN, _QUEUE)
            self._request(Kind.NEW_LINK, _link(device, _IFF_UP) + attributes)

    def add_name(self, device: int, name: str) -> bool:
        """
        Give an interface a further name; False if another interface of this namespace has it.

        It goes with the interface. A kernel before 5.5 has no such names, and nobody is ever refused one.
        """
        names = attribute(_IFLA_PROP_LIST | _NESTED, attribute(_IFLA_ALT_IFNAME, name))
        try:
            self._request(Kind.NEW_LINK_PROPERTY, _link(device) + names, CREATE | EXCLUSIVE)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            if error.errno != errno.EOPNOTSUPP:
                raise LocalError(f"cannot name the link {name}: {error.strerror}") from error
        return True

    def addresses(self, device: int) -> set[IPAddress]:
        """Return the addresses of an interface."""
        with _refused("read addresses"):
            return {_ip(found, _IFA_ADDRESS) for found in self._addresses() if found.fixed[4] == device}

    def all_addresses(self) -> set[IPAddress]:
        """Return the addresses of all interfaces."""
        with _refused("read addresses"):
            return {_ip(found, _IFA_ADDRESS) for found in self._addresses()}

    def links(self) -> dict[int, Link]:
        """Return all interfaces by index."""
        with _refused("read the interfaces"):
            return {
                found.fixed[2]: Link.of(_name(found), found.fixed[3], _number(found, _IFLA_MTU))
                for found in self._links()
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

    def _peers(self, family: int, links: Mapping[int, Link]) -> Iterator[bytes]:
        for found in self._addresses(family):
            own, peer = (found.attributes.get(kind) for kind in (_IFA_LOCAL, _IFA_ADDRESS))
            link = links.get(found.fixed[4])
            if link is not None and link.point_to_point and peer is not None and own not in (None, peer):
                yield peer

    def _default_gateways(self, family: int, links: Mapping[int, Link]) -> Iterator[bytes]:
        for route in sorted(self._default_routes(family), key=lambda each: _number(each, _RTA_PRIORITY)):
            hops = rtnetlink.hops(route.attributes.get(_RTA_MULTIPATH, b""))
            for device, attributes in hops or [(_number(route, _RTA_OIF), route.attributes)]:
                if device in links and _RTA_GATEWAY in attributes:
                    yield attributes[_RTA_GATEWAY]

    def _default_routes(self, family: int) -> Iterator[Message]:
        """Yield the routes to everywhere in the main table."""
        everywhere = rtnetlink.ROUTE.pack(family, *bytes(7), 0)
        for found in self._request(Kind.GET_ROUTE, everywhere, DUMP):
            length, kind = found.fixed[1], found.fixed[7]
            if not length and kind == _UNICAST and _number(found, _RTA_TABLE) == _TABLE_MAIN:
                yield found

    def mtus(self, without: Collection[str]) -> list[int]:
        """Return the MTU of each link that is set up, but of loopback and these."""
        with _refused("read the MTU of the interfaces"):
            links = [link for link in self._links() if link.fixed[3] & _IFF_UP]
        return [
            _number(link, _IFLA_MTU)
            for link in links
            if not link.fixed[3] & _IFF_LOOPBACK and _name(link) not in without
        ]

    def add_address(self, device: int, address: IPAddress) -> None:
        """Give an interface an address, without a network."""
        with _refused(f"add the address {address}", errno.EEXIST):
            self._request(Kind.NEW_ADDRESS, _address(device, address), CREATE | EXCLUSIVE)

    def remove_address(self, device: int, address: IPAddress) -> None:
        """Take an address from an interface."""
        with _refused(f"remove the address {address}", *_GONE):
            self._request(Kind.DELETE_ADDRESS, _address(device, address))

    def add_route(self, route: Route) -> None:
        """Add a route."""
        with _refused(f"add {route}", errno.EEXIST):
            self._request(Kind.NEW_ROUTE, _route(route), CREATE | EXCLUSIVE)

    def remove_route(self, route: Route) -> None:
        """Remove a route."""
        with _refused(f"remove {route}", *_GONE):
            self._request(Kind.DELETE_ROUTE, _route(route))

    def add_rule(self, rule: Rule) -> None:
        """Add a rule."""
        with _refused(f"add {rule}", errno.EEXIST):
            self._request(Kind.NEW_RULE, _rule(rule), CREATE | EXCLUSIVE)

    def remove_rule(self, rule: Rule) -> None:
        """Remove a rule."""
        with _refused(f"remove {rule}", *_GONE):
            self._request(Kind.DELETE_RULE, _rule(rule))

    def path_to(self, address: IPAddress, mark: int) -> OuterPath | None:
        """Return how packets with `mark` get to `address`, None if there is no way now."""
        asked = rtnetlink.ROUTE.pack(_FAMILY[address.version], address.max_prefixlen, *bytes(6), 0)
        asked += attribute(_RTA_DST, address.packed) + attribute(_RTA_MARK, mark)
        try:
            (route,) = self._request(Kind.GET_ROUTE, asked)
        except OSError as error:
            if error.errno in _UNREACHABLE:
                return None
            raise LocalError(f"cannot look up the route to {address}: {error.strerror}") from error
        if _RTA_PREFSRC not in route.attributes:
            return None
        link_mtu = self._link_mtu(_number(route, _RTA_OIF), address.version)
        # The metric is the route's own MTU, or the smaller path MTU that the kernel learnt from ICMP.
        metrics = rtnetlink.attributes(route.attributes.get(_RTA_METRICS, b""))
        mtu = number(metrics.get(_RTAX_MTU)) or link_mtu
        return OuterPath(_ip(route, _RTA_PREFSRC), min(link_mtu, mtu))

    def _link_mtu(self, device: int, version: int) -> int:
        with _refused("read the MTU of an interface"):
            (link,) = self._request(Kind.GET_LINK, _link(device))
            mtu = _number(link, _IFLA_MTU)
            # A router may have announced less for IPv6 (RFC 4861 section 4.6.4).
            announced = Path("/proc/sys/net/ipv6/conf") / _name(link) / "mtu"
            return min(mtu, int(announced.read_text())) if version == 6 else mtu

    # --- requests -------------------------------------------------------------------------------------------

    def _request(self, kind: Kind, body: bytes, flags: int = 0) -> list[Message]:
        return self._kernel.request(kind, flags, body)

    def _links(self) -> list[Message]:
        return self._request(Kind.GET_LINK, _link(0), DUMP)

    def _addresses(self, family: int = socket.AF_UNSPEC) -> list[Message]:
        return self._request(Kind.GET_ADDRESS, rtnetlink.ADDRESS.pack(family, 0, 0, 0, 0), DUMP)


def _link(device: int, flags: int = 0) -> bytes:
    """Return the fixed part of a message about a link; `flags` are set, all others left as they are."""
    return rtnetlink.LINK.pack(socket.AF_UNSPEC, 0, device, flags, flags)


def _address(device: int, address: IPAddress) -> bytes:
    family, length = _FAMILY[address.version], address.max_prefixlen
    fixed = rtnetlink.ADDRESS.pack(family, length, _IFA_F_NODAD, 0, device)
    return fixed + attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)


def _route(route: Route) -> bytes:
    network = ip_network(route.network)
    fixed = rtnetlink.ROUTE.pack(
        _FAMILY[network.version], network.prefixlen, 0, 0, 0, _STATIC, 0, _ROUTE_TYPES[route.kind], 0
    )
    return fixed + _given(
        (_RTA_DST, network.network_address.packed),
        (_RTA_TABLE, route.table),
        (_RTA_PRIORITY, route.metric),
        (_RTA_OIF, route.device),
        (_RTA_PREFSRC, _packed(route.source)),
    )


def _rule(rule: Rule) -> bytes:
    source = _packed(rule.source)
    action = _TO_TABLE if rule.table else _GOTO if rule.goto else _NOTHING
    flags = _FIB_RULE_INVERT if rule.inverted else 0
    length = 8 * len(source or b"")
    fixed = rtnetlink.RULE.pack(_FAMILY[rule.version], 0, length, 0, 0, 0, 0, action, flags)
    return fixed + _given(
        (_FRA_PRIORITY, rule.priority),
        (_FRA_TABLE, rule.table),
        (_FRA_GOTO, rule.goto),
        (_FRA_FWMARK, rule.mark),
        (_FRA_IIFNAME, rule.incoming),
        (_FRA_SRC, source),
    )


def _given(*attributes: tuple[int, bytes | str | int | None]) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in attributes if value is not None)


def _packed(address: str | None) -> bytes | None:
    return None if address is None else ip_address(address).packed


def _ip(message: Message, kind: int) -> IPAddress:
    return ip_address(message.attributes[kind])


def _name(link: Message) -> str:
    return rtnetlink.text(link.attributes.get(_IFLA_IFNAME, b""))


def _number(message: Message, kind: int) -> int:
    """Return an attribute that is a number; 0 if it is missing."""
    return number(message.attributes.get(kind)) or 0


@contextmanager
def _refused(what: str, *tolerated: int) -> Iterator[None]:
    """Turn the kernel's refusal into one line, unless its errno is `tolerated`."""
    try:
        yield
    except OSError as error:
        if error.errno not in tolerated:
            hint = ": run as root or with CAP_NET_ADMIN" if error.errno == errno.EPERM else ""
            raise LocalError(f"cannot {what}: {error.strerror}{hint}") from error
