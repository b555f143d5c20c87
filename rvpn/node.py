"""
What a client and a gateway have in common: the life of a session, from its keys to its end.

    keys -> `open_pair` -> the first packet opens: `confirmed` -> old pairs close after OLD_SA_LINGER
         -> superseded in time by the next keys; no rekey by the hard limit counts as failure
    `end` (we leave) -> close, repeated until acknowledged -> gone
    a close arrives (the peer leaves) -> ack -> gone

`TunnelEnd` is a calculation: the shell brings packets, datagrams and time, and carries out the actions that
come back (`rvpn.interfaces.Node`). What differs between the roles is in `rvpn.client` and `rvpn.gateway`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from rvpn import session_control
from rvpn.agenda import Agenda
from rvpn.constants import (
    CONFIRMATION_TIME,
    HARD_LIFETIME_FACTOR,
    OLD_SA_LINGER,
    VNET_HEADER,
)
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import (
    Action,
    DatagramBatch,
    Deliver,
    Endpoint,
    Event,
    PacketBatch,
    Path,
    RandomSource,
    Send,
)
from rvpn.ipfilter import IPFilter
from rvpn.keyexchange.credentials import Credentials
from rvpn.keyexchange.terms import Terms
from rvpn.literal_heartbeats import LITERAL_SIZE
from rvpn.offload import TCP, UDP
from rvpn.packet import too_big, unreachable
from rvpn.path_mtu import PathMTU
from rvpn.sayings import Sayings
from rvpn.sealing import Sealer
from rvpn.session_control import ControlPacket, Kind
from rvpn.sessions import SAPair, Session, SessionCache
from rvpn.validity import Validity

#: Why a session ends that was not renewed.
EXPIRED = "its keys expired"

Answer = Callable[[SAPair, ControlPacket, Path, float], list[Action]]


class TunnelEnd(ABC):
    """See the module."""

    def __init__(
        self, credentials: Credentials, random: RandomSource, clock: Callable[[], float], link_mtu: int
    ) -> None:
        """
        `clock` gives the time of day, `link_mtu` is the MTU of the outside link, the first of each path.
        """
        self.agenda = Agenda()
        self.cache = SessionCache(random)
        self.filter = IPFilter(self.cache, self)
        self.sealer = Sealer(self, self.filter.drops)
        self.credentials = credentials
        self._random = random
        self.time_of_day = clock
        self.terms = Terms()
        self._validity = Validity(self, self.agenda)
        self._path_mtu = PathMTU(link_mtu, self.cache, self.agenda)
        self._sayings = Sayings(self._unheard, self.agenda)
        self._answers: dict[Kind, Answer] = {
            Kind.ACK: self._on_ack,
            Kind.CLOSE: self._on_close,
            Kind.CHALLENGE: self._on_challenge,
        }

    # --- what the roles decide -------------------------------------------------------------------------

    @abstractmethod
    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """See `rvpn.ipfilter.Gatekeeper`."""

    @abstractmethod
    def grants(self, session: Session) -> bool:
        """Tell whether the policy has the peer of `session`, and all its addresses."""

    @abstractmethod
    def _confirmed(self, pair: SAPair, now: float) -> list[Action]:
        """Hear that `pair` is now what its session sends on."""

    @abstractmethod
    def _lost(self, session: Session, reason: str, now: float, *, failed: bool = True) -> list[Action]:
        """
        Hear that `session` ended and is to be replaced: `failed` because of its peer, else because of what
        this node reads of it.
        """

    @abstractmethod
    def strayed(self, session: Session, path: Path, now: float) -> list[Action]:
        """See `rvpn.ipfilter.Gatekeeper`."""

    @abstractmethod
    def unknown_spi(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """See `rvpn.ipfilter.Gatekeeper`."""

    @abstractmethod
    def route(self, source: bytes, destination: bytes) -> Session | None:
        """See `rvpn.sealing.Router`."""

    @abstractmethod
    def without_session(
        self, packet: memoryview, source: bytes, destination: bytes, now: float
    ) -> Sequence[Action]:
        """See `rvpn.sealing.Router`."""

    def payload_sent(self, session: Session, now: float) -> Sequence[Action]:
        """See `rvpn.sealing.Router`."""
        return ()

    # --- packets and datagrams (rvpn.interfaces.Node) --------------------------------------------------

    def offload(self, *, checksums: bool, tcp: bool, udp: bool) -> None:
        """
        Hear what the TUN device does for us: complete partial checksums, cut super-packets of TCP and UDP.

        Holds for the sessions to come, and is to be called before there are any.
        """
        self.terms.partial_checksums = checksums
        self.filter.coalesce(frozenset(protocol for protocol, cuts in ((TCP, tcp), (UDP, udp)) if cuts))

    def outbound(self, packets: PacketBatch, datagrams: DatagramBatch, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self.sealer.seal(packets, datagrams, now)

    def inbound(self, datagrams: DatagramBatch, packets: PacketBatch, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self.filter.open(datagrams, packets, now)

    def path_mtu(self, remote: Endpoint, mtu: int, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self._path_mtu.learn(remote, mtu, now)

    def deadline(self) -> float | None:
        """See `rvpn.interfaces.Node`."""
        return self.agenda.deadline()

    def advance(self, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self.agenda.advance(now)

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """See `rvpn.interfaces.Node`."""
        if count:
            self.filter.drops[reason] += count

    def too_big(self, packet: memoryview, mtu: int, destination: bytes) -> list[Action]:
        """
        See `rvpn.sealing.Router`: tell its sender by ICMP.

        The error seems to come from the packet's destination: the kernel takes none from one of its own
        addresses.
        """
        self.drop(DropReason.TOO_BIG)
        error = too_big(packet, mtu, destination)
        return [Deliver(error)] if error else []

    def _unreachable(
        self, packet: memoryview | bytes, destination: bytes, reason: DropReason
    ) -> list[Action]:
        """
        Drop a packet, virtio_net_hdr first, that nobody takes and tell its sender so by ICMP, if its headers
        let us.
        """
        self.drop(reason)
        try:
            error = unreachable(memoryview(packet)[VNET_HEADER:], destination)
        except RemoteError:
            return []
        return [Deliver(error)] if error else []

    # --- the life of a session --------------------------------------------------------------------------

    def open_pair(self, session: Session, pair: SAPair, now: float) -> None:
        """
        Open a pair of SAs until its hard limit: here keys become a session, in whichever direction.

        The acceptor closes it earlier if nothing confirms it; at the initiator that is for the KMS to decide.
        Raises `RemoteError` if the peer would be refused by what was read since its exchange began.
        """
        if reason := self._validity.objection(session, pair.authentication):
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, reason)
        self.cache.add_pair(session, pair)
        self._path_mtu.begin(session)
        self._close_at(pair, _hard_limit(pair) if pair.initiator else now + CONFIRMATION_TIME)

    def confirmed(self, pair: SAPair, now: float) -> list[Action]:
        """
        Send on `pair` from now on; what it supersedes stays open for packets under way (DESIGN 3).

        Nothing confirms a pair of a session that has ended: its close overtook that packet.
        """
        assert pair.session is not None
        if pair.session.closed:
            return []
        self._close_at(pair, _hard_limit(pair))
        for superseded in self.cache.confirm(pair):
            self._linger(superseded, now)
        return self._confirmed(pair, now) + self._validity.watch(pair, now)

    def _close_at(self, pair: SAPair, when: float) -> None:
        """Close `pair` at `when`, whatever was arranged before."""
        if pair.closing is not None:
            pair.closing.cancel()
        pair.closing = self.agenda.at(when, lambda now: self.close_pair(pair, now))

    def _linger(self, pair: SAPair, now: float) -> None:
        """Close `pair` after OLD_SA_LINGER, unless it closes earlier."""
        if pair.closing is None or pair.closing.when > now + OLD_SA_LINGER:
            self._close_at(pair, now + OLD_SA_LINGER)

    def close_pair(self, pair: SAPair, now: float) -> Iterable[Action]:
        """Close a pair when its time is over."""
        session = pair.session
        assert session is not None
        if session.sending is pair:
            pair.closing = None
            return self._expired(session, now)
        self.cache.remove_pair(pair)
        return ()

    def _expired(self, session: Session, now: float) -> list[Action]:
        """End a session that was not renewed in time, a failure (DESIGN 3); the peer's has expired too."""
        self._retire(session, now)
        return [ended(session, EXPIRED), *self._lost(session, EXPIRED, now)]

    def fail(self, session: Session, reason: str, now: float, *, failed: bool = True) -> list[Action]:
        """End a session that is of no more use, and let the role look for another (R8); see `_lost`."""
        actions = self.end(session, reason, now)
        return actions + self._lost(session, reason, now, failed=failed)

    def end(self, session: Session, reason: str, now: float) -> list[Action]:
        """End a session on our side, and tell the peer (DESIGN 6)."""
        actions: list[Action] = [ended(session, reason)]
        if session.sending is not None:
            actions += self._sayings.say(session, Kind.CLOSE, now)
        self._retire(session, now)
        return actions

    def certify(self, credentials: Credentials, now: float) -> list[Action]:
        """Go on with certificates and revocation lists just read again."""
        self.credentials = credentials
        return self._validity.withdraw(now)

    def _retire(self, session: Session, now: float) -> None:
        """Take a session out of the cache; its pairs stay open a while for what is still under way."""
        self.cache.retire(session)
        for pair in session.pairs:
            self._linger(pair, now)

    # --- session control (DESIGN 6) -----------------------------------------------------------------------

    def _unheard(self, session: Session, kind: Kind, now: float) -> list[Action]:
        """Hear that the peer acknowledged nothing of what was said."""
        return []

    def control(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take what has the control SPI: a session control packet, or by its length a bare one."""
        if len(datagram) != session_control.CONTROL_SIZE:
            return self._bare(datagram, path, now)
        spi = session_control.session_spi(datagram)
        pair = self.cache.by_spi.get(spi)
        if pair is None or pair.session is None:
            return self._unknown_session(spi, datagram, path, now)
        packet = pair.control.receive(datagram)
        answer = self._answers.get(packet.kind)
        if answer is None:
            raise RemoteError(DropReason.UNEXPECTED_CONTROL, packet.kind.name)
        actions = [] if pair.confirmed else self.confirmed(pair, now)
        session = pair.session
        session.heard(now)
        if path.remote != session.path.remote and packet.sequence == pair.control.window.highest:
            actions += self.strayed(session, path, now)
        return actions + answer(pair, packet, path, now)

    def _unknown_session(self, spi: int, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take a control packet of a session that does not exist. Raises `RemoteError`."""
        raise RemoteError(DropReason.UNKNOWN_SESSION)

    def _bare(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take an unauthenticated packet with the control SPI; the roles know some."""
        raise RemoteError(
            DropReason.SHORT_DATAGRAM if len(datagram) < LITERAL_SIZE else DropReason.MALFORMED_CONTROL
        )

    def _on_ack(self, pair: SAPair, packet: ControlPacket, _path: Path, now: float) -> list[Action]:
        assert pair.session is not None
        round_trip = self._sayings.acknowledged(pair, packet.in_reply_to, now)
        if round_trip is not None:
            self._measured(pair.session, round_trip)
        return []

    def _measured(self, session: Session, seconds: float) -> None:
        """Take the round trip of a control packet and its answer."""
        session.round_trip.measured(seconds)

    def _on_close(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        session = pair.session
        assert session is not None
        actions: list[Action] = [acknowledgement(pair, packet, path)]
        if session.closed:
            return actions
        self._retire(session, now)
        return [*actions, ended(session, "the peer closed it"), *self._lost(session, "it has left", now)]

    def _on_challenge(self, pair: SAPair, packet: ControlPacket, path: Path, _now: float) -> list[Action]:
        """Show that we are where the challenge went; the answer moves nothing here (DESIGN 3)."""
        response = pair.control.send(Kind.RESPONSE, in_reply_to=packet.sequence, generation=packet.generation)
        return [Send(response, path)]

    def close(self, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return [action for session in self.cache for action in self.end(session, "this node stops", now)]

    @property
    def quiet(self) -> bool:
        """See `rvpn.interfaces.Node`."""
        return not self._sayings.any(Kind.CLOSE)

    # --- status -------------------------------------------------------------------------------------------

    def drop_counts(self) -> dict[str, int]:
        """Return how many packets were dropped, by reason; reasons that never occurred are left out."""
        return {
            reason.value: count
            for reason, count in sorted(self.filter.drops.items(), key=lambda i: i[0].value)
        }


def acknowledgement(pair: SAPair, packet: ControlPacket, path: Path) -> Send:
    """Return the acknowledgement of a claim, close or status."""
    return Send(pair.control.send(Kind.ACK, in_reply_to=packet.sequence), path)


def _hard_limit(pair: SAPair) -> float:
    return pair.made_at + HARD_LIFETIME_FACTOR * pair.lifetime + OLD_SA_LINGER


def ended(session: Session, reason: str) -> Event:
    """Return the log line of a session's end."""
    return Event("session with {peer} ended: {reason}", {"peer": session.name, "reason": reason})
