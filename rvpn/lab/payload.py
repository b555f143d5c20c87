"""What both ends of the laboratory's traffic know: ports, the header of a stream, data made from a seed."""

import hashlib
import random
import socket
from collections.abc import Iterator
from struct import Struct

HTTP_PORT, ECHO_PORT = 80, 7
BLOCK = 1 << 16
#: A stream begins with its size in bytes and whether it is to be sent back.
STREAM_HEADER = Struct("!Q?")


def blocks(size: int, seed: int) -> Iterator[bytes]:
    """Yield `size` bytes of random data, the same for the same seed."""
    source = random.Random(seed)  # noqa: S311 (test data, not secrets)
    for start in range(0, size, BLOCK):
        yield source.randbytes(min(BLOCK, size - start))


def digest(size: int, seed: int) -> str:
    """Return the SHA-256 of `blocks(size, seed)` in hexadecimal."""
    value = hashlib.sha256()
    for block in blocks(size, seed):
        value.update(block)
    return value.hexdigest()


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes, fewer if the other end closed. Raises OSError."""
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data
