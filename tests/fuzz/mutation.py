"""
Mutants: true datagrams and packets with something wrong, the same ones in every run.

    recording -> one to three changes that know no format, or one that knows the field it changes
              -> `aim`: what selects the session or the exchange is set right again in some of them

A mutant that is aimed passes the demultiplexer and reaches the parsers behind it.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum, unique
from random import Random
from typing import NamedTuple

from rvpn.constants import KEY_EXCHANGE_MARKER, Mechanism
from rvpn.keyexchange import tokens
from rvpn.session.literal_heartbeats import LITERAL_SIZE
from rvpn.session.lost_keys import NOTICE_SIZE

#: Bytes of parameters that fit one key exchange datagram beside keys, tags and timestamp.
MAX_PAYLOAD = 1070
#: No mutant is longer: the largest UDP payload.
LONGEST = 65507
_CONTROL_SPI = b"\xff" * 4
_ID_START, _ID_END = 8, 16
_MAC_START, _MAC_END = 16, 32


@unique
class Family(Enum):
    """The kinds of datagrams that a node receives."""

    ESP = "ESP"
    CONTROL = "session control"
    KEY_EXCHANGE = "key exchange"
    LITERAL = "literal heartbeat"
    LOST_KEYS = "lost-key notice"


class Field(NamedTuple):
    """Where a number stands; negative starts count from the end."""

    start: int
    size: int


FIELDS: dict[Family, tuple[Field, ...]] = {
    # SPI, sequence number, IV, what is encrypted, ICV (RFC 4303).
    Family.ESP: (Field(0, 4), Field(4, 4), Field(8, 8), Field(16, 4), Field(-18, 1), Field(-16, 8)),
    # SPI, kind, status, reserved, session, sequence, in reply to, generation, tag
    # (rvpn.session.session_control).
    Family.CONTROL: (
        *(Field(0, 4), Field(4, 1), Field(5, 1), Field(6, 2), Field(8, 4), Field(12, 8)),
        *(Field(20, 8), Field(28, 12), Field(40, 16)),
    ),
    # Version, kind, mechanism, token, exchange id, MAC, fragment index and count, bitmap, cookie, ephemeral
    # key, the token's end (rvpn.keyexchange.tokens, rvpn.keyexchange.noise).
    Family.KEY_EXCHANGE: (
        *(Field(4, 1), Field(5, 1), Field(6, 1), Field(7, 1), Field(8, 8), Field(16, 16)),
        *(Field(32, 1), Field(33, 1), Field(32, 4), Field(32, 16), Field(34, 32), Field(-16, 16)),
    ),
    # SPI and random bytes (DESIGN 6).
    Family.LITERAL: (Field(0, 4), Field(4, 1), Field(4, 16)),
    # SPI, zero, the SPI that is unknown, token (rvpn.session.lost_keys).
    Family.LOST_KEYS: (Field(0, 4), Field(4, 4), Field(8, 4), Field(12, 16)),
}
# Version and header length, total length, flags and offset, protocol, addresses, and what follows them.
IPV4_FIELDS = (
    *(Field(0, 1), Field(2, 2), Field(6, 2), Field(9, 1), Field(12, 4), Field(16, 4)),
    *(Field(20, 1), Field(21, 1)),
)
# Version, payload length, next header, addresses, and the first extension header.
IPV6_FIELDS = (
    *(Field(0, 1), Field(4, 2), Field(6, 1), Field(8, 16), Field(24, 16)),
    *(Field(40, 1), Field(41, 1), Field(42, 2), Field(48, 1), Field(49, 1)),
)


class Exchange(NamedTuple):
    """A key exchange that a node knows, and the cookie in its MACs (empty: there is none)."""

    exchange_id: bytes
    cookie: bytes


class Live(NamedTuple):
    """
    What selects a session or an exchange at a node right now.

    `spis` are its own, `peer_spis` those that it sends to, `heartbeats` the literal ones it waits for.
    """

    spis: Sequence[int]
    exchanges: Sequence[Exchange]
    peer_spis: Sequence[int] = ()
    heartbeats: Sequence[bytes] = ()

    def selects(self, family: Family, datagram: bytes) -> bool:
        """Tell whether the datagram carries one of these where a node looks for it."""
        if family is Family.KEY_EXCHANGE:
            return datagram[_ID_START:_ID_END] in {exchange.exchange_id for exchange in self.exchanges}
        if family is Family.ESP:
            return int.from_bytes(datagram[:4]) in self.spis
        if datagram[:4] != _CONTROL_SPI:
            return False
        spi, size = int.from_bytes(datagram[8:12]), len(datagram)
        if family is Family.CONTROL:
            return spi in self.spis
        return (
            size == LITERAL_SIZE
            if family is Family.LITERAL
            else size == NOTICE_SIZE and spi in self.peer_spis
        )


def _split(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    while encoded:
        end = 3 + int.from_bytes(encoded[1:3])
        yield encoded[0], encoded[3:end]
        encoded = encoded[end:]


class Mutator:
    """Makes mutants; everything it does follows from the state of `random`."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._changes: Sequence[Callable[[bytes, Sequence[bytes]], bytes]] = (
            self._flip,
            self._flip,
            self._truncate,
            self._extend,
            self._splice,
            self._overwrite,
            self._cut_out,
            self._repeat,
        )

    def datagram(self, family: Family, recordings: Sequence[bytes], live: Live) -> bytes:
        """Return a mutant of one of the recordings of this family."""
        random = self.random
        chosen = random.random()
        if chosen < 0.02:
            return random.randbytes(random.choice((0, 1, 1, 2, 3, 4)))
        if chosen < 0.07:
            return self.aim(family, random.randbytes(random.randrange(200)), live)
        data = random.choice(recordings)
        if chosen < 0.5:
            data = self.change(data, recordings)
        elif chosen < 0.95:
            data = self.change_field(data, FIELDS[family])
        return self.aim(family, data, live) if random.random() < 0.7 else data  # else: a replay

    def change(self, data: bytes, others: Sequence[bytes]) -> bytes:
        """Change something, without regard for the format."""
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            data = self.random.choice(self._changes)(data, others)
        return data[:LONGEST]

    def change_field(self, data: bytes, fields: Sequence[Field]) -> bytes:
        """Give one field another value: one at an edge of its range, one near the true one, or any."""
        start, size = self.random.choice(fields)
        start += len(data) if start < 0 else 0
        if not 0 <= start <= len(data) - size:
            return data[:-1]
        return data[:start] + self.number(data[start : start + size]) + data[start + size :]

    def number(self, true: bytes) -> bytes:
        """Return another number of the same size."""
        size, random = len(true), self.random
        top = 1 << 8 * size
        near = int.from_bytes(true) + random.choice((-4097, -4096, -65, -1, 1, 2, 31, 4096))
        value = random.choice((0, 1, 2, random.randrange(64), top - 1, top >> 1, near, near, near))
        return random.randbytes(size) if random.random() < 0.2 else (value % top).to_bytes(size)

    def aim(self, family: Family, data: bytes, live: Live) -> bytes:
        """Set right what selects a session or an exchange, and if there is a cookie the MAC."""
        if family is Family.KEY_EXCHANGE:
            return self._aim_at_exchange(data, live)
        if family is Family.LITERAL:
            if live.heartbeats and self.random.random() < 0.1:
                return self.random.choice(live.heartbeats)
            return (_CONTROL_SPI + data[4:]).ljust(LITERAL_SIZE, b"\0")[:LITERAL_SIZE]
        spis = live.peer_spis if family is Family.LOST_KEYS else live.spis
        if not spis:
            return data
        spi = self.random.choice(spis).to_bytes(4)
        if family is Family.ESP:
            return spi + data[4:]
        data = _CONTROL_SPI + data[4:8] + spi + data[12:]
        return data if family is Family.CONTROL else data.ljust(NOTICE_SIZE, b"\0")[:NOTICE_SIZE]

    def _aim_at_exchange(self, data: bytes, live: Live) -> bytes:
        if not live.exchanges:
            return KEY_EXCHANGE_MARKER + data[4:]
        exchange_id, cookie = self.random.choice(live.exchanges)
        mechanism = bytes([Mechanism.NOISE]) if self.random.random() < 0.9 else data[6:7]
        data = KEY_EXCHANGE_MARKER + data[4:6] + mechanism + data[7:_ID_START] + exchange_id + data[_ID_END:]
        if self.random.random() < 0.3:
            return data
        return data[:_MAC_START] + tokens._mac(data, cookie) + data[_MAC_END:]

    def packet(self, recordings: Sequence[bytes]) -> bytes:
        """Return a mutant of an inner packet; in most of them the lengths are right again."""
        random = self.random
        data = random.choice(recordings)
        if random.random() < 0.5:
            data = self.change(data, recordings)
        else:
            data = self.change_field(data, IPV6_FIELDS if data[:1] >= b"\x60" else IPV4_FIELDS)
        if random.random() < 0.7 and len(data) >= 40:
            if data[0] >> 4 == 6:
                data = data[:4] + (len(data) - 40).to_bytes(2) + data[6:]
            elif data[0] >> 4 == 4:
                data = data[:2] + len(data).to_bytes(2) + data[4:]
        return data

    def parameters(self, encoded: bytes) -> bytes:
        """Return a mutant of encoded key exchange parameters (rvpn.keyexchange.parameters)."""
        random = self.random
        if random.random() < 0.3:
            return self.change(encoded, [encoded])[:MAX_PAYLOAD]
        values = list(_split(encoded))
        for _ in range(random.choice((1, 1, 2))):
            place = random.randrange(len(values))
            kind, value = values[place]
            other = random.choice((kind, kind, random.randrange(7), 255))
            values[place : place + random.choice((0, 1, 1, 1, 1))] = [(other, self._value(value))]
        header = random.choice((0, 0, 0, 0, 0, 0, 1, -1, 0xFF00))
        encoded = b"".join(
            bytes([kind]) + ((len(value) + header) % (1 << 16)).to_bytes(2) + value for kind, value in values
        )
        return encoded[:MAX_PAYLOAD]

    def _value(self, value: bytes) -> bytes:
        chosen = self.random.random()
        if chosen < 0.4 and value:
            return self.number(value)
        if chosen < 0.7:
            return self.change(value, [value])
        return self.random.choice((b"", value + value, value * 40, b"\r\n\x1b[2J", "\u202e".encode(), b"no"))

    # --- changes that know no format --------------------------------------------------------------------

    def _flip(self, data: bytes, others: Sequence[bytes]) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 8)) if data else 0):
            changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def _truncate(self, data: bytes, others: Sequence[bytes]) -> bytes:
        return data[: self.random.randrange(len(data) + 1)]

    def _extend(self, data: bytes, others: Sequence[bytes]) -> bytes:
        return data + self.random.randbytes(self.random.choice((1, 2, 3, 16, 100, 1200)))

    def _splice(self, data: bytes, others: Sequence[bytes]) -> bytes:
        other = self.random.choice(others)
        return data[: self.random.randrange(len(data) + 1)] + other[self.random.randrange(len(other) + 1) :]

    def _overwrite(self, data: bytes, others: Sequence[bytes]) -> bytes:
        start = self.random.randrange(len(data) + 1)
        piece = self.random.choice((bytes(8), b"\xff" * 8, self.random.randbytes(4)))
        return data[:start] + piece + data[start + len(piece) :]

    def _cut_out(self, data: bytes, others: Sequence[bytes]) -> bytes:
        start = self.random.randrange(len(data) + 1)
        return data[:start] + data[start + self.random.choice((1, 2, 4, 40)) :]

    def _repeat(self, data: bytes, others: Sequence[bytes]) -> bytes:
        start = self.random.randrange(len(data) + 1)
        return data[: start + self.random.choice((1, 4, 40))] + data[start:]
