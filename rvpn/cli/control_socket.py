"""Asks a running service through its control socket: one connection, one line of JSON each way."""

import json
import socket
import time
from typing import Any

from rvpn.errors import LocalError

#: No answer is longer: the status of ten thousand sessions takes some 5 MiB.
LONGEST_ANSWER = 32 << 20


def ask(path: str, command: str, timeout: float = 5.0) -> dict[str, Any]:
    """
    Send `command` to the service that listens on `path` and return its answer, within `timeout` seconds.

    Raises `LocalError`, one sentence, if nobody listens, the service refuses or the answer is none.
    """
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            connection.sendall(json.dumps({"command": command}).encode() + b"\n")
            answer = json.loads(_receive_line(connection, deadline))
    except FileNotFoundError:
        raise LocalError(f"{path}: no such control socket: is the service running?") from None
    except ConnectionRefusedError:
        raise LocalError(f"{path}: nobody listens on this control socket: has the service died?") from None
    except PermissionError:
        raise LocalError(f"{path}: permission denied: only root or the service's user may ask it") from None
    except TimeoutError:
        raise LocalError(f"{path}: the service did not answer within {timeout:g} s") from None
    except OSError as error:
        raise LocalError(f"{path}: cannot ask the service: {error.strerror or error}") from None
    except ValueError:
        raise LocalError(f"{path}: found no JSON line, expected the answer of an rvpn service") from None
    if not isinstance(answer, dict):
        raise LocalError(f"{path}: found no JSON object, expected the answer of an rvpn service")
    if "error" in answer:
        raise LocalError(str(answer["error"]))
    return answer


def _receive_line(connection: socket.socket, deadline: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= LONGEST_ANSWER:
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(1 << 16)
        if not part:
            break
        line += part
    return bytes(line)
