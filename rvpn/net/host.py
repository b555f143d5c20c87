"""
Everything that rvpn sets on its host, and takes back: the TUN's addresses, routes, rules, kernel parameters.

What belongs to the TUN device vanishes with it. What would outlive the process is noted in a journal in the
state directory before it is done; `undo` takes it back at the end, and `recover`, the first act of the next
start, takes back what a killed process left.

Routing. Each role has a table of its own, whose number is also the first priority of its rules. It holds for
each tunnel network

    unicast NETWORK dev TUN metric 2               while the device is up
    unreachable NETWORK metric 4294967295          survives the process: nothing leaves in clear meanwhile

and for each address that never goes through the tunnel (a client's gateways, link-local networks)

    throw ADDRESS metric 1                         the search goes on with the host's own rules

The node's UDP sockets carry a mark. One rule leads everything else into the table,

    29302  not fwmark 0x7276 lookup 29300

so that what the host sends, from whichever address, is for the tunnel, and a gateway is reached past it
even where a tunnel network covers it. That one rule would not do for a gateway with a client whose inner
address is its outer one (R18): the table then covers the address that ESP comes from. Plain answers of the
gateway's outer address to it would enter the tunnel. Under rp_filter = 1 the kernel looks up how it would
answer, without a mark, and would drop the client's ESP, its ARP requests too. A gateway is therefore more
exact in IPv4:

    29310  not iif lo lookup 29310                 what it forwards
    29311  fwmark 0x7276 goto 29314                its own ESP goes outside
    29312  from 0.0.0.0 lookup 29310               what it sends from no address yet: gets its LAN address
    29313  from LAN-ADDRESS lookup 29310           what it sends from there
    29314  nop                                     the rest goes outside

In IPv6, whose rules cannot tell packets without an address and whose kernel has no rp_filter, and where the
gateway has no LAN address, the one rule has to do. A client and a gateway on one host do not disturb each
other, for either's ESP passes both tables.

What remains under rp_filter = 1 on a client: ICMP errors of a router are dropped if a tunnel network covers
the router. Where tunnels cover the internet, the outside interface should have rp_filter = 2.

Forwarding. IPv4 is switched per interface. IPv6 has one switch for all interfaces, which also makes the host
deaf to router advertisements and drop the routes it had from them, unless accept_ra is 2, and it is set so
where it was 1. The former value of each interface is restored.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_network

from twisted.logger import Logger

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.files.state import StateDirectory
from rvpn.interfaces import IPAddress
from rvpn.net.changes import PROC_SYS, Change, Sysctl, apply, decode, encode, read_sysctl, undo, write_sysctl
from rvpn.net.netlink import Netlink, Route, Rule

#: SO_MARK of the node's UDP sockets: "rv".
OUTER_MARK = 0x7276
#: A role's routing table, and the priority of the first of its rules.
TABLE = {Role.CLIENT: 29300, Role.GATEWAY: 29310}
#: The file in the state directory.
JOURNAL = "host-changes.json"

_THROW_METRIC, _TUN_METRIC, _UNREACHABLE_METRIC = 1, 2, 0xFFFFFFFF
_NO_ADDRESS = str(IPv4Address(0))
_LINK_LOCAL = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))

Network = IPv4Network | IPv6Network
_log = Logger()


class HostChanges:
    """
    The changes of one node to its host. All methods but `undo` raise `LocalError` if kernel or disk refuse.

    `netlink` is a socket in the network namespace that is to be changed. The node's UDP sockets are to carry
    `OUTER_MARK`.
    """

    def __init__(self, state: StateDirectory, role: Role, netlink: Netlink) -> None:
        self._state = state
        self._role = role
        self._table = TABLE[role]
        self._netlink = netlink
        self._tun = 0
        self._tun_routes: set[Route] = set()
        self._changes: dict[Change, None] = {}

    def recover(self) -> None:
        """Take back what a killed process left, if it did. To be called before anything else."""
        left = self._read_journal()
        self._changes = dict.fromkeys(left)
        for change in self._take_back(left):
            _log.info("taken back, left by a process that was killed: {change}", change=str(change))

    def undo(self) -> None:
        """
        Take everything back, the last change first; never raises.

        What the kernel refuses is left for the next start. Where the disk keeps the journal as it is, that
        start takes back once more what is not there.
        """
        before = len(self._changes)
        try:
            self._take_back(list(self._changes))
        except LocalError as error:
            _log.error("the journal of changes to this host stays as it is: {error}", error=str(error))
        if count := before - len(self._changes):
            _log.info("{count} changes to this host taken back", count=count)

    def prepare_tun(self, name: str, addresses: Iterable[IPAddress], mtu: int) -> None:
        """Give the TUN exactly these addresses and this MTU (bytes), and set it up. May be repeated."""
        self._tun = self._netlink.index(name)
        generation = f"net/ipv6/conf/{name}/addr_gen_mode"
        if read_sysctl(generation) is not None:
            # No link-local address: the kernel would use it to look for routers in the tunnel.
            write_sysctl(generation, "1")
        self._netlink.bring_up(self._tun, mtu)
        present, wanted = self._netlink.addresses(self._tun), set(addresses)
        for address in wanted - present:
            self._netlink.add_address(self._tun, address)
        for address in present - wanted:
            self._netlink.remove_address(self._tun, address)

    def set_routes(
        self,
        networks: Iterable[Network],
        sources: Iterable[IPAddress] = (),
        bypass: Iterable[IPAddress] = (),
    ) -> None:
        """
        Route exactly these networks into the TUN device of `prepare_tun`; again, to make the difference.

        `sources` has at most one address per IP version, which the host's own packets into the tunnel get.
        `bypass` lists addresses that stay outside though a network may cover them.
        """
        tunnelled = _collapsed(networks)
        versions = {network.version for network in tunnelled}
        preferred: dict[int, str] = {address.version: str(address) for address in sources}
        lasting: list[Change] = [*self._safeguards(tunnelled, bypass, versions)]
        for version in versions:
            lasting += self._rules(version, preferred.get(version))
        tun_routes = self._routes_to_tun(tunnelled, preferred)
        for route in self._tun_routes - tun_routes:
            self._netlink.remove_route(route)
            self._tun_routes.remove(route)
        kept = set(lasting)
        self._take_back([change for change in self._changes if _is_routing(change) and change not in kept])
        self._make(lasting)
        for route in tun_routes - self._tun_routes:
            self._netlink.add_route(route)
            self._tun_routes.add(route)

    def enable_forwarding(self, interfaces: Iterable[str], versions: Iterable[int] = (4, 6)) -> None:
        """Let the host forward packets that arrive at these interfaces; IPv6 knows only all interfaces."""
        if 4 in versions:
            self._make(_ipv4_forwarding(interfaces))
        if 6 in versions:
            self._make(_ipv6_forwarding())

    def _routes_to_tun(self, networks: Iterable[Network], sources: dict[int, str]) -> set[Route]:
        assert self._tun, "prepare_tun comes first"
        return {
            Route(str(network), self._table, "unicast", _TUN_METRIC, self._tun, sources.get(network.version))
            for network in networks
        }

    def _safeguards(
        self, networks: Iterable[Network], bypass: Iterable[IPAddress], versions: Collection[int]
    ) -> Iterator[Route]:
        for network in networks:
            yield Route(str(network), self._table, "unreachable", _UNREACHABLE_METRIC)
        for outside in (*_LINK_LOCAL, *map(ip_network, bypass)):
            if outside.version in versions:
                yield Route(str(outside), self._table, "throw", _THROW_METRIC)

    def _rules(self, version: int, source: str | None) -> list[Rule]:
        first = table = self._table
        if self._role is Role.CLIENT or version == 6 or source is None:
            return [Rule(version, first + 2, table=table, mark=OUTER_MARK, inverted=True)]
        return [
            Rule(version, first + 4),
            Rule(version, first, table=table, incoming="lo", inverted=True),
            Rule(version, first + 1, goto=first + 4, mark=OUTER_MARK),
            Rule(version, first + 2, table=table, source=_NO_ADDRESS),
            Rule(version, first + 3, table=table, source=source),
        ]

    def _make(self, changes: Iterable[Change]) -> None:
        """
        Make all of these changes that are not made yet, or none.

        A `Sysctl` is one that the kernel was just found to lack: an interface that was removed and made anew
        has lost what was noted for the one before.
        """
        new = [change for change in changes if change not in self._changes or isinstance(change, Sysctl)]
        if not new:
            return
        try:
            self._changes |= dict.fromkeys(new)
            self._write_journal()
            for change in new:
                apply(change, self._netlink)
        except LocalError:
            self._take_back(new)
            raise

    def _take_back(self, changes: Sequence[Change]) -> list[Change]:
        """Take changes back, the last one first; return those that are."""
        done = []
        for change in reversed(changes):
            try:
                undo(change, self._netlink)
            except LocalError as error:
                _log.error("left on this host: {change}: {error}", change=str(change), error=str(error))
                continue
            del self._changes[change]
            done.append(change)
        if changes:
            self._write_journal()
        return done

    def _read_journal(self) -> list[Change]:
        journal = self._state.read(JOURNAL)
        try:
            return [] if journal is None else decode(journal)
        except ValueError as error:
            file = self._state.path / JOURNAL
            raise LocalError(f"{file} is damaged ({error}): look after `ip rule`, then remove it") from error

    def _write_journal(self) -> None:
        self._state.write(JOURNAL, encode(self._changes))


def _is_routing(change: Change) -> bool:
    return isinstance(change, Route | Rule)


def _collapsed(networks: Iterable[Network]) -> list[Network]:
    """Merge what overlaps or adjoins: fewer routes, and all lead to the same place."""
    listed = list(networks)
    ipv4 = collapse_addresses(network for network in listed if isinstance(network, IPv4Network))
    ipv6 = collapse_addresses(network for network in listed if isinstance(network, IPv6Network))
    return [*ipv4, *ipv6]


def _ipv4_forwarding(interfaces: Iterable[str]) -> Iterator[Sysctl]:
    for interface in interfaces:
        path = f"net/ipv4/conf/{interface}/forwarding"
        before = read_sysctl(path)
        if before is None:
            raise LocalError(f"there is no network interface {interface}")
        if before != "1":
            yield Sysctl(path, before, "1")


def _ipv6_forwarding() -> list[Sysctl]:
    """
    Return what switches IPv6 forwarding on, the switch last, so that it is the first to be taken back.

    It overwrites the value of every interface, so each of them is a change, to be taken back after it.
    """
    switch = "net/ipv6/conf/all/forwarding"
    before = read_sysctl(switch)
    if before is None:
        raise LocalError("cannot forward IPv6: the kernel has none")
    if before == "1":
        return []
    interfaces = sorted(entry.name for entry in (PROC_SYS / "net/ipv6/conf").iterdir() if entry.name != "all")
    forwarding = [
        Sysctl(path, value, "1")
        for path in (f"net/ipv6/conf/{interface}/forwarding" for interface in interfaces)
        if (value := read_sysctl(path)) is not None
    ]
    advertisements = [
        Sysctl(path, "1", "2")
        for path in (f"net/ipv6/conf/{interface}/accept_ra" for interface in interfaces)
        if read_sysctl(path) == "1"
    ]
    return [*advertisements, *forwarding, Sysctl(switch, before, "1")]
