"""
What a gateway says to its clients, and what it makes of what they say (DESIGN 6).

    heartbeat, sealed or literal -> an equal packet (R10) that says how fit this gateway is
    claim -> `presence`: the client is here; the bare answer to `owner?` -> it is elsewhere (DESIGN 8)
    response to a challenge -> `roaming`
    datagrams of nobody -> the proof that its keys are lost, if they are (X3, R16)
"""

from typing import Protocol

from rvpn.agenda import Agenda
from rvpn.constants import LITERAL_IN_ALL, NOTICES_PER_SECOND
from rvpn.errors import DropReason, RemoteError
from rvpn.gateway.presence import Presence
from rvpn.gateway.roaming import Roaming
from rvpn.interfaces import Action, Path, Send
from rvpn.rate import Rate
from rvpn.session.control import Control, Speaker, acknowledgement
from rvpn.session.literal_heartbeats import LITERAL_SIZE
from rvpn.session.lost_keys import NOTICE_SIZE, LostKeys
from rvpn.session.session_control import ControlPacket, Kind, Status
from rvpn.session.sessions import SAPair, Session


class GatewaySpeaker(Speaker, Protocol):
    """What session control needs of the gateway."""

    fitness: Status
    lost_keys: LostKeys
    presence: Presence
    roaming: Roaming

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count datagrams."""


class GatewayControl(Control):
    """See the module."""

    def __init__(self, gateway: GatewaySpeaker, agenda: Agenda) -> None:
        super().__init__(gateway, agenda)
        self._gateway = gateway
        self._notices = Rate(NOTICES_PER_SECOND)
        self._literal_rate = Rate(LITERAL_IN_ALL)
        self._answers |= {
            Kind.HEARTBEAT: self._on_heartbeat,
            Kind.RESPONSE: self._on_response,
            Kind.CLAIM: self._on_claim,
        }

    def ask_owner(self, session: Session, now: float) -> list[Action]:
        """Ask a client whether it uses this gateway."""
        if session.sending is None:
            return []
        question = Send(session.sending.control.send(Kind.OWNER), session.path)
        session.owner_asked = session.sending.control.sequence
        return [question]

    def notice(self, spi: int, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Answer a datagram of nobody with the proof that its keys are lost: a shorter one, and not often."""
        if len(datagram) < NOTICE_SIZE or not self._notices.allows(now):
            return []
        return [Send(self._gateway.lost_keys.notice(spi), path)]

    def _unknown_session(self, spi: int, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Answer a control packet of nobody as ESP of nobody: an idle client is to hear of it too."""
        self._gateway.drop(DropReason.UNKNOWN_SESSION)
        return self.notice(spi, datagram, path, now)

    def _on_heartbeat(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        """Answer a heartbeat with an equal packet (R10), to where it came from, along which it came (R17)."""
        assert pair.session is not None
        if pair.session.closed:
            raise RemoteError(DropReason.UNKNOWN_SESSION)
        answer = Send(pair.control.send(Kind.ANSWER, self._gateway.fitness, packet.sequence), path)
        return [answer, *self._gateway.presence.heard(pair.session, now)]

    def _on_claim(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        session = pair.session
        assert session is not None
        if session.sending is None:  # it has ended, or newer keys were confirmed first
            raise RemoteError(DropReason.UNKNOWN_SESSION)
        announcements = self._gateway.presence.claimed(session, packet.generation, now)
        return [acknowledgement(pair, packet, path), *announcements]

    def _on_response(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        assert pair.session is not None
        return self._gateway.roaming.response(pair.session, packet.generation, path, now)

    def _on_ack(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        """Take the bare answer to `owner?` for what it says: the client uses another gateway (DESIGN 8)."""
        actions = super()._on_ack(pair, packet, path, now)
        session = pair.session
        asked = session.owner_asked if session is not None and pair is session.sending else 0
        if session is None or not asked or packet.in_reply_to != asked:
            return actions
        session.owner_asked = 0
        return [*actions, *self._gateway.presence.released(session)]

    def _bare(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """
        Answer a literal heartbeat of a client's endpoint with an equal packet (R10, the patent's).

        Nobody else draws anything, and nobody much: an echo without guards is a loop (CVE-2024-2169). A
        gateway whose LAN side is down stays silent (R14).
        """
        session = self._cache.by_endpoint.get(path.remote)
        pair = session.sending if session is not None else None
        if len(datagram) != LITERAL_SIZE or (pair is not None and not pair.literal_heartbeats):
            return super()._bare(datagram, path, now)
        if session is None:
            raise RemoteError(DropReason.UNKNOWN_SESSION)
        if self._gateway.fitness is Status.LAN_DOWN:
            return []
        if not (session.literal_rate.allows(now) and self._literal_rate.allows(now)):
            raise RemoteError(DropReason.TOO_MANY_HEARTBEATS)
        return [Send(bytes(datagram), path), *self._gateway.presence.heard(session, now)]
