"""
Builds a `Topology` out of network namespaces, veth pairs and a bridge, and changes it while traffic flows.

One netlink socket stays open in each namespace, so a change (a link down, a path cut) is one call of about a
millisecond, made by the caller itself. The router's policy rules decide, in this order, what is cut, where
a route has a lower MTU, and what goes through the impairment's TUN device; all else follows the main table:

    CUT: blackhole -> MTU_BACK: a route with a locked MTU -> DIVERT: into the TUN -> MTU_OUT: as MTU_BACK

What comes back out of the TUN device enters the router anew and is no longer diverted, because the rules name
the interface that it came in by. The narrow place of a path lies between the NAT and the gateway, so that
each end gets ICMP errors about packets that it knows: it is passed before the TUN on the way back, and after
it on the way out.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from rvpn.lab.namespaces import inside, new_network
from rvpn.lab.topology import (
    BACK,
    IMPAIRMENT_DEVICE,
    NAT_NETWORKS,
    OUT,
    Node,
    Route,
    Topology,
    routes_to_client,
)

_CUT, _MTU_BACK, _DIVERT, _MTU_OUT = 100, 200, 300, 400  # priorities of the router's rules
_DIVERT_TABLE, _MTU_OUT_TABLES, _MTU_BACK_TABLES = 300, 1000, 2000  # the latter plus the gateway's number
_FIRST_INDEX = 10
_IMPAIRMENT_QUEUE = 10_000  # packets that the TUN device holds until they are read
_LOCK_MTU = 1 << 2  # RTAX_LOCK's bit for RTAX_MTU (<linux/rtnetlink.h>)
_FAMILIES = {4: 2, 6: 10}  # AF_INET and AF_INET6

#: No duplicate address detection and no router advertisements: addresses are ready at once. Interfaces that
#: come up announce themselves: neighbours that asked for them in vain would else repeat that only a second
#: later.
_SYSCTLS = {
    "ipv4/conf/default/arp_notify": 1,
    "ipv6/conf/default/ndisc_notify": 1,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/router_solicitations": 0,
}


class Network:
    """The namespaces of a topology. Raises OSError or pyroute2's NetlinkError where the kernel refuses."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._nodes = {node.name: node for node in topology.nodes}
        self._namespaces = {name: new_network() for name in self._nodes}
        self._netlink: dict[str, Any] = {}
        self._indices: dict[tuple[str, str], int] = {}
        self._cut: set[tuple[str, str]] = set()
        self._diverted: set[tuple[str, str]] = set()
        self._down: set[tuple[str, str]] = set()
        self._mtus: dict[str, int] = {}
        self._inner_gateway: str | None = None
        #: What `rvpn.lab.lab` may ask for by name.
        self.changes: Mapping[str, Callable[..., None]] = {
            change.__name__: change
            for change in (
                self.set_link,
                self.set_cut,
                self.set_divert,
                self.set_mtu,
                self.connect_impairment,
                self.point_targets_at,
                self.adopt_device,
                self.add_route,
                self.set_forwarding,
            )
        }
        for node in self._nodes.values():
            self._prepare(node)
        self._connect()
        for node in self._nodes.values():
            self._configure(node)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the namespaces."""
        return tuple(self._nodes)

    def inside(self, node: str) -> AbstractContextManager[None]:
        """Run a body in that node's namespace. Raises KeyError for a node that does not exist."""
        return inside(self._namespaces[node])

    def state(self) -> Mapping[str, object]:
        """Return what differs from the network as built, as JSON types."""
        return {
            "down": sorted(f"{node} {interface}" for node, interface in self._down),
            "cut": sorted(f"{gateway} {direction}" for gateway, direction in self._cut),
            "impaired": sorted(f"{gateway} {direction}" for gateway, direction in self._diverted),
            "mtu": dict(self._mtus),
            "inner_gateway": self._inner_gateway,
        }

    # --- Changes ---------------------------------------------------------------------------------

    def set_link(self, node: str, interface: str, up: bool) -> None:
        """Take an interface down or up by its administrator, not by its cable. Up restores its addresses."""
        index = self._indices[node, interface]
        self._netlink[node].link("set", index=index, state="up" if up else "down")
        if up:
            self._address(self._nodes[node], interface)
            self._down.discard((node, interface))
        else:
            self._down.add((node, interface))

    def set_cut(self, gateway: str, direction: str, cut: bool) -> None:
        """Drop in silence, at the router, everything from the client to a gateway (OUT) or back (BACK)."""
        if ((gateway, direction) in self._cut) == cut:
            return
        self._rule(cut, _CUT, action="blackhole", **self._end(gateway, direction))
        (self._cut.add if cut else self._cut.discard)((gateway, direction))

    def set_divert(self, gateway: str, direction: str, divert: bool) -> None:
        """Send one direction of the client's path to a gateway through the impairment's TUN device."""
        if ((gateway, direction) in self._diverted) == divert:
            return
        came_in = "client" if direction == OUT else gateway
        self._rule(divert, _DIVERT, table=_DIVERT_TABLE, iifname=came_in, **self._end(gateway, direction))
        (self._diverted.add if divert else self._diverted.discard)((gateway, direction))
        if gateway in self._mtus:
            self._limit(gateway)

    def connect_impairment(self) -> None:
        """
        Bring the TUN device up, and route diverted packets and whatever is for the NAT's addresses into it.

        The router's own ICMP errors for the NAT's addresses come back out of it, from the router's own
        address.
        """
        (index,) = self._netlink["router"].link_lookup(ifname=IMPAIRMENT_DEVICE)
        with self.inside("router"):
            Path("/proc/sys/net/ipv4/conf", IMPAIRMENT_DEVICE, "accept_local").write_text("1\n")
        self._netlink["router"].link("set", index=index, state="up", txqlen=_IMPAIRMENT_QUEUE)
        family = _FAMILIES[self.topology.family]
        everything = {"dst": "default", "table": _DIVERT_TABLE}
        for target in (everything, {"dst": str(NAT_NETWORKS[self.topology.family])}):
            self._netlink["router"].route("replace", family=family, oif=index, **target)
        self._indices["router", IMPAIRMENT_DEVICE] = index
        for gateway in self._mtus:
            self._limit(gateway)

    def set_mtu(self, gateway: str, mtu: int | None) -> None:
        """Make `mtu` the largest packet, IP header included, between client and gateway; None: the links'."""
        limited = gateway in self._mtus
        if mtu is None:
            self._mtus.pop(gateway, None)
        else:
            self._mtus[gateway] = mtu
            self._limit(gateway)
        if limited == (mtu is None):
            out, back = self._mtu_tables(gateway)
            self._rule(not limited, _MTU_OUT, table=out, **self._end(gateway, OUT))
            self._rule(not limited, _MTU_BACK, table=back, iifname=gateway, **self._end(gateway, BACK))

    def point_targets_at(self, gateway: str) -> None:
        """Route the client's inner addresses on every target through this gateway (DESIGN 8, no presence)."""
        for target in self.topology.target_names:
            for route in routes_to_client(self.topology.lan_addresses(gateway)):
                self._route(target, route)
        self._inner_gateway = gateway

    def adopt_device(self, node: str, interface: str, addresses: list[str]) -> None:
        """Bring a device up that a process in the node has made, with addresses as in an `Interface`."""
        (index,) = self._netlink[node].link_lookup(ifname=interface)
        for text in addresses:
            address = ip_interface(text)
            self._netlink[node].addr(
                "replace", index=index, address=str(address.ip), prefixlen=address.network.prefixlen
            )
        self._netlink[node].link("set", index=index, state="up")
        self._indices[node, interface] = index

    def add_route(self, node: str, destination: str, interface: str, via: str | None = None) -> None:
        """Add a route that the topology does not have."""
        gateway = None if via is None else ip_address(via)
        self._route(node, Route(ip_network(destination), interface, gateway))

    def set_forwarding(self, node: str) -> None:
        """Have a node forward IPv4 packets, as a gateway's service does with both versions."""
        with self.inside(node):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")

    # --- Building --------------------------------------------------------------------------------

    def _prepare(self, node: Node) -> None:
        with self.inside(node.name):
            self._netlink[node.name] = IPRoute()
            forwarding = int(node.forwarding)
            forward = {"ipv4/ip_forward": forwarding, "ipv6/conf/all/forwarding": forwarding}
            for name, value in {**_SYSCTLS, **forward}.items():
                Path("/proc/sys/net", name).write_text(f"{value}\n")
        self._netlink[node.name].link("set", index=1, state="up")
        if node.bridge is not None:
            self._add_link(node.name, node.bridge, kind="bridge")

    def _connect(self) -> None:
        """
        Make the cables.

        The near ends are numbered from `_FIRST_INDEX`, the far ends by the kernel from 2: it takes a veth
        whose peer has its own index for one without a peer, and then notices its carrier up to a second late.
        """
        for link in self.topology.links:
            far_node, far_name = link.far
            peer = {"ifname": far_name, "net_ns_fd": self._namespaces[far_node]}
            self._add_link(*link.near, kind="veth", peer=peer)
            (self._indices[link.far],) = self._netlink[far_node].link_lookup(ifname=far_name)

    def _add_link(self, node: str, interface: str, **how: object) -> None:
        index = _FIRST_INDEX + len(self._indices)
        self._netlink[node].link("add", ifname=interface, index=index, **how)
        self._indices[node, interface] = index

    def _configure(self, node: Node) -> None:
        """Bring every interface of the node up, with its addresses and routes."""
        for interface in node.interfaces:
            index = self._indices[node.name, interface.name]
            if node.bridge is not None:
                self._netlink[node.name].link(
                    "set", index=index, master=self._indices[node.name, node.bridge]
                )
            self._netlink[node.name].link("set", index=index, state="up")
            self._address(node, interface.name)
        if node.bridge is not None:
            self._netlink[node.name].link("set", index=self._indices[node.name, node.bridge], state="up")

    def _address(self, node: Node, name: str) -> None:
        """Give an interface that is up its addresses and routes, whichever of them it still has."""
        (interface,) = (each for each in node.interfaces if each.name == name)
        for text in interface.addresses:
            address = ip_interface(text)
            self._netlink[node.name].addr(
                "replace",
                index=self._indices[node.name, name],
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )
        for route in node.routes:
            if route.interface == name:
                self._route(node.name, route)

    def _route(self, node: str, route: Route) -> None:
        via = {"scope": "link"} if route.via is None else {"gateway": str(route.via)}
        self._netlink[node].route(
            "replace",
            family=_FAMILIES[route.destination.version],
            dst=str(route.destination),
            oif=self._indices[node, route.interface],
            **via,
        )

    # --- The router's rules ----------------------------------------------------------------------

    def _end(self, gateway: str, direction: str) -> dict[str, object]:
        """Return the part of a rule that selects one direction of a path by the gateway's address."""
        address, length = (
            str(self.topology.gateway_address(gateway)),
            32 if self.topology.family == 4 else 128,
        )
        return (
            {"dst": address, "dst_len": length} if direction == OUT else {"src": address, "src_len": length}
        )

    def _rule(self, add: bool, priority: int, **rule: object) -> None:
        family = _FAMILIES[self.topology.family]
        self._netlink["router"].rule("add" if add else "del", family=family, priority=priority, **rule)

    def _limit(self, gateway: str) -> None:
        """
        Fill the tables of a path with a lower MTU. They depend on what is diverted, as the narrow place is
        out.
        """
        out, back = self._mtu_tables(gateway)
        self._lock_mtu(out, gateway, str(self.topology.gateway_address(gateway)), self._mtus[gateway])
        towards_client = IMPAIRMENT_DEVICE if (gateway, BACK) in self._diverted else "client"
        self._lock_mtu(back, towards_client, str(self.topology.client_address), self._mtus[gateway])
        if ("router", IMPAIRMENT_DEVICE) in self._indices:
            network = str(NAT_NETWORKS[self.topology.family])
            self._lock_mtu(back, IMPAIRMENT_DEVICE, network, self._mtus[gateway])

    def _mtu_tables(self, gateway: str) -> tuple[int, int]:
        number = self.topology.gateway_names.index(gateway)
        return _MTU_OUT_TABLES + number, _MTU_BACK_TABLES + number

    def _lock_mtu(self, table: int, interface: str, destination: str, mtu: int) -> None:
        self._netlink["router"].route(
            "replace",
            family=_FAMILIES[self.topology.family],
            dst=destination,
            table=table,
            oif=self._indices["router", interface],
            scope="link",
            metrics={"mtu": mtu, "lock": _LOCK_MTU},
        )
