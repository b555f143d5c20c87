"""
What a valid policy probably does not mean (DESIGN 7): entries that others hide, and what is missing.

Each rule yields pairs: the section or statement that a warning is about, which gives its line, and the text.
`check` is for `rvpn policy check`: it returns errors and warnings of a file together.
"""

from collections.abc import Iterator

from rvpn.constants import HeartbeatMode, LanPresence, Mechanism
from rvpn.interfaces import IPAddress
from rvpn.policy.diagnostics import Diagnostic, Severity
from rvpn.policy.grammar import Reading, read
from rvpn.policy.lookup import TunnelIndex
from rvpn.policy.model import Policy, Redirect, Tunnel

#: The most entries that one warning names.
NAMED_ENTRIES = 8


def check(text: str | bytes, filename: str) -> tuple[Policy | None, list[Diagnostic]]:
    """Return the policy (None if it has errors) with its errors and warnings in the order of their lines."""
    reading = read(text, filename)
    diagnostics = sorted([*reading.errors, *lint(reading)], key=lambda diagnostic: diagnostic.line)
    return None if reading.errors else reading.policy, diagnostics


def lint(reading: Reading) -> list[Diagnostic]:
    """Return the warnings for a policy file. What is missing is looked for only where no line was faulty."""
    policy = reading.policy
    warnings = [*_hidden_tunnels(policy.tunnels), *_hidden_redirects(policy.redirects)]
    if not reading.errors:
        warnings += [*_heartbeats_off(policy), *_keys_missing(reading), *_networks_missing(reading)]
        warnings += [*_presence_nowhere(policy), *_ranges(policy)]
    return [
        Diagnostic(reading.filename, reading.lines.get(place, 1), Severity.WARNING, text)
        for place, text in warnings
    ]


def _hidden_tunnels(tunnels: tuple[Tunnel, ...]) -> Iterator[tuple[str, str]]:
    """Find entries whose targets belong, wholly or in part, to entries searched before them."""
    index = TunnelIndex(tunnels)
    winners = index.winners()
    for tunnel in tunnels:
        place = f"Tunnel{tunnel.number}"
        earlier = _enumerated(_winners_before(tunnel, index))
        if tunnel.number not in winners:
            yield place, f"{place} can never match: all its targets belong to {earlier}, searched first"
        elif earlier:
            yield place, f"{place} overlaps {earlier}, searched first"


def _winners_before(tunnel: Tunnel, index: TunnelIndex) -> list[int]:
    """Return the numbers of the entries that win a tunnel's targets, at most one more than are named."""
    numbers: set[int] = set()
    for winner in index.within(tunnel.first, tunnel.last):
        if winner.number != tunnel.number:
            numbers.add(winner.number)
        if len(numbers) > NAMED_ENTRIES:
            break
    return sorted(numbers)


def _enumerated(numbers: list[int]) -> str:
    names = [f"Tunnel{number}" for number in numbers[:NAMED_ENTRIES]]
    return ", ".join(names) + (" and others" if len(numbers) > NAMED_ENTRIES else "")


def _hidden_redirects(redirects: tuple[Redirect, ...]) -> Iterator[tuple[str, str]]:
    """Find redirections of an access server that an earlier one redirects (R15)."""
    first: dict[IPAddress, int] = {}
    for redirect in redirects:
        number = first.setdefault(redirect.server, redirect.number)
        if number != redirect.number:
            place = f"RedirectTunnel{redirect.number}"
            yield place, f"{place} can never match: RedirectTunnel{number} names {redirect.server} first"


def _heartbeats_off(policy: Policy) -> Iterator[tuple[str, str]]:
    """Find clusters whose client would stay with a dead gateway (R9)."""
    for cluster in policy.clusters:
        if policy.heartbeat is HeartbeatMode.NONE and len(cluster.members) > 1:
            gateways = f"{cluster.name} has {len(cluster.members)} gateways"
            yield cluster.name, f"{gateways}, but with Heartbeat = NONE no client notices that one has failed"


def _keys_missing(reading: Reading) -> Iterator[tuple[str, str]]:
    """Find out whether this node and all gateways it may call have keys."""
    policy = reading.policy
    for missing in missing_identities(policy):
        yield "[IDENTITY]", f"no {missing} in [IDENTITY]; the services refuse such a policy"
    if policy.certificate is not None and not policy.authorities:
        yield "Certificate", "no Authority<nr> in [AUTHORITIES]; the services refuse such a policy"
    entries = [(f"Tunnel{tunnel.number}", tunnel.cluster) for tunnel in policy.tunnels]
    entries += [(f"RedirectTunnel{redirect.number}", redirect.cluster) for redirect in policy.redirects]
    places: dict[IPAddress, str] = {}
    for place, cluster in entries:
        for gateway in cluster.members if cluster else ():
            places.setdefault(gateway, place)
    for gateway, place in places.items():
        if policy.peer(gateway) is None:
            yield place, f"gateway {gateway} has no public key in [PEERS]"


def missing_identities(policy: Policy) -> Iterator[str]:
    """Yield the keywords of what a node with this policy lacks to authenticate (DESIGN 7)."""
    has = {Mechanism.NOISE: policy.private_key is not None, Mechanism.TLS: policy.certificate is not None}
    keywords = {Mechanism.NOISE: "PrivateKey", Mechanism.TLS: "Certificate"}
    needed = policy.mechanisms or (() if any(has.values()) else (policy.mechanism,))
    yield from (keywords[mechanism] for mechanism in sorted(needed) if not has[mechanism])


def _networks_missing(reading: Reading) -> Iterator[tuple[str, str]]:
    """Find a gateway that leads nowhere."""
    places = [place for place in ("[LAN]", "[CLIENTS]") if place in reading.lines]
    if places and not reading.policy.lan_networks:
        yield places[0], "no Networks in [LAN]; this gateway drops every packet of its clients"


def _presence_nowhere(policy: Policy) -> Iterator[tuple[str, str]]:
    """Find a gateway that is to answer on a LAN without knowing where that is (DESIGN 8)."""
    if policy.presence is LanPresence.PROXY_ARP and policy.lan_interface is None:
        yield "Presence", "Presence = proxy-arp needs Interface in [LAN]; the service refuses such a policy"


def _ranges(policy: Policy) -> Iterator[tuple[str, str]]:
    """Find authorities whose clients no gateway takes, or could take the LAN's own addresses."""
    for authority in () if policy.tunnels else policy.authorities:
        place = f"Authority{authority.number}"
        if not authority.networks:
            yield place, f"{place} names no inner addresses; this gateway refuses all of its clients"
        for network in authority.networks:
            within = (n for n in policy.lan_networks if n.prefixlen >= network.prefixlen)
            if lans := " ".join(str(n) for n in within if n.network_address in network):
                yield place, f"{place} grants {network}, all of the LAN {lans}: also its machines' addresses"
            elif network.prefixlen == 0:
                yield place, f"{place} grants {network}: any address there is"
