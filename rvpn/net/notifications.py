"""
What rtnetlink notifications say: bytes from the kernel -> links, addresses and routes that changed.

A notification is an nlmsghdr, a fixed part and attributes, in host byte order (linux/netlink.h,
linux/rtnetlink.h). `NetworkState` remembers what each link and address was last said to be: a lease that is
renewed, an address that is still being checked for duplicates or new statistics of a link change nothing.
It decodes no more than it needs, for a routing daemon that moves its table must not hold up packets:
6 us a message.

IPv4 routes that vanish with a link or an address do so without a notification of their own. So whatever
happens to those counts as a change of routes too.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from rvpn.net.netlink import Link
from rvpn.net.rtnetlink import ADDRESS, ATTRIBUTE, HEADER, LINK, ROUTE, Kind, aligned, text

_LAYOUT = {
    Kind.NEW_LINK: LINK,
    Kind.DELETE_LINK: LINK,
    Kind.NEW_ADDRESS: ADDRESS,
    Kind.DELETE_ADDRESS: ADDRESS,
    Kind.NEW_ROUTE: ROUTE,
    Kind.DELETE_ROUTE: ROUTE,
}
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40
_RTA_OIF, _RTA_TABLE = 4, 15
_TABLE_LOCAL = 255  # its routes follow the addresses


@dataclass(slots=True)
class Changes:
    """
    Links that changed, by name, and whether each is up now; whether addresses changed, and whether routes
    did, or what they carry.
    """

    links: dict[str, bool] = field(default_factory=dict)
    addresses: bool = False
    routes: bool = False


class NetworkState:
    """
    The links and addresses of a network namespace as far as notifications told of them.

    Links `without` (by index) and routes through them are ours, as are routes in `tables`: of their changes
    nothing is said.
    """

    def __init__(self, without: Collection[int] = (), tables: Collection[int] = ()) -> None:
        self._links: dict[int, Link] = {}
        self._addresses: set[tuple[int, bytes]] = set()
        self._without = without
        self._tables = {_TABLE_LOCAL, *tables}

    def renew(self, links: Mapping[int, Link]) -> Changes:
        """Begin anew with these links, as notifications were lost: everything may have changed."""
        gone = {link.name: False for link in self._links.values()}
        self._links = {index: link for index, link in links.items() if index not in self._without}
        self._addresses.clear()
        return Changes(gone | {link.name: link.up for link in self._links.values()}, True, True)

    def read(self, data: bytes, changes: Changes) -> None:
        """Add to `changes` what the notifications in `data` tell."""
        for kind, body in _messages(data):
            layout = _LAYOUT[kind]
            fixed, attributes = layout.unpack_from(body), body[layout.size :]
            new = kind in (Kind.NEW_LINK, Kind.NEW_ADDRESS, Kind.NEW_ROUTE)
            if layout is LINK:
                self._read_link(new, fixed, attributes, changes)
            elif layout is ADDRESS:
                self._read_address(new, fixed, attributes, changes)
            else:
                self._read_route(attributes, changes)

    def _read_link(self, new: bool, fixed: tuple[int, ...], attributes: bytes, changes: Changes) -> None:
        family, _, index, flags, _ = fixed
        # Of another family it is about something else: a bridge that lost a port, say.
        if family or index in self._without:
            return
        name = text(_find(attributes, _IFLA_IFNAME))
        link = Link.of(name, flags, _number(attributes, _IFLA_MTU))
        known = self._links.get(index)
        if new and link == known:
            return
        if known is not None:
            changes.links[known.name] = False  # unless the next lines say otherwise: it may have a new name
        if new:
            self._links[index] = link
        else:
            self._links.pop(index, None)
        changes.links[name] = new and link.up
        changes.routes = True

    def _read_address(self, new: bool, fixed: tuple[int, ...], attributes: bytes, changes: Changes) -> None:
        _, _, _, _, index = fixed
        if index in self._without:
            return
        address = index, _find(attributes, _IFA_LOCAL) or _find(attributes, _IFA_ADDRESS)
        usable = new and not _number(attributes, _IFA_FLAGS) & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)
        was_usable = address in self._addresses or not new
        if usable != was_usable:
            changes.addresses = changes.routes = True
        if usable:
            self._addresses.add(address)
        else:
            self._addresses.discard(address)

    def _read_route(self, attributes: bytes, changes: Changes) -> None:
        if _number(attributes, _RTA_OIF) not in self._without:
            changes.routes |= _number(attributes, _RTA_TABLE) not in self._tables


def _messages(data: bytes) -> Iterator[tuple[Kind, bytes]]:
    """Yield the notifications that we read, without their headers."""
    start = 0
    while start + HEADER.size <= len(data):
        length, number, _, _, _ = HEADER.unpack_from(data, start)
        body = data[start + HEADER.size : start + length]
        if number in _LAYOUT and len(body) >= _LAYOUT[number].size:
            yield Kind(number), body
        start += max(aligned(length), HEADER.size)


def _find(attributes: bytes, wanted: int) -> bytes:
    """Return the first attribute of that kind; nothing if there is none."""
    start = 0
    while start + ATTRIBUTE.size <= len(attributes):
        length, kind = ATTRIBUTE.unpack_from(attributes, start)
        if kind == wanted:
            return attributes[start + ATTRIBUTE.size : start + length]
        start += max(aligned(length), ATTRIBUTE.size)
    return b""


def _number(attributes: bytes, wanted: int) -> int:
    """Return an attribute that is a number; 0, which is no device and no table, if it is missing."""
    return int.from_bytes(_find(attributes, wanted), sys.byteorder)
