"""
What a client and a gateway have in common: the life of a session, from its keys to its end.

    keys -> `open_pair` -> the first packet opens: `confirmed` -> old pairs close after OLD_SA_LINGER
         -> superseded in time by the next keys; no rekey by the hard limit counts as failure
    `end` (we leave) -> close, repeated until acknowledged -> gone
    a close arrives (the peer leaves) -> ack -> gone

`TunnelEnd` is a calculation: the shell brings packets, datagrams and time, and carries out the actions that
come back (`rvpn.interfaces.Node`). What differs between the roles is in `rvpn.client.node` and
`rvpn.gateway.node`; how the ends speak with each other beside ESP in `rvpn.session.control`, how long a peer
may stay in `rvpn.session.validity`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from rvpn.agenda import Agenda
from rvpn.constants import (
    CONFIRMATION_TIME,
    HARD_LIFETIME_FACTOR,
    OLD_SA_LINGER,
    VNET_HEADER,
)
from rvpn.datapath.ipfilter import IPFilter
from rvpn.datapath.offload import TCP, UDP
from rvpn.datapath.packet import addresses, too_big, unreachable
from rvpn.datapath.path_mtu import PathMTU
from rvpn.datapath.sealing import Sealer
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import (
    Action,
    Deliver,
    Endpoint,
    Event,
    Path,
    RandomSource,
)
from rvpn.keyexchange.credentials import Credentials
from rvpn.keyexchange.terms import Terms
from rvpn.session.control import Control
from rvpn.session.session_control import Kind
from rvpn.session.sessions import SAPair, Session, SessionCache
from rvpn.session.validity import Validity

#: Why a session ends that was not renewed.
EXPIRED = "its keys expired"


class TunnelEnd(ABC):
    """See the module. Each role has a `session_control` of its own."""

    session_control: Control

    def __init__(self, credentials: Credentials, random: RandomSource, clock: Callable[[], float]) -> None:
        """`clock` gives the time of day."""
        self.agenda = Agenda()
        self.cache = SessionCache(random)
        self.filter = IPFilter(self.cache, self)
        self.sealer = Sealer(self, self.filter.drops)
        self.credentials = credentials
        self._random = random
        self.time_of_day = clock
        self.terms = Terms()
        self._validity = Validity(self, self.agenda)
        self.paths = PathMTU(self.cache, self.agenda)
        # These are of `rvpn.interfaces.Node` as they are, and each call between takes time with each packet.
        self.outbound = self.sealer.seal
        self.deadline, self.advance = self.agenda.deadline, self.agenda.advance

    # --- what the roles decide -------------------------------------------------------------------------

    @abstractmethod
    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""

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
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""

    @abstractmethod
    def unknown_spi(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""

    @abstractmethod
    def route(self, source: bytes, destination: bytes) -> Session | None:
        """See `rvpn.datapath.sealing.Router`."""

    @abstractmethod
    def without_session(
        self, packet: memoryview, source: bytes, destination: bytes, now: float
    ) -> Sequence[Action]:
        """See `rvpn.datapath.sealing.Router`."""

    def payload_sent(self, session: Session, now: float) -> Sequence[Action]:
        """See `rvpn.datapath.sealing.Router`."""
        return ()

    # --- packets and datagrams (rvpn.interfaces.Node) --------------------------------------------------

    def offload(self, *, checksums: bool, tcp: bool, udp: bool) -> None:
        """
        Hear what the TUN device does for us: complete partial checksums, cut super-packets of TCP and UDP.

        Holds for the sessions to come, and is to be called before there are any.
        """
        self.terms.partial_checksums = checksums
        self.terms.trains = checksums and tcp
        self.filter.coalesce(frozenset(protocol for protocol, cuts in ((TCP, tcp), (UDP, udp)) if cuts))

    def control(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""
        return self.session_control.receive(datagram, path, now)

    def path_mtu(self, remote: Endpoint, mtu: int, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self.paths.learn(remote, mtu, now)

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """See `rvpn.interfaces.Node`."""
        if count:
            self.filter.drops[reason] += count

    def too_big(self, packet: memoryview, mtu: int, destination: bytes) -> list[Action]:
        """
        See `rvpn.datapath.sealing.Router`: tell its sender by ICMP.

        The error seems to come from the packet's destination: the kernel takes none from one of its own
        addresses.
        """
        self.drop(DropReason.TOO_BIG)
        error = too_big(packet, mtu, destination)
        return [Deliver(error)] if error else []

    def _unreachable(self, packet: memoryview | bytes, reason: DropReason) -> list[Action]:
        """
        Drop a packet, virtio_net_hdr first, that nobody takes and tell its sender so by ICMP, if its headers
        let us. The error seems to come from the packet's destination, as in `too_big`.
        """
        self.drop(reason)
        inner = memoryview(packet)[VNET_HEADER:]
        try:
            error = unreachable(inner, addresses(inner)[2])
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
        self.paths.begin(session)
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
            actions += self.session_control.retransmission.send(session, Kind.CLOSE, now)
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

    def left(self, session: Session, now: float) -> list[Action]:
        """See `rvpn.session.control.Speaker`."""
        self._retire(session, now)
        return [ended(session, "the peer closed it"), *self._lost(session, "it has left", now)]

    def close(self, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return [action for session in self.cache for action in self.end(session, "this node stops", now)]

    @property
    def quiet(self) -> bool:
        """See `rvpn.interfaces.Node`."""
        return not self.session_control.retransmission.outstanding(Kind.CLOSE)

    # --- status -------------------------------------------------------------------------------------------

    def drop_counts(self) -> dict[str, int]:
        """Return how many packets were dropped, by reason; reasons that never occurred are left out."""
        return {
            reason.value: count
            for reason, count in sorted(self.filter.drops.items(), key=lambda i: i[0].value)
        }


def _hard_limit(pair: SAPair) -> float:
    return pair.made_at + HARD_LIFETIME_FACTOR * pair.lifetime + OLD_SA_LINGER


def ended(session: Session, reason: str) -> Event:
    """Return the log line of a session's end."""
    return Event("session with {peer} ended: {reason}", {"peer": session.name, "reason": reason})
