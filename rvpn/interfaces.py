"""
The shapes that pass between modules: addresses and paths, batches of packets, actions, and the protocols that
key exchange mechanisms and nodes implement.

Nothing here does anything; a module that needs one of these needs no other rvpn module to describe it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from math import inf
from typing import Any, NamedTuple, Protocol

from rvpn.constants import Mechanism, TransformID
from rvpn.errors import DropReason

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
#: What a line in the log tells, by name; never secret.
Fields = dict[str, str | int | float | bool]


class Endpoint(NamedTuple):
    """A UDP address and port."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        """Write it as URLs do: 192.0.2.1:4500, [2001:db8::1]:4500."""
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


class Path(NamedTuple):
    """
    Where datagrams go: the peer's endpoint, and the local address they leave from (None: the kernel's
    choice).
    """

    remote: Endpoint
    local: IPAddress | None = None


class RandomSource(Protocol):
    """The part of `random.SystemRandom` that rings 0 to 2 use; tests pass a seeded `random.Random`."""

    def random(self) -> float:
        """Return a number in [0, 1)."""

    def randbytes(self, n: int, /) -> bytes:
        """Return n random bytes."""

    def shuffle(self, x: list[IPAddress], /) -> None:
        """Shuffle in place."""


@dataclass(slots=True)
class Run:
    """
    Datagrams of one path one behind another in a buffer: `buffer[start:end]`.

    All have `size` bytes but the last, which may be shorter: the shape of one sendmsg with UDP_SEGMENT, and
    of one recvmsg with UDP_GRO.
    """

    path: Path
    start: int
    end: int
    size: int

    @property
    def count(self) -> int:
        """How many datagrams there are."""
        return -((self.start - self.end) // self.size)


class DatagramBatch:
    """
    Datagrams to or from the network in a caller-owned buffer, of which `length` bytes are in use.

    `set_aside` takes the key exchange datagrams that `Node.inbound` met, for who runs the exchanges.
    """

    __slots__ = ("buffer", "length", "runs", "set_aside", "view")

    def __init__(self, capacity: int) -> None:
        self.buffer = bytearray(capacity)
        self.view = memoryview(self.buffer)
        self.length = 0
        self.runs: list[Run] = []
        self.set_aside: list[tuple[bytes, Path]] = []

    def clear(self) -> None:
        """Forget the datagrams; the buffer stays."""
        self.length = 0
        self.runs.clear()
        self.set_aside.clear()

    def add(self, path: Path, length: int, size: int) -> None:
        """Take the next `length` bytes of the buffer for a run of datagrams of `size` bytes."""
        start, self.length = self.length, self.length + length
        self.runs.append(Run(path, start, self.length, size))

    def datagrams(self) -> Iterator[tuple[Path, memoryview]]:
        """Return the datagrams one by one."""
        for run in self.runs:
            for start in range(run.start, run.end, run.size):
                yield run.path, self.view[start : min(start + run.size, run.end)]


class PacketBatch:
    """
    Inner packets in a caller-owned buffer, of which `length` bytes are in use.

    `spans` holds the start and end of each, where start is that of the virtio_net_hdr (VNET_HEADER bytes)
    before the packet. Of the spans, `taken` have been dealt with.
    """

    __slots__ = ("buffer", "length", "spans", "taken", "view")

    def __init__(self, capacity: int) -> None:
        self.buffer = bytearray(capacity)
        self.view = memoryview(self.buffer)
        self.length = self.taken = 0
        self.spans: list[tuple[int, int]] = []

    def clear(self) -> None:
        """Forget the packets; the buffer stays."""
        self.length = self.taken = 0
        self.spans.clear()

    def add(self, length: int) -> None:
        """Take the next `length` bytes of the buffer for a packet, its virtio_net_hdr included."""
        start, self.length = self.length, self.length + length
        self.spans.append((start, self.length))

    def append(self, packet: bytes) -> None:
        """Copy a packet behind the others, its virtio_net_hdr first."""
        start = self.length
        self.length = end = start + len(packet)
        self.buffer[start:end] = packet
        self.spans.append((start, end))


# --- Actions: what a state machine asks its shell to do -------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send one datagram."""

    datagram: bytes = field(repr=False)
    path: Path


@dataclass(frozen=True, slots=True)
class Deliver:
    """Write one inner packet to the TUN device (an ICMP error for the sender of a packet we cannot carry)."""

    packet: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something worth a line in the log.

    `message` is a format string over `fields`, as twisted.logger's.
    """

    message: str
    fields: Fields = field(default_factory=dict)
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Announce:
    """
    A client's inner address is reached through this gateway from now on: say so on the LAN and answer for it.
    """

    address: IPAddress


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A client's inner address is no longer reached through this gateway: answer for it no more."""

    address: IPAddress


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask `target` on the LAN for an echo with this sequence number of 16 bits (R14)."""

    target: IPAddress
    sequence: int


Action = Send | Deliver | Event | Announce | Withdraw | Probe


# --- Key exchange ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """
    Who authenticated: for `noise` the base64 text of the static public key.

    For `tls` a gateway is the address or DNS name that the policy expects in its certificate, a client the
    name in its certificate and that of its authority.
    """

    mechanism: Mechanism
    name: str


@dataclass(frozen=True, slots=True)
class Authentication:
    """
    How a peer authenticated: what `rvpn status` shows, and what it takes to think again about a certificate.

    `subject` and `issuer` are the names in the certificate, `serial` is its number, `authority` the SHA-256
    fingerprint of its issuer's certificate. `inner_addresses` are those in a client's certificate. It ends
    at `expires_at`, in seconds since 1970.
    """

    mechanism: Mechanism
    group: str
    cipher: str
    subject: str = ""
    issuer: str = ""
    serial: int = 0
    authority: bytes = field(default=b"", repr=False)
    expires_at: float = inf
    inner_addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class RevocationState:
    """
    What is in force of an authority's revocation lists: how many certificates are `revoked`, by the list with
    this number (RFC 5280 section 5.2.3; None if it has none), which was made and is to be replaced at these
    times, in seconds since 1970. `made_at` is None where there is no list.
    """

    authority: str
    revoked: int = 0
    number: int | None = None
    made_at: float | None = None
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class Parameters:
    """
    What each end tells the other inside the authenticated part of a key exchange (DESIGN 4).

    `transforms` is the initiator's offer in its order of preference, or the acceptor's single choice.
    `lifetime` is in seconds. `inner_addresses` are those the client uses inside the tunnel. `refusal`, from
    the acceptor alone, says that it knows the initiator but takes no session from it, and why (short text).

    From a gateway: `status` is how fit it is (X4, rvpn.session.session_control.Status), `shortest_defer` its
    lower limit in seconds for the time between heartbeats (X7), `lost_key_token` what proves that it has lost
    the keys (X3). `literal_heartbeats` is HeartbeatAuthentication = none, which both must have (DESIGN 6).
    `partial_checksums` says that this end completes TCP and UDP checksums that are partial, `trains` that it
    takes TCP super-packets in trains (rvpn.datapath.trains).
    """

    spi: int
    transforms: tuple[TransformID, ...]
    inner_addresses: tuple[IPAddress, ...] = ()
    lifetime: float = 0.0
    refusal: str = ""
    status: int = 0
    shortest_defer: float = 0.0
    lost_key_token: bytes = field(default=b"", repr=False)
    literal_heartbeats: bool = False
    partial_checksums: bool = False
    trains: bool = False


@dataclass(frozen=True, slots=True)
class Initiation:
    """
    What an initiator said and who it is.

    `timestamp` is None where the mechanism has none. `inner_addresses` are those that a client's certificate
    gives it, None where it is for the policy to say.
    """

    identity: PeerIdentity
    timestamp: bytes | None
    parameters: Parameters
    inner_addresses: tuple[IPAddress, ...] | None = None


class SecurityContext(Protocol):
    """
    One end of an authentication, after RFC 2743's init_sec_context and accept_sec_context.

    It is a calculation over tokens: it knows nothing of sockets, time or retransmission.
    """

    @property
    def established(self) -> bool:
        """Whether the peer is authenticated and keys exist; only then are the other members of use."""

    @property
    def peer(self) -> PeerIdentity:
        """Who the other end is."""

    @property
    def authentication(self) -> Authentication:
        """How the other end authenticated."""

    @property
    def peer_parameters(self) -> Parameters:
        """What the other end said."""

    @property
    def own_parameters(self) -> Parameters:
        """What this end said."""

    def step(self, token: bytes | None) -> bytes | None:
        """
        Take the peer's token (None: the initiator's first call) and return the next one to send, if any.

        Raises `RemoteError` (AUTHENTICATION_FAILED or MALFORMED_KEY_EXCHANGE) on any token that does not
        belong here, and `CookieRequired` on a first token that may be a recording. A mechanism whose tokens
        travel without a cookie is left by a forged one as it was; any other raises `ContextFailed`, and its
        context is of no further use then.
        """

    def export(self, label: bytes, length: int) -> bytes:
        """
        Return `length` secret bytes that both ends agree on and nobody else knows, different for each label.
        """


# --- A node ------------------------------------------------------------------------------------------


class Node(Protocol):
    """
    A client or a gateway as a calculation: packets, datagrams and time in, filled batches and actions out.

    `now` is in seconds on a clock that never goes back. The shell owns sockets, the TUN device and one timer,
    which it sets to `deadline()` after each call.
    """

    def outbound(self, packets: PacketBatch, datagrams: DatagramBatch, now: float) -> Sequence[Action]:
        """
        Seal inner packets from the host, from `packets.taken` on, into `datagrams`, which is cleared first.

        `packets.taken` advances as far as there was room: the caller sends `datagrams` and calls again until
        all spans are taken. No run is longer than RUN_BYTES or has more than RUN_DATAGRAMS.
        """

    def inbound(self, datagrams: DatagramBatch, packets: PacketBatch, now: float) -> Sequence[Action]:
        """
        Open received ESP and session control datagrams; inner packets for the host are added to `packets`.

        Packets of one flow that follow one another become one super-packet. `packets` has room for all. Key
        exchange datagrams are put into `datagrams.set_aside`.
        """

    def key_exchange(self, datagram: bytes, path: Path, now: float) -> Sequence[Action]:
        """Take one received key exchange datagram."""

    def path_mtu(self, remote: Endpoint, mtu: int, now: float) -> Sequence[Action]:
        """Learn that the path to `remote` carries packets of at most `mtu` bytes, IP header included."""

    def refused(self, remote: Endpoint, quote: bytes, now: float) -> Sequence[Action]:
        """Hear an ICMP error about a datagram to `remote` that began with `quote`."""

    def unreachable(self, remote: Endpoint, now: float) -> Sequence[Action]:
        """Learn that this host has no way to send to `remote` (ENETUNREACH and its like)."""

    def deadline(self) -> float | None:
        """Return when `advance` is to be called next, or None."""

    def advance(self, now: float) -> Sequence[Action]:
        """Do what is due."""

    def close(self, now: float) -> Sequence[Action]:
        """Tell every peer that its session ends; the service waits a moment for `quiet`."""

    @property
    def quiet(self) -> bool:
        """Whether, after `close`, no acknowledgement is outstanding."""

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count packets that the shell could not deliver."""

    def status(self, now: float) -> dict[str, Any]:
        """Return what `rvpn status --json` shows of sessions, exchanges and drops (docs/operations.md)."""
