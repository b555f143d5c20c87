"""
The values of a policy file: what follows the `=` becomes an address, a number, a target range (DESIGN 7).

A `ValueType` joins the words that describe a kind of value, in errors and in docs/policy.md alike, with the
function that converts its text. `convert` may raise a bare `ValueError` where the text is simply something
else; `parse` makes a `GrammarError` of it, which names what was found and what was expected.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)
from typing import Generic, NamedTuple, TypeVar

from rvpn.constants import TRANSFORM_NAMES, HeartbeatMode, LanPresence, Mechanism
from rvpn.errors import LocalError
from rvpn.interfaces import IPAddress, IPNetwork, PeerIdentity

T = TypeVar("T")

#: Characters of a faulty text that a message repeats.
QUOTED_LENGTH = 60
#: Bytes of a static public key of mechanism `noise` (X25519).
PUBLIC_KEY_LENGTH = 32
#: A DNS name as certificates have it (RFC 1123 section 2.1); one label alone is no address of a gateway.
DNS_NAME = r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
#: Names that Linux gives no interface; it keeps the last two for /proc/sys/net/*/conf.
RESERVED_INTERFACE_NAMES = {".", "..", "all", "default"}


class GrammarError(LocalError):
    """A text that does not follow the grammar."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")


def quote(text: str) -> str:
    """Return a text for a message: in quotes, of bounded length, free of control characters."""
    return ascii(text if len(text) <= QUOTED_LENGTH else text[:QUOTED_LENGTH] + "...")


class InlinePEM(str):
    """
    PEM that stands in the policy itself, in the place of the name of a file.

    It may be a secret key, so it has no representation.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<PEM>"


@dataclass(frozen=True, slots=True)
class ValueType(Generic[T]):
    """A kind of value: `name` completes "expected ...", `convert` takes the text."""

    name: str
    convert: Callable[[str], T]
    #: Takes what stands beside the `=`, and the PEM blocks below; None where no PEM can stand.
    convert_pem: Callable[[str, "InlinePEM"], T] | None = None

    def parse_pem(self, text: str, pem: str) -> T:
        """Return the value of PEM below a statement, and of what stands beside its `=`, as `parse` does."""
        if self.convert_pem is None:
            raise GrammarError("PEM on the lines below", self.name)
        return self.convert_pem(text, InlinePEM(pem))

    def parse(self, text: str) -> T:
        """Return the value of `text`. Raises `GrammarError`, or for a list an `ExceptionGroup` of them."""
        if not text:
            raise GrammarError("nothing", self.name)
        try:
            return self.convert(text)
        except ValueError:
            raise GrammarError(quote(text), self.name) from None


# --- Combinations -------------------------------------------------------------------------------


def choice(values: Mapping[str, T]) -> ValueType[T]:
    """One word of several, in any case."""
    *others, last = values
    folded = {word.casefold(): value for word, value in values.items()}

    def convert(text: str) -> T:
        try:
            return folded[text.casefold()]
        except KeyError:
            raise ValueError from None

    return ValueType(f"{', '.join(others)} or {last}", convert)


def several(name: str, item: ValueType[T]) -> ValueType[tuple[T, ...]]:
    """One or more values separated by blanks, none of them twice. Each faulty one is an error of its own."""

    def convert(text: str) -> tuple[T, ...]:
        values: dict[T, None] = {}
        faults: list[GrammarError] = []
        for word in text.split():
            try:
                value = item.parse(word)
                if value in values:
                    raise GrammarError(f"{quote(word)} twice", "each value once")
                values[value] = None
            except GrammarError as fault:
                faults.append(fault)
        if faults:
            raise ExceptionGroup(name, faults)
        return tuple(values)

    return ValueType(name, convert)


def unless(word: str, other: ValueType[T]) -> ValueType[T | None]:
    """Either one special word, which stands for None, or another value."""
    return ValueType(
        f"{other.name}, or {word}",
        lambda text: None if text.casefold() == word.casefold() else other.convert(text),
    )


def number(minimum: float, maximum: float) -> ValueType[float]:
    """Accept a decimal number within limits: no sign, no exponent, no `nan` or `inf`."""

    def convert(text: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?|\.[0-9]+", text) or not minimum <= float(text) <= maximum:
            raise ValueError
        return float(text)

    return ValueType(f"a number from {minimum:g} to {maximum:g}", convert)


def whole_number(minimum: int, maximum: int) -> ValueType[int]:
    """Accept decimal digits within limits."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not minimum <= int(text) <= maximum:
            raise ValueError
        return int(text)

    return ValueType(f"a whole number from {minimum} to {maximum}", convert)


# --- Addresses ----------------------------------------------------------------------------------


def _address(text: str) -> IPAddress:
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError  # a zone means something on one machine only, and is lost in packed addresses
    return address


def _host(text: str) -> IPAddress:
    address = _address(text)
    if address.is_unspecified or address.is_multicast or address == IPv4Address("255.255.255.255"):
        raise ValueError
    return address


def _network(text: str) -> IPv4Network | IPv6Network:
    address, _, length = text.partition("/")
    if not re.fullmatch("[0-9]{1,3}", length):
        raise ValueError  # a netmask, or no length at all, which would silently mean one address
    network = ip_network(text, strict=False)
    if network.network_address != _address(address):
        raise GrammarError(f"{quote(text)} with bits beyond its length", str(network))
    return network


ADDRESS = ValueType("an IPv4 or IPv6 address", _address)
HOST = ValueType("the IPv4 or IPv6 address of one machine", _host)
NETWORK = ValueType("a network as address/length", _network)
LISTEN = several("one or more IPv4 or IPv6 addresses", ADDRESS)
INNER_ADDRESSES = unless("own", several("one or more IPv4 or IPv6 addresses", HOST))
NETWORKS = several("one or more networks as address/length", NETWORK)


# --- Clusters and tunnels -----------------------------------------------------------------------


class Target(NamedTuple):
    """What is behind a tunnel entry's gateway: an address, a cluster's name or None for AUTO (R15)."""

    first: IPAddress
    last: IPAddress
    gateway: IPAddress | str | None


class Redirection(NamedTuple):
    """Which gateway, or cluster by name, takes the place of a detected access server (R15)."""

    server: IPAddress
    gateway: IPAddress | str


def _gateway(text: str) -> IPAddress | str:
    match = re.fullmatch(r"cluster\s*([0-9]*)", text, re.IGNORECASE)
    if match is None:
        return _host(text)
    return f"Cluster {int(match[1])}" if match[1] else "Cluster"


GATEWAY = ValueType("the address of a gateway or Cluster <nr>", _gateway)
GATEWAY_OR_AUTO = unless("AUTO", GATEWAY)


def _range(text: str) -> tuple[IPAddress, IPAddress]:
    if "/" in text:
        network = NETWORK.parse(text)
        return network.network_address, network.broadcast_address
    start, dash, end = text.partition("-")
    first = ADDRESS.parse(start)
    last = ADDRESS.parse(end) if dash else first
    if first.version != last.version:
        raise GrammarError(
            f"a range from IPv{first.version} to IPv{last.version}", "two addresses of one family"
        )
    if int(first) > int(last):
        raise GrammarError(f"the range {quote(text)}", "its lower address first")
    return first, last


def _split(text: str, sign: str) -> list[str]:
    """Split at the first blank that does not stand beside `sign`."""
    return sign.join(part.strip() for part in text.split(sign)).split(maxsplit=1)


def _target(text: str) -> Target:
    targets, *gateway = _split(text, "-")
    return Target(*_range(targets), GATEWAY_OR_AUTO.parse("".join(gateway)))


def _redirection(text: str) -> Redirection:
    server, *gateway = text.split(maxsplit=1)
    return Redirection(HOST.parse(server), GATEWAY.parse("".join(gateway)))


MEMBERS = several("one or more addresses of gateways", HOST)
TARGET = ValueType("targets (an address, first - last, or address/length) and their gateway", _target)
REDIRECTION = ValueType("an access server's address and the gateway to use", _redirection)


# --- Peers and clients --------------------------------------------------------------------------


class AuthorityEntry(NamedTuple):
    """An authority as a policy names it: its file, and the networks of its clients' inner addresses."""

    file: str
    networks: tuple[IPNetwork, ...]


class ClientEntry(NamedTuple):
    """A client as a gateway's policy names it; an endpoint without a port has the policy's."""

    identity: PeerIdentity
    inner_addresses: tuple[IPAddress, ...]
    endpoint: tuple[IPAddress, int | None] | None


def _public_key(text: str) -> PeerIdentity:
    key = base64.b64decode(text, validate=True)
    # The identity is compared as text, so that one key must not have two texts (RFC 4648 section 3.5).
    if len(key) != PUBLIC_KEY_LENGTH or base64.b64encode(key).decode() != text:
        raise ValueError
    return PeerIdentity(Mechanism.NOISE, text)


def _peer(text: str) -> PeerIdentity:
    """Convert a key, or `tls` and the name in the certificate, empty for the gateway's address."""
    word, *name = text.split()
    if word.casefold() != "tls":
        return _public_key(text)
    if len(name) > 1 or (name and not re.fullmatch(DNS_NAME, name[0], re.IGNORECASE)):
        raise ValueError
    return PeerIdentity(Mechanism.TLS, "".join(name).lower())


def _authority(text: str) -> AuthorityEntry:
    file, *ranges = text.split(maxsplit=1)
    return _authority_entry("".join(ranges), file)


def _authority_entry(ranges: str, file: str) -> AuthorityEntry:
    words = re.sub(r"\s*-\s*", "-", ranges).split()
    return AuthorityEntry(file, tuple(n for word in words for n in summarize_address_range(*_range(word))))


def _endpoint(text: str) -> tuple[IPAddress, int | None]:
    match = re.fullmatch(r"(?:\[(.*)\]|([^:]*)):([0-9]+)", text)
    return (_host(match[1] or match[2]), PORT.convert(match[3])) if match else (_host(text), None)


PORT = whole_number(1, 65535)
PUBLIC_KEY = ValueType("a public key: base64 of 32 bytes", _public_key)
PEER = ValueType("a public key (base64 of 32 bytes), tls, or tls and a DNS name", _peer)
AUTHORITY = ValueType(
    "the name of a file (or PEM below), and perhaps addresses, first-last, or address/length",
    _authority,
    _authority_entry,
)
ENDPOINT = ValueType("an endpoint as address, IPv4:port or [IPv6]:port", _endpoint)


def _client(text: str) -> ClientEntry:
    key, *rest = text.split(maxsplit=1)
    identity = PUBLIC_KEY.parse(key)
    addresses, *endpoint = _split("".join(rest), ",") or [""]
    inner = CLIENT_ADDRESSES.parse(addresses.replace(",", " ").strip())
    return ClientEntry(identity, inner, ENDPOINT.parse(endpoint[0]) if endpoint else None)


CLIENT_ADDRESSES = several("one or more inner addresses, separated by commas", HOST)
CLIENT = ValueType("a public key, inner addresses separated by commas, and perhaps an endpoint", _client)


# --- Words and names ----------------------------------------------------------------------------


def _interface(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,15}", text) or re.search("[/:%]", text) or text in RESERVED_INTERFACE_NAMES:
        raise ValueError
    return text


def _alone(text: str, pem: InlinePEM) -> str:
    if text:
        raise GrammarError(f"{quote(text)} and PEM below", "one of them")
    return pem


MECHANISM = choice({mechanism.name.lower(): mechanism for mechanism in Mechanism})
HEARTBEAT = choice({mode.value: mode for mode in HeartbeatMode})
HEARTBEAT_AUTHENTICATION = choice({"yes": False, "none": True})
PRESENCE = choice({presence.value: presence for presence in LanPresence})
OFFLOAD = choice({"auto": True, "off": False})
YES_NO = choice({"yes": True, "no": False})
TRANSFORM = choice({name: transform for transform, name in TRANSFORM_NAMES.items()})
_SOME_TRANSFORMS = several("aes-gcm-256, chacha20-poly1305 or both, the preferred first", TRANSFORM)
TRANSFORMS = ValueType(
    f"auto, or {_SOME_TRANSFORMS.name}",
    lambda text: None if text.casefold() == "auto" else _SOME_TRANSFORMS.convert(text),
)
INTERFACE = ValueType("an interface's name: 1 to 15 letters, digits or signs, but no / : %", _interface)
FILE = ValueType("the name of a file", str)
PEM_FILE = ValueType("the name of a file, or PEM below", str, _alone)
PEM_FILES = ValueType(
    "one or more names of files, or PEM below",
    several("one or more names of files", FILE).convert,
    lambda text, pem: (_alone(text, pem),),
)
DIRECTORY = ValueType("the name of a directory", str)
