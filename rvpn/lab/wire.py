"""
Messages between the laboratory's processes: a JSON object in a packet of a Unix socket, and descriptors.

Sockets are SOCK_SEQPACKET in a directory of mode 0700: a message is whole or absent, and its sender is ours.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvpn.errors import LocalError

#: A request holds at most an environment and a command line; the kernel takes some 200 KiB.
LONGEST_MESSAGE = 1 << 18
MOST_DESCRIPTORS = 3

Message = dict[str, Any]


def listen(path: Path) -> socket.socket:
    """Listen at `path`, which a dead process may have left behind. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(64)
    return listener


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """Connect to `path`. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(timeout)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def send(connection: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message. Raises OSError."""
    socket.send_fds(connection, [json.dumps(message).encode()], descriptors)


def receive(connection: socket.socket) -> tuple[Message, list[int]]:
    """
    Return the next message and the descriptors that came with it, which are the caller's to close.

    Raises EOFError when the other end has closed the connection, OSError if it fails.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, LONGEST_MESSAGE, MOST_DESCRIPTORS)
    if not data:
        raise EOFError
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    message: Message = json.loads(data)
    return message, descriptors


def say_ready() -> None:
    """Tell whoever started this process, and waits for a line on its standard output, that it is ready."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def ask(path: Path, message: Message, timeout: float = 10.0) -> Message:
    """Send one message to the process at `path` and return its answer. Raises `LocalError` for a refusal."""
    try:
        with connect(path, timeout) as connection:
            send(connection, message)
            answer, _ = receive(connection)
    except (OSError, EOFError) as error:
        raise LocalError(f"{path}: no answer: {str(error) or 'the connection was closed'}") from None
    if "error" in answer:
        raise LocalError(str(answer["error"]))
    return answer
