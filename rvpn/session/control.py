"""
Session control between the two ends of a session, beside ESP (DESIGN 6): what a node says, what it makes of
what it hears.

    datagram with the control SPI -> `receive` -> authenticated, not seen before -> the answer to its kind
        -> of a length of its own: `bare`, which nothing authenticates
    something to say -> `retransmission`, until acknowledged

Here is what both roles know; what only one does is in `rvpn.client.control` and `rvpn.gateway.control`. The
layout of the packets is in `rvpn.session.session_control`.
"""

from collections.abc import Callable
from typing import Protocol

from rvpn.agenda import Agenda
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import Action, Path, Send
from rvpn.session.literal_heartbeats import LITERAL_SIZE
from rvpn.session.retransmission import Retransmission
from rvpn.session.session_control import CONTROL_SIZE, ControlPacket, Kind, session_spi
from rvpn.session.sessions import SAPair, Session, SessionCache

Answer = Callable[[SAPair, ControlPacket, Path, float], list[Action]]


class Speaker(Protocol):
    """What session control needs of its node."""

    cache: SessionCache

    def confirmed(self, pair: SAPair, now: float) -> list[Action]:
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""

    def strayed(self, session: Session, path: Path, now: float) -> list[Action]:
        """See `rvpn.datapath.ipfilter.Gatekeeper`."""

    def left(self, session: Session, now: float) -> list[Action]:
        """Hear that the peer closed `session`."""


class Control:
    """See the module."""

    def __init__(self, speaker: Speaker, agenda: Agenda) -> None:
        self.retransmission = Retransmission(self._unacknowledged, agenda)
        self._cache = speaker.cache
        self._speaker = speaker
        self._answers: dict[Kind, Answer] = {
            Kind.ACK: self._on_ack,
            Kind.CLOSE: self._on_close,
            Kind.CHALLENGE: self._on_challenge,
        }

    def receive(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take what has the control SPI: a session control packet, or by its length a bare one."""
        if len(datagram) != CONTROL_SIZE:
            return self._bare(datagram, path, now)
        spi = session_spi(datagram)
        pair = self._cache.by_spi.get(spi)
        if pair is None or pair.session is None:
            return self._unknown_session(spi, datagram, path, now)
        packet = pair.control.receive(datagram)
        answer = self._answers.get(packet.kind)
        if answer is None:
            raise RemoteError(DropReason.UNEXPECTED_CONTROL, packet.kind.name)
        actions = [] if pair.confirmed else self._speaker.confirmed(pair, now)
        session = pair.session
        session.heard(now)
        if path.remote != session.path.remote and packet.sequence == pair.control.window.highest:
            actions += self._speaker.strayed(session, path, now)
        return actions + answer(pair, packet, path, now)

    # --- what the roles know more of ------------------------------------------------------------------------

    def _unknown_session(self, spi: int, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take a control packet of a session that does not exist. Raises `RemoteError`."""
        raise RemoteError(DropReason.UNKNOWN_SESSION)

    def _bare(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take an unauthenticated packet with the control SPI. Raises `RemoteError`."""
        raise RemoteError(
            DropReason.SHORT_DATAGRAM if len(datagram) < LITERAL_SIZE else DropReason.MALFORMED_CONTROL
        )

    def _unacknowledged(self, session: Session, kind: Kind, now: float) -> list[Action]:
        """Hear that the peer acknowledged no packet of what was sent (`rvpn.session.retransmission`)."""
        return []

    def _measured(self, session: Session, seconds: float) -> None:
        """Take the round trip of a control packet and its answer."""
        session.round_trip.measured(seconds)

    # --- answers --------------------------------------------------------------------------------------------

    def _on_ack(self, pair: SAPair, packet: ControlPacket, _path: Path, now: float) -> list[Action]:
        assert pair.session is not None
        round_trip = self.retransmission.acknowledged(pair, packet.in_reply_to, now)
        if round_trip is not None:
            self._measured(pair.session, round_trip)
        return []

    def _on_close(self, pair: SAPair, packet: ControlPacket, path: Path, now: float) -> list[Action]:
        assert pair.session is not None
        actions: list[Action] = [acknowledgement(pair, packet, path)]
        return actions if pair.session.closed else actions + self._speaker.left(pair.session, now)

    def _on_challenge(self, pair: SAPair, packet: ControlPacket, path: Path, _now: float) -> list[Action]:
        """Show that we are where the challenge went; the answer moves nothing here (DESIGN 3)."""
        response = pair.control.send(Kind.RESPONSE, in_reply_to=packet.sequence, generation=packet.generation)
        return [Send(response, path)]


def acknowledgement(pair: SAPair, packet: ControlPacket, path: Path) -> Send:
    """Return the acknowledgement of a claim, close or status."""
    return Send(pair.control.send(Kind.ACK, in_reply_to=packet.sequence), path)
