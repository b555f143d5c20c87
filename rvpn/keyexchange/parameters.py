"""
The codec of `Parameters`, which travel inside the authenticated part of every key exchange (DESIGN 4).

A sequence of type (1 byte), length (2 bytes, big-endian) and value:

    0  padding          zero bytes, so that a first message is no shorter than its answer
    1  SPI              4 bytes
    2  transforms       2 bytes each, in order of preference
    3  inner addresses  IP version (1 byte) and 4 or 16 bytes each
    4  lifetime         8 bytes, in milliseconds
    5  refusal          printable UTF-8, at most `MAX_REFUSAL` bytes
    6  status           1 byte, absent for ok
    7  shortest defer   4 bytes, in milliseconds
    8  lost-key token   16 bytes
    9  heartbeats       1 byte: 1 for the literal ones, absent for authenticated ones
    10 capabilities     1 byte of bits: 1 for taking partial checksums, 2 for taking trains; absent for none

Each type occurs at most once. Unknown types and transforms are skipped: that is the room for later
versions.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum, unique
from ipaddress import IPv4Address, IPv6Address

from rvpn.constants import MAX_SPI, MIN_SPI, TransformID
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import IPAddress, Parameters
from rvpn.session.session_control import Status

#: Bytes of encoded parameters that are accepted.
MAX_PARAMETERS = 1024
MAX_TRANSFORMS = 16
MAX_ADDRESSES = 8
MAX_REFUSAL = 128
TOKEN_LENGTH = 16
#: Bytes to which the initiator pads: more than any answer needs.
INITIATOR_LENGTH = 320

_HEADER = struct.Struct("!BH")
_MILLISECONDS = 1000
#: The bits of the capabilities; others are those of later versions.
_PARTIAL_CHECKSUMS, _TRAINS = 1, 2
_KNOWN_TRANSFORMS = frozenset(TransformID)


@unique
class _Type(IntEnum):
    PADDING = 0
    SPI = 1
    TRANSFORMS = 2
    INNER_ADDRESSES = 3
    LIFETIME = 4
    REFUSAL = 5
    STATUS = 6
    SHORTEST_DEFER = 7
    LOST_KEY_TOKEN = 8
    LITERAL_HEARTBEATS = 9
    CAPABILITIES = 10


def encode(parameters: Parameters, at_least: int = 0) -> bytes:
    """
    Return the encoding, padded to `at_least` bytes (or up to two more: an empty padding takes three).

    A refusal too long is cut.
    """
    values = {
        _Type.SPI: parameters.spi.to_bytes(4, "big"),
        _Type.TRANSFORMS: b"".join(transform.to_bytes(2, "big") for transform in parameters.transforms),
        _Type.INNER_ADDRESSES: b"".join(bytes([a.version]) + a.packed for a in parameters.inner_addresses),
        _Type.LIFETIME: _milliseconds(parameters.lifetime, 8),
        _Type.STATUS: bytes([parameters.status]) if parameters.status else b"",
        _Type.SHORTEST_DEFER: _milliseconds(parameters.shortest_defer, 4),
        _Type.LOST_KEY_TOKEN: parameters.lost_key_token,
        _Type.LITERAL_HEARTBEATS: b"\1" if parameters.literal_heartbeats else b"",
        _Type.CAPABILITIES: bytes([capabilities]) if (capabilities := _capabilities(parameters)) else b"",
        _Type.REFUSAL: parameters.refusal.encode()[:MAX_REFUSAL].decode(errors="ignore").encode(),
    }
    encoded = b"".join(_HEADER.pack(kind, len(value)) + value for kind, value in values.items() if value)
    missing = at_least - len(encoded)
    if missing > 0:
        padding = bytes(max(0, missing - _HEADER.size))
        encoded += _HEADER.pack(_Type.PADDING, len(padding)) + padding
    return encoded


def decode(data: bytes) -> Parameters:
    """Read what `encode` wrote. Raises RemoteError(MALFORMED_KEY_EXCHANGE) on anything else."""
    if len(data) > MAX_PARAMETERS:
        raise _malformed("too long")
    values = dict(_values(data))
    refusal = _refusal(values.get(_Type.REFUSAL, b""))
    spi = int.from_bytes(_sized(values.get(_Type.SPI, b""), 4, "SPI"), "big")
    if not MIN_SPI <= spi <= MAX_SPI and not refusal:
        raise _malformed("SPI out of range")
    lifetime = int.from_bytes(_sized(values.get(_Type.LIFETIME, bytes(8)), 8, "lifetime"), "big")
    (capabilities,) = _sized(values.get(_Type.CAPABILITIES, b"\0"), 1, "capabilities")
    return Parameters(
        spi=spi,
        transforms=_transforms(values.get(_Type.TRANSFORMS, b"")),
        inner_addresses=tuple(_addresses(values.get(_Type.INNER_ADDRESSES, b""))),
        lifetime=lifetime / _MILLISECONDS,
        refusal=refusal,
        status=_status(values.get(_Type.STATUS, b"\0")),
        shortest_defer=int.from_bytes(_sized(values.get(_Type.SHORTEST_DEFER, bytes(4)), 4, "shortest defer"))
        / _MILLISECONDS,
        lost_key_token=values.get(_Type.LOST_KEY_TOKEN, b"")[:TOKEN_LENGTH],
        literal_heartbeats=values.get(_Type.LITERAL_HEARTBEATS) == b"\1",
        partial_checksums=bool(capabilities & _PARTIAL_CHECKSUMS),
        trains=bool(capabilities & _TRAINS),
    )


def _capabilities(parameters: Parameters) -> int:
    return _PARTIAL_CHECKSUMS * parameters.partial_checksums | _TRAINS * parameters.trains


def _milliseconds(seconds: float, size: int) -> bytes:
    """Return the encoding of a time, empty for none."""
    return round(seconds * _MILLISECONDS).to_bytes(size, "big") if seconds else b""


def _status(value: bytes) -> int:
    """Read a status; one of a later version is taken for the worst."""
    return min(_sized(value, 1, "status")[0], max(Status))


def _malformed(what: str) -> RemoteError:
    return RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, f"parameters: {what}")


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    seen = set()
    offset = 0
    while offset < len(data):
        start = offset + _HEADER.size
        if start > len(data):
            raise _malformed("cut short")
        kind, length = _HEADER.unpack_from(data, offset)
        offset = start + length
        if offset > len(data):
            raise _malformed("cut short")
        if kind in seen:
            raise _malformed("duplicate type")
        seen.add(kind)
        yield kind, data[start:offset]


def _sized(value: bytes, size: int, name: str) -> bytes:
    if len(value) != size:
        raise _malformed(f"{name} of {len(value)} bytes")
    return value


def _transforms(value: bytes) -> tuple[TransformID, ...]:
    if len(value) % 2 or len(value) > 2 * MAX_TRANSFORMS:
        raise _malformed("transforms")
    numbers = [int.from_bytes(value[i : i + 2], "big") for i in range(0, len(value), 2)]
    return tuple(TransformID(number) for number in numbers if number in _KNOWN_TRANSFORMS)


def _addresses(value: bytes) -> Iterator[IPAddress]:
    found = 0
    while value:
        version, size = value[0], {4: 4, 6: 16}.get(value[0], 0)
        packed, value = value[1 : 1 + size], value[1 + size :]
        found += 1
        if not size or len(packed) != size or found > MAX_ADDRESSES:
            raise _malformed("inner addresses")
        yield IPv4Address(packed) if version == 4 else IPv6Address(packed)


def _refusal(value: bytes) -> str:
    """Read text that may go to a log: no control character forges a line there."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise _malformed("refusal is not UTF-8") from None
    if len(value) > MAX_REFUSAL or not text.isprintable():
        raise _malformed("refusal is too long or not printable")
    return text
