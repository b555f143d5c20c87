"""
Session control packets: heartbeats, claims, status and close, and the answers to them (DESIGN 6).

They travel beside ESP on the same addresses and ports (R17) and all have the same length both ways, so that
no answer is longer than what drew it. Every integer is big-endian.

    offset  bytes
    0       4      SPI 0xFFFFFFFF
    4       1      kind
    5       1      status of the sender
    6       2      zero
    8       4      session: the ESP SPI that the receiver chose
    12      8      sequence, from 1, counting all control packets of this direction and SA
    20      8      in reply to: the sequence of the packet that this one answers, else 0
    28      12     claim: ownership generation; challenge, response: the challenge's random number; else 0
    40      16     tag: BLAKE2b over bytes 0 to 39, keyed with the control key of this direction and SA

A datagram is read in two steps: `session_spi` names the session, whose `ControlChannel` holds the key. A
packet that is repeated for want of an acknowledgement is a new packet with the next sequence, for the window
would take the same bytes for a replay; an acknowledgement of any of them acknowledges all.
"""

from dataclasses import dataclass
from enum import IntEnum, unique
from hashlib import blake2b
from hmac import compare_digest
from struct import Struct

from rvpn.constants import CONTROL_SPI, RECENT_PACKETS
from rvpn.errors import DropReason, RemoteError
from rvpn.esp.replay import ReplayWindow
from rvpn.keyexchange.tai64n import LABEL_SIZE

#: Bytes of a control key.
CONTROL_KEY_SIZE = 32
#: Bytes of an ownership generation.
GENERATION_SIZE = LABEL_SIZE

# SPI, kind, status, reserved, session, sequence, in reply to, generation.
_BODY = Struct("!IBBHIQQ12s")
_SPI_AND_SESSION = Struct("!I4xI")
_SESSION_AND_SEQUENCE = Struct("!8xIQ")
_TAG_SIZE = 16
#: Bytes of every session control packet.
CONTROL_SIZE = _BODY.size + _TAG_SIZE


@unique
class Kind(IntEnum):
    """What a control packet says. HEARTBEAT draws ANSWER, CHALLENGE RESPONSE, OWNER CLAIM or ACK."""

    HEARTBEAT = 1
    ANSWER = 2
    CHALLENGE = 3
    RESPONSE = 4
    #: The client now uses this gateway. CLAIM, CLOSE and STATUS draw ACK.
    CLAIM = 5
    CLOSE = 6
    STATUS = 7
    #: Does the client still use this gateway?
    OWNER = 8
    ACK = 9


@unique
class Status(IntEnum):
    """How fit the sender is to carry traffic: the lower, the better (X4)."""

    OK = 0
    DRAINING = 1
    LAN_DOWN = 2

    @property
    def words(self) -> str:
        """How a sentence calls it."""
        return self.name.lower().replace("_", " ")

    @property
    def label(self) -> str:
        """How `rvpn status` calls it."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class ControlPacket:
    """One control packet; the fields are those of the module's table."""

    kind: Kind
    session: int
    sequence: int
    status: Status = Status.OK
    in_reply_to: int = 0
    generation: int = 0


def session_spi(datagram: bytes | memoryview) -> int:
    """
    Return the SPI of the session that an unauthenticated control packet is for.

    Raises `RemoteError` SHORT_DATAGRAM or MALFORMED_CONTROL.
    """
    if len(datagram) < CONTROL_SIZE:
        raise RemoteError(DropReason.SHORT_DATAGRAM, f"session control in {len(datagram)} bytes")
    spi, session = _SPI_AND_SESSION.unpack_from(datagram)
    if len(datagram) > CONTROL_SIZE or spi != CONTROL_SPI:
        raise RemoteError(DropReason.MALFORMED_CONTROL, f"{len(datagram)} bytes with SPI {spi:#010x}")
    return int(session)


def encode(packet: ControlPacket, key: bytes) -> bytes:
    """Return the packet's bytes, authenticated with `key` (CONTROL_KEY_SIZE bytes)."""
    body = _BODY.pack(
        CONTROL_SPI,
        packet.kind,
        packet.status,
        0,
        packet.session,
        packet.sequence,
        packet.in_reply_to,
        packet.generation.to_bytes(GENERATION_SIZE, "big"),
    )
    return body + _tag(body, key)


def decode(datagram: bytes | memoryview, key: bytes) -> ControlPacket:
    """
    Authenticate and read a control packet.

    Raises `RemoteError` with `session_spi`'s reasons, BAD_CONTROL_TAG, or MALFORMED_CONTROL where the peer
    itself wrote a kind, status or reserved field that we do not know.
    """
    session = session_spi(datagram)
    body, tag = datagram[: _BODY.size], datagram[_BODY.size :]
    if not compare_digest(_tag(body, key), tag):
        raise RemoteError(DropReason.BAD_CONTROL_TAG, f"session {session:#010x}")
    _, kind, status, reserved, _, sequence, in_reply_to, generation = _BODY.unpack(body)
    try:
        packet = ControlPacket(
            Kind(kind), session, sequence, Status(status), in_reply_to, int.from_bytes(generation, "big")
        )
    except ValueError as error:
        raise RemoteError(DropReason.MALFORMED_CONTROL, str(error)) from None
    if reserved:
        raise RemoteError(DropReason.MALFORMED_CONTROL, f"reserved field {reserved:#06x}")
    return packet


def _tag(body: bytes | memoryview, key: bytes) -> bytes:
    """Return the tag over `body`; the personalisation keeps it apart from other uses of BLAKE2b."""
    return blake2b(body, digest_size=_TAG_SIZE, key=key, person=b"rvpn control").digest()


class ControlChannel:
    """
    The control packets of one SA pair: keys and sequence of either direction, and a replay window.

    `peer_session` is the SPI that the peer chose; the keys have CONTROL_KEY_SIZE bytes and differ, so that no
    packet can be reflected to its sender. `sequence` is that of the packet sent last, to be found again in
    the `in_reply_to` of what it draws.
    """

    __slots__ = ("_receive_key", "_send_key", "peer_session", "sequence", "window")

    def __init__(self, peer_session: int, send_key: bytes, receive_key: bytes) -> None:
        if len(send_key) != CONTROL_KEY_SIZE or len(receive_key) != CONTROL_KEY_SIZE:
            raise ValueError(f"control keys have {CONTROL_KEY_SIZE} bytes")
        self.peer_session = peer_session
        self.sequence = 0
        self.window = ReplayWindow(reason=DropReason.REPLAYED_CONTROL)
        self._send_key = send_key
        self._receive_key = receive_key

    def __repr__(self) -> str:
        """Show what may be seen: no key."""
        return f"ControlChannel(peer_session={self.peer_session:#010x}, sequence={self.sequence})"

    def send(
        self, kind: Kind, status: Status = Status.OK, in_reply_to: int = 0, generation: int = 0
    ) -> bytes:
        """Return the next packet to the peer."""
        self.sequence += 1
        packet = ControlPacket(kind, self.peer_session, self.sequence, status, in_reply_to, generation)
        return encode(packet, self._send_key)

    def sent_lately(self, quote: bytes) -> bool:
        """Tell whether what begins with `quote` may be one of the last RECENT_PACKETS that were sent."""
        if len(quote) < _SESSION_AND_SEQUENCE.size:
            return False
        session, sequence = _SESSION_AND_SEQUENCE.unpack_from(quote)
        return bool(session == self.peer_session and 0 <= self.sequence - sequence < RECENT_PACKETS)

    def receive(self, datagram: bytes | memoryview) -> ControlPacket:
        """Return the peer's packet. Raises `RemoteError` with `decode`'s reasons or REPLAYED_CONTROL."""
        packet = decode(datagram, self._receive_key)
        self.window.check(packet.sequence)
        self.window.commit(packet.sequence)
        return packet
