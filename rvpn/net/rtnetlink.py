"""
Requests to the kernel's routing socket, and its answers, in the layout of rtnetlink(7).

    request(kind, flags, fixed part + attributes) -> `RoutingSocket` -> [`Message`], or OSError with its errno

A message is an nlmsghdr, a fixed part that depends on its kind, and attributes, all in host byte order
(linux/netlink.h, linux/rtnetlink.h, linux/fib_rules.h).
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from enum import IntEnum, unique
from itertools import count
from typing import NamedTuple


@unique
class Kind(IntEnum):
    """What a message is about."""

    NEW_LINK, DELETE_LINK, GET_LINK = 16, 17, 18
    NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
    NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
    NEW_RULE, DELETE_RULE = 32, 33
    NEW_LINK_PROPERTY = 108


HEADER = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")  # length, kind
LINK = struct.Struct("=BxHiII")  # family, hardware, index, flags, mask
ADDRESS = struct.Struct("=BBBBI")  # family, length, flags, scope, index
ROUTE = struct.Struct("=8BI")  # family, lengths of both networks, TOS, table, protocol, scope, type, flags
RULE = struct.Struct("=8BI")  # family, lengths of both networks, TOS, table, two reserved, action, flags
HOP = struct.Struct("=HBBi")  # length, flags, weight, index

#: Flags of requests.
CREATE, EXCLUSIVE, DUMP = 0x400, 0x200, 0x300
_REQUEST, _ACKNOWLEDGE, _INTERRUPTED = 0x1, 0x4, 0x10
_ERROR, _DONE = 2, 3
_LAYOUTS = {Kind.NEW_LINK: LINK, Kind.NEW_ADDRESS: ADDRESS, Kind.NEW_ROUTE: ROUTE}
#: Seconds for the kernel to answer, which it does at once; how often a list that changes meanwhile is read.
_PATIENCE, _ATTEMPTS = 5.0, 5
_LARGEST = 1 << 16
_KIND_MASK, _ORDER = 0x3FFF, sys.byteorder


class Message(NamedTuple):
    """An answer: the numbers of its fixed part, and its attributes by kind; of several the last."""

    fixed: tuple[int, ...]
    attributes: dict[int, bytes]


def attribute(kind: int, value: bytes | str | int) -> bytes:
    """Return an attribute: bytes as they are, a name with its final zero, a number of 32 bits."""
    if isinstance(value, int):
        value = value.to_bytes(4, _ORDER)
    elif isinstance(value, str):
        value = value.encode(errors="surrogateescape") + b"\0"
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(aligned(length) - length)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return attributes by their kind; the flags in its highest bits are left out."""
    found, start = {}, 0
    while start + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, start)
        found[kind & _KIND_MASK] = data[start + ATTRIBUTE.size : start + length]
        start += max(aligned(length), ATTRIBUTE.size)
    return found


def number(value: bytes | None) -> int | None:
    """Read an attribute that is a number; None if it is missing."""
    return None if value is None else int.from_bytes(value, _ORDER)


def text(value: bytes) -> str:
    """Read an attribute that is a name."""
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def hops(data: bytes) -> list[tuple[int, dict[int, bytes]]]:
    """Return the next hops of a route that has several: the index of the device, and attributes."""
    found, start = [], 0
    while start + HOP.size <= len(data):
        length, _, _, index = HOP.unpack_from(data, start)
        found.append((index, attributes(data[start + HOP.size : start + length])))
        start += max(aligned(length), HOP.size)
    return found


def aligned(length: int) -> int:
    """Return where the next message or attribute begins."""
    return (length + 3) & ~3


class RoutingSocket:
    """An rtnetlink socket in the network namespace in which it was made. Every method raises OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE)
        self._socket.bind((0, 0))
        self._sequences = count(1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: Kind, flags: int, body: bytes) -> list[Message]:
        """Make one request, and return what the kernel answers beside its consent."""
        for _ in range(_ATTEMPTS):
            sequence = next(self._sequences)
            flags |= _REQUEST | (0 if flags & DUMP == DUMP else _ACKNOWLEDGE)
            header = HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0)
            self._socket.send(header + body)
            try:
                return list(self._answers(sequence))
            except InterruptedError:
                continue
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _answers(self, sequence: int) -> Iterator[Message]:
        """Yield the answers to one request, until the kernel says that it has done it."""
        interrupted = False
        while True:
            for kind, flags, answered, body in _messages(self._socket.recv(_LARGEST)):
                if answered != sequence:
                    continue  # of a request that was given up
                interrupted |= bool(flags & _INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    _raise(-int.from_bytes(body[:4], _ORDER, signed=True))
                    if interrupted:
                        raise InterruptedError
                    return
                layout = _LAYOUTS[Kind(kind)]
                yield Message(layout.unpack_from(body), attributes(body[layout.size :]))


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield kind, flags, sequence and body of each message."""
    start = 0
    while start + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
        yield kind, flags, sequence, data[start + HEADER.size : start + length]
        start += max(aligned(length), HEADER.size)


def _raise(code: int) -> None:
    if code > 0:
        raise OSError(code, os.strerror(code))
