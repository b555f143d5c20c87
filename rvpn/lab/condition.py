"""
What is broken in a laboratory, in words for people.

    Lab.status()["network"], rvpn.lab.faults.impairment_status -> `words`: a line for each node or path
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rvpn.lab.topology import BACK, OUT

_PATHS = {OUT: "the path to the gateway", BACK: "the path to the client"}


def words(
    network: Mapping[str, Any], impairment: Mapping[str, Any] | None, names: Mapping[str, str]
) -> list[str]:
    """
    Return what differs from a laboratory as it was built, a line for each thing; none if nothing does.

    `names` has a gateway's name for its address.
    """
    return [*_broken(network), *(_impaired(network["impaired"], impairment, names) if impairment else ())]


def _broken(network: Mapping[str, Any]) -> Iterator[str]:
    for end in network["down"]:
        node, interface = end.split()
        yield f"{node}: interface {interface} is down"
    for path in network["cut"]:
        gateway, direction = path.split()
        yield f"{gateway}: {_PATHS[direction]} is cut"
    for gateway, mtu in network["mtu"].items():
        yield f"{gateway}: no packet of more than {mtu} bytes passes"
    if network["inner_gateway"]:
        yield f"the targets have a route to the client through {network['inner_gateway']}"


def _impaired(paths: Sequence[str], impairment: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    """Tell what the impairment does to the paths that lead through it."""
    if impairment["public"]:
        yield f"the client is behind a NAT, at {impairment['public']}"
    for each in impairment["directions"]:
        gateway, direction = names[each["gateway"]], each["direction"]
        if f"{gateway} {direction}" in paths:
            counts = (f"{each[what]:,} {what}" for what in ("lost", "reordered", "duplicated"))
            of = f"of {each['seen']:,} packets {', '.join(counts)}"
            yield f"{gateway}: {_PATHS[direction]} is impaired: {of}"
    for what in "overflowed", "refused":
        if impairment[what]:
            yield f"the impairment itself lost packets: {impairment[what]:,} {what}"
