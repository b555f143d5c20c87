"""
Text -> `Policy` (DESIGN 7).

`statements.Source` reads the lines. What is left to do here is to resolve what one statement says of another
(the cluster that a tunnel entry names, an inner address that two clients claim) and to fill the fields of
`Policy`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from string import digits

from rvpn.constants import DEFAULT_PORT
from rvpn.interfaces import Endpoint, IPAddress, PeerIdentity
from rvpn.policy.diagnostics import Diagnostic, PolicyError
from rvpn.policy.model import Authority, Client, Cluster, Policy, Redirect, Tunnel
from rvpn.policy.statements import Source, Statement
from rvpn.policy.values import ClientEntry, GrammarError


@dataclass(frozen=True, slots=True)
class Reading:
    """A policy, its errors, and `lines`: where each section (`[LAN]`) and statement (`Tunnel1`) stands."""

    filename: str
    policy: Policy
    errors: list[Diagnostic]
    lines: Mapping[str, int]


def read(text: str | bytes, filename: str) -> Reading:
    """Read a policy file, as text or as the bytes on disk. Raises nothing, whatever it holds."""
    source = Source(text, filename)
    policy = _policy(source)
    return Reading(filename, policy, sorted(source.errors, key=lambda error: error.line), source.lines)


def parse(text: str | bytes, filename: str) -> tuple[Policy, list[Diagnostic]]:
    """Return what could be understood of a policy file, and all its errors in the order of their lines."""
    reading = read(text, filename)
    return reading.policy, reading.errors


def load(text: str | bytes, filename: str) -> Policy:
    """Return the policy that a file holds. Raises `PolicyError` with every error of the file."""
    policy, errors = parse(text, filename)
    if errors:
        raise PolicyError(errors)
    return policy


def _policy(source: Source) -> Policy:
    """Fill a policy with all that is faultless."""
    settings = {s.key.field: s.value for s in source.statements if s.key.keyword and not s.key.numbered}
    _check_certificates(source)
    clusters = {s.name: Cluster(s.name, s.value) for s in source.of("clusters")}
    tunnels = (Tunnel(s.label, s.value.first, s.value.last, c) for s, c in _led(source, "tunnels", clusters))
    redirects = (Redirect(s.label, s.value.server, c) for s, c in _led(source, "redirects", clusters) if c)
    return Policy(
        **settings,
        clusters=tuple(clusters.values()),
        tunnels=tuple(sorted(tunnels, key=attrgetter("number"))),
        redirects=tuple(sorted(redirects, key=attrgetter("number"))),
        authorities=tuple(Authority(s.label, *s.value) for s in source.of("authorities")),
        peers={s.label: s.value if s.value.name else _by_address(s) for s in source.of("peers")},
        clients=tuple(_clients(source, settings.get("port", DEFAULT_PORT))),
    )


def _by_address(statement: Statement) -> PeerIdentity:
    """Return the identity of a gateway whose certificate has to have its address."""
    return PeerIdentity(statement.value.mechanism, str(statement.label))


def _check_certificates(source: Source) -> None:
    """Report what stands there without that which it needs."""
    needs = {"certificate": "CertificateKey", "certificate_key": "Certificate", "revoked": "Authority<nr>"}
    stated = {name.rstrip(digits) for name in source.lines}
    for field, other in needs.items():
        for statement in source.of(field):
            if other.removesuffix("<nr>") not in stated:
                fault = GrammarError(f"no {other} beside it", "both")
                source.error(statement.line, fault, statement.name)


def _led(
    source: Source, field: str, clusters: Mapping[str, Cluster]
) -> Iterator[tuple[Statement, Cluster | None]]:
    """Yield a field's statements with the cluster that each names (None: AUTO); report undefined clusters."""
    for statement in source.of(field):
        gateway = statement.value.gateway
        if gateway is None:
            yield statement, None
        elif not isinstance(gateway, str):
            yield statement, Cluster(str(gateway), (gateway,))
        elif gateway in clusters:
            yield statement, clusters[gateway]
        elif gateway not in source.lines:  # else the cluster's own line was reported
            stated = [name for name in source.lines if name.split()[0] == "Cluster"]  # faulty ones too
            fault = GrammarError(gateway, f"one of {', '.join(stated)}" if stated else "it in [CLUSTER]")
            source.error(statement.line, fault, statement.name)


def _clients(source: Source, port: int) -> Iterator[Client]:
    """Yield the clients; `port` is for endpoints that name none. No two share a key or an inner address."""
    owners: dict[PeerIdentity | IPAddress, str] = {}
    for statement in source.of("clients"):
        entry: ClientEntry = statement.value
        for own in (entry.identity, *entry.inner_addresses):
            owner = owners.setdefault(own, statement.name)
            if owner != statement.name:
                what = "the public key" if own is entry.identity else f"inner address {own}"
                source.error(
                    statement.line, GrammarError(f"{what} of {owner}", "one of its own"), statement.name
                )
        endpoint = Endpoint(entry.endpoint[0], entry.endpoint[1] or port) if entry.endpoint else None
        yield Client(statement.label, entry.identity, entry.inner_addresses, endpoint)
