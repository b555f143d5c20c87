"""
What a client says to its gateways, and what it makes of what they say (DESIGN 6).

    is it alive? -> `heartbeat`, sealed or literal -> answer -> rvpn.failover: it is, and says how it is
    a gateway comes into use -> `claim`, of a generation newer than any before
        -> nobody hears it -> again; `owner?` -> again, unless another gateway is in use by now
    status -> rvpn.failover (X4); a proof of lost keys -> new ones (X3)
"""

from typing import Protocol

from rvpn.agenda import Agenda
from rvpn.errors import DropReason, RemoteError
from rvpn.failover.failover import Failover
from rvpn.interfaces import Action, IPAddress, Path, RandomSource, Send
from rvpn.keyexchange.tai64n import tai64n
from rvpn.session import lost_keys
from rvpn.session.control import Control, Speaker, acknowledgement
from rvpn.session.literal_heartbeats import LITERAL_SIZE, LiteralHeartbeats
from rvpn.session.session_control import ControlPacket, Kind
from rvpn.session.sessions import SAPair, Session


class ClientSpeaker(Speaker, Protocol):
    """What session control needs of the client."""

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Begin an exchange with `gateway`, unless one is under way."""

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count datagrams."""

    def time_of_day(self) -> float:
        """Return seconds since 1970."""


class ClientControl(Control):
    """See the module. `generation` is the highest ownership generation used so far."""

    def __init__(
        self, client: ClientSpeaker, failover: Failover, agenda: Agenda, random: RandomSource, generation: int
    ) -> None:
        super().__init__(client, agenda)
        self.generation = generation
        self._client = client
        self._failover = failover
        self._literal = LiteralHeartbeats(random)
        self._answers |= {
            Kind.ANSWER: self._on_answer,
            Kind.STATUS: self._on_status,
            Kind.OWNER: self._on_owner,
        }

    def heartbeat(self, session: Session) -> tuple[list[Action], int]:
        """See `rvpn.failover.liveness.Asker`. R17: along the path of the session's ESP."""
        pair = session.sending
        assert pair is not None
        if not pair.literal_heartbeats:
            return [Send(pair.control.send(Kind.HEARTBEAT), session.path)], pair.control.sequence
        datagram, sequence = self._literal.new(session, len(self._cache))
        return [Send(datagram, session.path)], sequence

    def claim(self, session: Session, now: float) -> list[Action]:
        """See `rvpn.failover.failover.Mover`: with a generation newer than any before (DESIGN 6)."""
        self.generation = max(self.generation + 1, int.from_bytes(tai64n(self._client.time_of_day())))
        return self.retransmission.send(session, Kind.CLAIM, now, generation=self.generation)

    def _unacknowledged(self, session: Session, kind: Kind, now: float) -> list[Action]:
        """Claim our addresses again: a gateway in use that has no claim does not let targets find us."""

        def claim(now: float) -> list[Action]:
            return self.claim(session, now) if self._failover.using(session) else []

        if kind is Kind.CLAIM:
            self._failover.liveness.again((kind, session), claim, now)
        return []

    def _measured(self, session: Session, seconds: float) -> None:
        self._failover.liveness.measured(session, seconds)

    def _on_answer(self, pair: SAPair, packet: ControlPacket, _path: Path, now: float) -> list[Action]:
        session = pair.session
        assert session is not None
        news = session.take_status(packet.status, pair, packet.sequence)
        actions = self._answered(session, packet.in_reply_to, now)
        return actions + self._failover.told_status(session, now) if news else actions

    def _answered(self, session: Session, sequence: int, now: float) -> list[Action]:
        expected, actions = self._failover.answered(session, sequence, now)
        if not expected:
            self._client.drop(DropReason.UNEXPECTED_CONTROL)
        return actions

    def _on_status(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        session = pair.session
        assert session is not None
        acknowledged: list[Action] = [acknowledgement(pair, packet, path)]
        if not session.take_status(packet.status, pair, packet.sequence):
            return acknowledged
        return acknowledged + self._failover.told_status(session, now)

    def _on_owner(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        """Claim our addresses again if this gateway is in use; any other answer means that it is not."""
        session = pair.session
        assert session is not None
        if self._failover.using(session):
            return self.claim(session, now)
        return [acknowledgement(pair, packet, path)]

    def _bare(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        if len(datagram) == LITERAL_SIZE and bytes(datagram) in self._literal:
            return self._on_literal(bytes(datagram), path, now)
        if len(datagram) == lost_keys.NOTICE_SIZE:
            return self._on_lost_keys(datagram, path, now)
        return super()._bare(datagram, path, now)

    def _on_literal(self, datagram: bytes, path: Path, now: float) -> list[Action]:
        """Take the literal heartbeat's echo, equal and from the gateway's address (DESIGN 6)."""
        session, sequence = self._literal.answered(datagram, path)
        session.heard(now)
        return self._answered(session, sequence, now)

    def _on_lost_keys(self, notice: memoryview, path: Path, now: float) -> list[Action]:
        """
        Key anew with a gateway that proves that it lost our keys; the old SA stays until that succeeds (X3).
        """
        session = self._cache.by_endpoint.get(path.remote)
        pair = session.sending if session is not None else None
        if pair is not None and lost_keys.proves(notice, pair.lost_key_token):
            return self._client.authenticate(path.remote.address, now)
        raise RemoteError(DropReason.UNEXPECTED_CONTROL, "a lost-key notice that proves nothing")
