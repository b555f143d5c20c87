"""
What a client and a gateway have in common: the life of a session, from its keys to its end.

    keys -> `_open_pair` -> the first packet opens: `confirmed` -> old pairs close after OLD_SA_LINGER
         -> superseded in time by the next keys; no rekey by the hard limit counts as failure
    `end` (we leave) -> close, repeated until acknowledged -> gone
    a close arrives (the peer leaves) -> ack -> gone

`TunnelEnd` is a calculation: the shell brings packets, datagrams and time, and carries out the actions that
come back (`rvpn.interfaces.Node`). What differs between the roles is in `rvpn.client` and `rvpn.gateway`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rvpn import session_control
from rvpn.agenda import Agenda
from rvpn.constants import (
    CLOSE_INTERVAL,
    CLOSE_REPEATS,
    CONFIRMATION_TIME,
    HARD_LIFETIME_FACTOR,
    OLD_SA_LINGER,
    PATH_MTU_LIFETIME,
    TransformID,
)
from rvpn.errors import DropReason, RemoteError, SAExhausted
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
from rvpn.packet import inspect, too_big, unreachable
from rvpn.session_control import Kind
from rvpn.sessions import SAPair, Session, SessionCache

#: How the policy and `rvpn status` call the transforms.
TRANSFORM_NAMES = {
    TransformID.AES_GCM_16_256: "aes-gcm-256",
    TransformID.CHACHA20_POLY1305: "chacha20-poly1305",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """
    What a node authenticates with: its static key pair, and the preshared key (32 bytes, zero if there is
    none).
    """

    private_key: bytes = field(repr=False)
    preshared_key: bytes = field(default=bytes(32), repr=False)


class TunnelEnd(ABC):
    """See the module."""

    def __init__(self, credentials: Credentials, random: RandomSource, link_mtu: int) -> None:
        """`link_mtu` is the MTU of the outside link, the first of each path."""
        self.agenda = Agenda()
        self.cache = SessionCache(random)
        self.filter = IPFilter(self.cache, self)
        self._credentials = credentials
        self._random = random
        self._link_mtu = link_mtu
        self._closing: set[Session] = set()

    # --- what the roles decide -------------------------------------------------------------------------

    @abstractmethod
    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """See `rvpn.ipfilter.Gatekeeper`."""

    @abstractmethod
    def _confirmed(self, pair: SAPair, now: float) -> list[Action]:
        """Hear that `pair` is now what its session sends on."""

    @abstractmethod
    def _lost(self, session: Session, now: float) -> list[Action]:
        """Hear that `session` ended for a reason that did not come from this node."""

    # --- packets and datagrams (rvpn.interfaces.Node) --------------------------------------------------

    def inbound(self, datagrams: DatagramBatch, packets: PacketBatch, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self.filter.open(datagrams, packets, now)

    def deadline(self) -> float | None:
        """See `rvpn.interfaces.Node`."""
        return self.agenda.deadline()

    def advance(self, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return self.agenda.advance(now)

    def drop(self, reason: DropReason) -> None:
        """See `rvpn.interfaces.Node`."""
        self.filter.drops[reason] += 1

    def _seal(
        self,
        session: Session,
        packet: memoryview | bytes,
        next_header: int,
        datagrams: DatagramBatch,
        now: float,
    ) -> Sequence[Action]:
        """
        Seal a packet for `session`, or tell its sender that it is too big for the path (RFC 1191, RFC 8201).
        """
        if len(packet) > session.inner_mtu:
            headers = inspect(memoryview(packet))
            if headers.dont_fragment:
                return self._too_big(packet, session.inner_mtu, headers.destination)
        try:
            self.filter.seal(session, packet, next_header, datagrams)
        except SAExhausted as error:
            return self._fail(session, str(error), now)
        return ()

    def _too_big(self, packet: memoryview | bytes, mtu: int, destination: bytes) -> list[Action]:
        """
        Drop a packet that must not be fragmented and tell its sender so by ICMP.

        The error seems to come from the packet's destination: the kernel takes none from one of its own
        addresses. A packet that may be fragmented goes out, and the kernel fragments its datagram.
        """
        self.drop(DropReason.TOO_BIG)
        error = too_big(memoryview(packet), mtu, destination)
        return [Deliver(error)] if error else []

    def _unreachable(
        self, packet: memoryview | bytes, destination: bytes, reason: DropReason
    ) -> list[Action]:
        """Drop a packet that nobody takes and tell its sender so by ICMP, if its headers let us."""
        self.drop(reason)
        try:
            error = unreachable(memoryview(packet), destination)
        except RemoteError:
            return []
        return [Deliver(error)] if error else []

    # --- the life of a session --------------------------------------------------------------------------

    def _open_pair(self, session: Session, pair: SAPair, now: float) -> None:
        """
        Open a pair of SAs until its hard limit.

        The acceptor closes it earlier if nothing confirms it; at the initiator that is for the KMS to decide.
        """
        self.cache.add_pair(session, pair)
        session.learn_path_mtu(self._link_mtu)
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
        return self._confirmed(pair, now)

    def _close_at(self, pair: SAPair, when: float) -> None:
        """Close `pair` at `when`, whatever was arranged before."""
        if pair.closing is not None:
            pair.closing.cancel()
        pair.closing = self.agenda.at(when, lambda now: self._close_pair(pair, now))

    def _linger(self, pair: SAPair, now: float) -> None:
        """Close `pair` after OLD_SA_LINGER, unless it closes earlier."""
        if pair.closing is None or pair.closing.when > now + OLD_SA_LINGER:
            self._close_at(pair, now + OLD_SA_LINGER)

    def _close_pair(self, pair: SAPair, now: float) -> Iterable[Action]:
        """
        Close a pair when its time is over: if its session sends on it there was no rekey, which counts as
        failure.
        """
        session, pair.closing = pair.session, None
        assert session is not None
        if session.sending is pair:
            return self._fail(session, "its keys expired", now)
        self.cache.remove_pair(pair)
        return ()

    def _fail(self, session: Session, reason: str, now: float) -> list[Action]:
        """End a session that is of no more use, and let the role look for another."""
        actions = self.end(session, reason, now)
        return actions + self._lost(session, now)

    def end(self, session: Session, reason: str, now: float) -> list[Action]:
        """
        End a session on our side: tell the peer, again until it acknowledges or CLOSE_REPEATS are sent
        (DESIGN 6).
        """
        pair = session.sending
        self._retire(session, now)
        actions: list[Action] = [_ended(session, reason)]
        if pair is None:
            return actions
        self._closing.add(session)
        return actions + self._send_close(session, pair, CLOSE_REPEATS, now)

    def _send_close(self, session: Session, pair: SAPair, repeats: int, now: float) -> list[Action]:
        if session not in self._closing:
            return []
        if not repeats:
            self._closing.discard(session)
            return []
        self.agenda.at(
            now + CLOSE_INTERVAL, lambda later: self._send_close(session, pair, repeats - 1, later)
        )
        return [Send(pair.control.send(Kind.CLOSE), session.path)]

    def _retire(self, session: Session, now: float) -> None:
        """Take a session out of the cache; its pairs stay open a while for what is still under way."""
        self.cache.retire(session)
        for pair in session.pairs:
            self._linger(pair, now)

    # --- session control (DESIGN 6) -----------------------------------------------------------------------

    def control(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take a session control packet: `close` and its acknowledgement; other kinds draw nothing yet."""
        pair = self.cache.by_spi.get(session_control.session_spi(datagram))
        if pair is None or pair.session is None:
            raise RemoteError(DropReason.UNKNOWN_SESSION)
        packet = pair.control.receive(datagram)
        if packet.kind is Kind.ACK:
            self._closing.discard(pair.session)
            return []
        if packet.kind is not Kind.CLOSE:
            raise RemoteError(DropReason.UNEXPECTED_CONTROL, packet.kind.name)
        actions: list[Action] = [Send(pair.control.send(Kind.ACK, in_reply_to=packet.sequence), path)]
        if pair.session.closed:
            return actions
        self._retire(pair.session, now)
        return [*actions, _ended(pair.session, "the peer closed it"), *self._lost(pair.session, now)]

    def close(self, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`."""
        return [action for session in self.cache for action in self.end(session, "this node stops", now)]

    @property
    def quiet(self) -> bool:
        """See `rvpn.interfaces.Node`."""
        return not self._closing

    # --- path MTU -----------------------------------------------------------------------------------------

    def path_mtu(self, remote: Endpoint, mtu: int, now: float) -> Sequence[Action]:
        """See `rvpn.interfaces.Node`. What was learnt is believed for PATH_MTU_LIFETIME."""
        session = self.cache.by_endpoint.get(remote)
        if session is None or not session.learn_path_mtu(mtu):
            return ()
        learnt = session.inner_mtu
        self.agenda.at(now + PATH_MTU_LIFETIME, lambda _: self._forget_path_mtu(session, learnt))
        fields: dict[str, str | int | float | bool] = {"remote": str(remote), "mtu": mtu, "inner": learnt}
        return [Event("the path to {remote} carries {mtu} bytes: inner packets of {inner}", fields)]

    def _forget_path_mtu(self, session: Session, learnt: int) -> Iterable[Action]:
        if session.inner_mtu == learnt:
            session.forget_path_mtu(self._link_mtu)
        return ()

    # --- status -------------------------------------------------------------------------------------------

    def session_status(self, session: Session, now: float) -> dict[str, Any]:
        """Return what `rvpn status --json` shows of one session."""
        pair = session.sending
        return {
            "peer": session.peer.name,
            "endpoint": str(session.path.remote),
            "transform": TRANSFORM_NAMES[pair.outbound.transform] if pair else None,
            "inner_addresses": [str(address) for address in session.inner_addresses],
            "age": round(now - session.opened_at, 3),
            "key_age": round(now - pair.made_at, 3) if pair else None,
            "idle": round(now - session.received_at, 3),
            "packets_in": session.packets_in,
            "packets_out": session.packets_out,
            "bytes_in": session.bytes_in,
            "bytes_out": session.bytes_out,
        }

    def drop_counts(self) -> dict[str, int]:
        """Return how many packets were dropped, by reason; reasons that never occurred are left out."""
        return {
            reason.value: count
            for reason, count in sorted(self.filter.drops.items(), key=lambda i: i[0].value)
        }


def _hard_limit(pair: SAPair) -> float:
    return pair.made_at + HARD_LIFETIME_FACTOR * pair.lifetime + OLD_SA_LINGER


def _ended(session: Session, reason: str) -> Event:
    return Event("session with {peer} ended: {reason}", {"peer": session.name, "reason": reason})
