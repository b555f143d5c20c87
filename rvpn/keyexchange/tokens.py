"""
The layout of key exchange datagrams (DESIGN 4). `decode` reads what `Envelope` writes.

All integers are big-endian. Every datagram has at most `KEY_EXCHANGE_DATAGRAM` bytes and begins with 32
bytes:

     0  4   zero: RFC 3948's non-ESP marker
     4  1   version, 1
     5  1   kind
     6  1   mechanism
     7  1   token number: even ones are the initiator's, odd ones the acceptor's, each answers the one before
     8  8   exchange id, chosen at random by the initiator
    16  16  MAC: BLAKE2b under the acceptor's cookie over all other bytes; zero where there is no cookie

What follows depends on the kind:

    1  fragment         index (1), count (1), data: a piece of the token
    2  acknowledgement  bitmap (4): bit n is set if fragment n of that token has arrived
    3  cookie           cookie (16): begin anew, with it (never has a MAC)
    4  rejection        reason (1): a hint, not more, since anybody can send it (never has a MAC)
"""

import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, unique
from hashlib import blake2b

from rvpn.constants import KEY_EXCHANGE_DATAGRAM, KEY_EXCHANGE_MARKER, KEY_EXCHANGE_VERSION
from rvpn.errors import DropReason, LocalError, RemoteError

COOKIE = 16
#: Fragments of one token; the bitmap has room for no more.
MAX_FRAGMENTS = 32
MAX_TOKEN_NUMBER = 255

_HEADER = struct.Struct("!4sBBBB8s16s")
_FRAGMENT = struct.Struct("!BB")
_MAC_START, _MAC_END = 16, 32
_NO_MAC = bytes(_MAC_END - _MAC_START)
_FRAGMENT_DATA = KEY_EXCHANGE_DATAGRAM - _HEADER.size - _FRAGMENT.size


@unique
class Kind(IntEnum):
    """What a datagram is."""

    FRAGMENT = 1
    ACKNOWLEDGEMENT = 2
    COOKIE = 3
    REJECTION = 4


@unique
class Rejected(IntEnum):
    """Why an acceptor says no."""

    UNKNOWN_MECHANISM = 1
    AUTHENTICATION_FAILED = 2
    REFUSED = 3
    BUSY = 4


# --- Reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """A datagram that was read: what all kinds have. `mechanism` may be one that we do not know."""

    mechanism: int
    token: int
    exchange_id: bytes
    mac: bytes = field(repr=False)
    datagram: bytes = field(repr=False)

    @property
    def to_acceptor(self) -> bool:
        """Whether it is for the end that did not begin the exchange; there are no others for it."""
        return False


@dataclass(frozen=True, slots=True)
class Fragment(Message):
    """A piece of a token."""

    index: int
    count: int
    data: bytes = field(repr=False)

    @property
    def to_acceptor(self) -> bool:
        """Tokens with even numbers are the initiator's."""
        return self.token % 2 == 0


@dataclass(frozen=True, slots=True)
class Acknowledgement(Message):
    """Which fragments of `token` have arrived, the lowest bit for the first."""

    bitmap: int

    @property
    def to_acceptor(self) -> bool:
        """Tokens with odd numbers are the acceptor's."""
        return self.token % 2 == 1


@dataclass(frozen=True, slots=True)
class CookieDemand(Message):
    """The acceptor wants a first token that is bound to `cookie`."""

    cookie: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rejection(Message):
    """The acceptor, or somebody else, says no. `reason` is a `Rejected`, or a number of a later version."""

    reason: int

    @property
    def text(self) -> str:
        """The reason in words."""
        try:
            return Rejected(self.reason).name.lower().replace("_", " ")
        except ValueError:
            return f"reason {self.reason}"


def decode(datagram: bytes) -> Message:
    """Read a datagram. Raises RemoteError(MALFORMED_KEY_EXCHANGE)."""
    if not _HEADER.size <= len(datagram) <= KEY_EXCHANGE_DATAGRAM:
        raise _malformed(f"{len(datagram)} bytes")
    marker, version, kind, mechanism, token, exchange_id, mac = _HEADER.unpack_from(datagram)
    if marker != KEY_EXCHANGE_MARKER or version != KEY_EXCHANGE_VERSION:
        raise _malformed(f"version {version}")
    common = (mechanism, token, exchange_id, mac, datagram)
    body = datagram[_HEADER.size :]
    match kind, len(body):
        case Kind.FRAGMENT, size if size >= _FRAGMENT.size:
            index, count = _FRAGMENT.unpack_from(body)
            if not index < count <= MAX_FRAGMENTS:
                raise _malformed(f"fragment {index} of {count}")
            return Fragment(*common, index, count, body[_FRAGMENT.size :])
        case Kind.ACKNOWLEDGEMENT, 4:
            return Acknowledgement(*common, int.from_bytes(body, "big"))
        case Kind.COOKIE, 16:
            return CookieDemand(*common, body)
        case Kind.REJECTION, 1:
            return Rejection(*common, body[0])
    raise _malformed(f"kind {kind} of {len(datagram)} bytes")


def _malformed(what: str) -> RemoteError:
    return RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, what)


def cookie_of(message: Message, cookies: Iterable[bytes]) -> bytes:
    """
    Return the one of `cookies` under which the message's MAC is right; an empty one stands for no MAC.

    Raises RemoteError(BAD_COOKIE) if it is none of them.
    """
    for cookie in cookies:
        if hmac.compare_digest(message.mac, _mac(message.datagram, cookie)):
            return cookie
    raise RemoteError(DropReason.BAD_COOKIE)


def _mac(datagram: bytes, cookie: bytes) -> bytes:
    if not cookie:
        return _NO_MAC
    others = datagram[:_MAC_START] + datagram[_MAC_END:]
    return blake2b(others, key=cookie, digest_size=_MAC_END - _MAC_START).digest()


# --- Writing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Envelope:
    """Writes the datagrams of one exchange. `cookie` is empty as long as none was demanded."""

    mechanism: int
    exchange_id: bytes
    cookie: bytes = field(default=b"", repr=False)

    def fragments(self, token: int, data: bytes) -> list[bytes]:
        """Return a token cut into datagrams. Raises LocalError if it is longer than 32 of them can carry."""
        pieces = [data[i : i + _FRAGMENT_DATA] for i in range(0, len(data), _FRAGMENT_DATA)] or [b""]
        if len(pieces) > MAX_FRAGMENTS:
            raise LocalError(f"a key exchange token of {len(data)} bytes is too long")
        return [
            self._write(Kind.FRAGMENT, token, _FRAGMENT.pack(index, len(pieces)) + piece)
            for index, piece in enumerate(pieces)
        ]

    def acknowledgement(self, token: int, bitmap: int) -> bytes:
        """Say which fragments of the peer's token have arrived."""
        return self._write(Kind.ACKNOWLEDGEMENT, token, bitmap.to_bytes(4, "big"))

    def _write(self, kind: Kind, token: int, body: bytes) -> bytes:
        datagram = _pack(kind, self.mechanism, token, self.exchange_id, _NO_MAC) + body
        return datagram[:_MAC_START] + _mac(datagram, self.cookie) + datagram[_MAC_END:]


def demand(message: Message, cookie: bytes) -> bytes:
    """Return the datagram that asks the sender of `message` to begin anew with a cookie (48 bytes)."""
    return _pack(Kind.COOKIE, message.mechanism, message.token, message.exchange_id, _NO_MAC) + cookie


def reject(message: Message, reason: Rejected) -> bytes:
    """Return the datagram that says no to `message` (33 bytes, fewer than any fragment has)."""
    kind = Kind.REJECTION
    return _pack(kind, message.mechanism, message.token, message.exchange_id, _NO_MAC) + bytes([reason])


def _pack(kind: Kind, mechanism: int, token: int, exchange_id: bytes, mac: bytes) -> bytes:
    return _HEADER.pack(KEY_EXCHANGE_MARKER, KEY_EXCHANGE_VERSION, kind, mechanism, token, exchange_id, mac)
