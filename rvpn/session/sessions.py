"""
The session cache: with whom this node has keys, and which of them are in use (R4).

A `Session` is one client and one gateway. It holds `SAPair`s: what one key exchange yields, an inbound and an
outbound SA and a control channel. Make-before-break (DESIGN 3): a new pair is added beside the old one, the
node sends on the newest confirmed pair, and the old inbound SA stays open for a while for what is still under
way.

    key exchange -> SAPair (unconfirmed) -> a packet opened under it -> confirmed, sends -> superseded ->
    closed

The cache finds pairs by the SPI of a datagram, and sessions by what identifies them here (a client: the
gateway's address; a gateway: the client's identity), by inner address and by the peer's endpoint.
"""

import math
from collections.abc import Hashable, Iterable, Iterator
from struct import Struct

from rvpn.agenda import Appointment
from rvpn.constants import (
    CONTROL_SPI,
    LITERAL_PER_ENDPOINT,
    MAX_SPI,
    MIN_SPI,
    MIN_TUNNEL_MTU,
    RECENT_PACKETS,
    REKEY_PACKETS,
)
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.codec import inner_mtu
from rvpn.esp.sa import InboundSA, OutboundSA
from rvpn.failover.heartbeat import FailureDetector
from rvpn.failover.round_trip import RoundTrip
from rvpn.interfaces import (
    Authentication,
    Endpoint,
    IPAddress,
    Path,
    PeerIdentity,
    RandomSource,
    SecurityContext,
)
from rvpn.keyexchange.keys import derive
from rvpn.rate import Rate
from rvpn.session.session_control import ControlChannel, Status

#: Bytes; no packet is larger.
UNLIMITED = 0xFFFF
# How an ESP packet begins (RFC 4303 section 2).
_SPI_AND_SEQUENCE = Struct("!II")


class SAPair:
    """
    What one key exchange yields: an SA in each direction and a control channel (DESIGN 3, 6).

    `initiator` tells which end of the exchange this node was, `path` where the peer was during it.
    `confirmed` is set once a packet opened under it proves that the peer has the keys. `closing` is the one
    appointment at which it closes, however often that is arranged anew; at `renewal` a client looks at its
    age, at `expiry` either end whether the peer's certificate has expired. `authentication` is how the peer
    proved who it is. With `partial_checksums` both ends take packets whose TCP or UDP checksum is partial,
    with `trains` super-packets of TCP in trains.
    """

    __slots__ = (
        "authentication",
        "closing",
        "confirmed",
        "control",
        "expiry",
        "inbound",
        "initiator",
        "lifetime",
        "literal_heartbeats",
        "lost_key_token",
        "made_at",
        "outbound",
        "partial_checksums",
        "path",
        "renewal",
        "session",
        "trains",
    )

    def __init__(
        self,
        context: SecurityContext,
        *,
        initiator: bool,
        path: Path,
        now: float,
    ) -> None:
        """
        Derive the keys from an established `context`; both ends' parameters in it give the SPIs.

        The acceptor's parameters have the last word on transform and lifetime.
        """
        mine = context.own_parameters
        answer = context.peer_parameters if initiator else mine
        (transform,) = answer.transforms
        to_acceptor, to_initiator = derive(context)
        sending, receiving = (to_acceptor, to_initiator) if initiator else (to_initiator, to_acceptor)
        peer_spi = context.peer_parameters.spi
        self.inbound = InboundSA(mine.spi, transform, receiving.esp_key, receiving.salt)
        self.outbound = OutboundSA(peer_spi, transform, sending.esp_key, sending.salt)
        self.control = ControlChannel(peer_spi, sending.control_key, receiving.control_key)
        self.authentication = context.authentication
        self.partial_checksums = mine.partial_checksums and context.peer_parameters.partial_checksums
        self.trains = self.partial_checksums and mine.trains and context.peer_parameters.trains
        self.initiator = initiator
        self.path = path
        self.lifetime = answer.lifetime
        self.literal_heartbeats = answer.literal_heartbeats
        self.lost_key_token = context.peer_parameters.lost_key_token
        self.made_at = now
        self.confirmed = False
        self.session: Session | None = None
        self.closing: Appointment | None = None
        self.renewal: Appointment | None = None
        self.expiry: Appointment | None = None

    @property
    def worn(self) -> bool:
        """Whether it has carried so many packets, in one direction, that it is to be renewed (DESIGN 3)."""
        return max(self.outbound.packets, self.inbound.window.highest) >= REKEY_PACKETS

    def sent_lately(self, quote: bytes) -> bool:
        """
        Tell whether a datagram that begins with `quote` may be one of the last RECENT_PACKETS of ESP, or of
        session control, that were sent under this pair.
        """
        if len(quote) < _SPI_AND_SEQUENCE.size:
            return False
        spi, sequence = _SPI_AND_SEQUENCE.unpack_from(quote)
        if spi == CONTROL_SPI:
            return self.control.sent_lately(quote)
        return bool(spi == self.outbound.spi and 0 <= self.outbound.packets - sequence < RECENT_PACKETS)


class Session:
    """
    One client and one gateway that authenticated to each other.

    `key` identifies it in the cache, `name` in logs. `inner_addresses` are the client's (`packed_addresses`:
    as bytes). `sending` is the pair in use for what goes out. Counters count inner packets and their bytes.
    `received_at` is when the peer last gave a sign of life, `packets_out_when_heard` how many it had been
    sent by then. `authentication` is that of its newest keys in use.

    Of a client alone: `detector` watches the gateway while it is in use, `used_since` is when it came into
    use. `status` is how fit the gateway says it is (X4), `shortest_defer` its limit for heartbeats (X7).
    Of a gateway alone: `owner_asked` is the sequence of the `owner?` that waits for its answer, else 0
    (DESIGN 8), `literal_rate` bounds literal heartbeats (DESIGN 6).
    """

    def __init__(
        self, key: Hashable, peer: PeerIdentity, path: Path, inner_addresses: Iterable[IPAddress], now: float
    ) -> None:
        self.key = key
        self.name = peer.name if key == peer else str(key)
        self.peer = peer
        self.path = path
        #: The path object that packets came along last: the data path compares it by identity.
        self.seen_path: Path | None = None
        self.use_addresses(inner_addresses)
        self.authentication: Authentication | None = None
        self.pairs: list[SAPair] = []
        self.sending: SAPair | None = None
        self.opened_at = self.received_at = now
        self.closed = False
        self.inner_mtu = UNLIMITED
        self.status = Status.OK
        self._status_said = -math.inf, 0
        self.shortest_defer = 0.0
        self.round_trip = RoundTrip()
        self.detector: FailureDetector | None = None
        #: Whether `rvpn.datapath.sealing` is to tell when payload goes out (R9).
        self.awaits_payload = False
        self.owner_asked = 0
        self.used_since: float | None = None
        self.packets_out_when_heard = 0
        self.literal_rate = Rate(LITERAL_PER_ENDPOINT)
        self.packets_in = self.packets_out = self.bytes_in = self.bytes_out = 0

    @property
    def gateway(self) -> IPAddress:
        """At a client: the gateway."""
        return self.path.remote.address

    def heard(self, now: float) -> None:
        """Take a sign of life; a session that was given up gives none (R8)."""
        if not self.closed:
            self.received_at, self.packets_out_when_heard = now, self.packets_out

    def take_status(self, status: Status, pair: SAPair, sequence: int) -> bool:
        """
        Take what the peer says of itself in a control packet of `pair`; return whether that is news.

        Packets overtake each other: what was said before the last word we heard is none. Nor is what comes
        in a session that was given up (R8).
        """
        said = pair.made_at, sequence
        if self.closed or said < self._status_said:
            return False
        before, self.status, self._status_said = self.status, status, said
        return status is not before

    def use_addresses(self, inner_addresses: Iterable[IPAddress]) -> None:
        """Take these for the client's inner addresses, each once: it may name one twice."""
        self.inner_addresses = tuple(dict.fromkeys(inner_addresses))
        self.packed_addresses = frozenset(address.packed for address in self.inner_addresses)

    def learn_path_mtu(self, path_mtu: int) -> bool:
        """Lower the inner MTU to what a path of `path_mtu` bytes carries; return whether that changed it."""
        learnt = max(MIN_TUNNEL_MTU, inner_mtu(path_mtu, self.path.remote.address.version))
        if learnt >= self.inner_mtu:
            return False
        self.inner_mtu = learnt
        return True

    def forget_path_mtu(self, link_mtu: int) -> None:
        """Believe again that the path carries what the first link does."""
        self.inner_mtu = UNLIMITED
        self.learn_path_mtu(link_mtu)


class SessionCache:
    """All pairs and sessions of a node, and the ways to find them."""

    def __init__(self, random: RandomSource) -> None:
        self._random = random
        self.by_spi: dict[int, SAPair] = {}
        self.by_inner: dict[bytes, Session] = {}
        self.by_endpoint: dict[Endpoint, Session] = {}
        self._sessions: dict[Hashable, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: Hashable) -> Session | None:
        """Return the live session with `key`."""
        return self._sessions.get(key)

    def new_spi(self) -> int:
        """Return a random SPI that no pair of this node has; it is the receiver who chooses (DESIGN 3)."""
        while True:
            spi = int.from_bytes(self._random.randbytes(4))
            if MIN_SPI <= spi <= MAX_SPI and spi not in self.by_spi:
                return spi

    def add_pair(self, session: Session, pair: SAPair) -> None:
        """
        Open `pair` for what comes in. It sends only once confirmed, or if its initiator has nothing better
        (DESIGN 4).

        Raises `RemoteError` in the one case in 2^32 that two exchanges under way chose the same SPI.
        """
        if pair.inbound.spi in self.by_spi:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, "the SPI is taken")
        pair.session = session
        session.authentication = session.authentication or pair.authentication
        session.pairs.append(pair)
        self.by_spi[pair.inbound.spi] = pair
        if session.sending is None and pair.initiator:
            session.sending = pair

    def establish(self, session: Session) -> None:
        """Make `session` the live one of its key, its inner addresses and its endpoint."""
        self._sessions[session.key] = session
        self.by_endpoint[session.path.remote] = session
        for address in session.packed_addresses:
            self.by_inner[address] = session

    def confirm(self, pair: SAPair) -> list[SAPair]:
        """
        The peer has the keys of `pair`: send on it from now on, on the path of its exchange.

        A gateway's provisional session becomes the live one here, or hands its pair to the one that already
        is. Returns the pairs that are superseded now: those made before it, or itself where a newer one was
        confirmed first.
        """
        pair.confirmed = True
        session = pair.session
        assert session is not None
        live = self._sessions.get(session.key, session)
        if live.sending is not None and live.sending.made_at > pair.made_at:
            return [pair]  # it was overtaken while its confirmation was under way
        if live is not session:
            session.pairs.remove(pair)
            live.pairs.append(pair)
            pair.session = live
            self._unlist(live)
            live.use_addresses(session.inner_addresses)
        else:
            self._unlist(live)
        live.path = pair.path
        live.sending = pair
        live.authentication = pair.authentication
        self.establish(live)
        return [old for old in live.pairs if old is not pair and old.made_at <= pair.made_at]

    def remove_pair(self, pair: SAPair) -> None:
        """Close `pair`: nothing opens under it any more."""
        self.by_spi.pop(pair.inbound.spi, None)
        for appointment in (pair.closing, pair.renewal, pair.expiry):
            if appointment is not None:
                appointment.cancel()
        session = pair.session
        if session is not None and pair in session.pairs:
            session.pairs.remove(pair)
            if session.sending is pair:
                session.sending = None

    def move(self, session: Session, path: Path) -> None:
        """Send to another address of the peer from now on."""
        if self.by_endpoint.get(session.path.remote) is session:
            del self.by_endpoint[session.path.remote]
        session.path = path
        self.by_endpoint[path.remote] = session

    def retire(self, session: Session) -> None:
        """End `session`: it sends nothing more; its pairs stay open until the caller removes them."""
        session.closed = True
        session.sending = None
        self._unlist(session)

    def _unlist(self, session: Session) -> None:
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        if self.by_endpoint.get(session.path.remote) is session:
            del self.by_endpoint[session.path.remote]
        for address in session.packed_addresses:
            if self.by_inner.get(address) is session:
                del self.by_inner[address]
