"""
WireGuard in a node of the laboratory: configures a running `wireguard-go` through its own control socket.

    python -m rvpn.lab.wireguard INTERFACE FILE

The file has lines of `key=value` in the order that the socket takes (the cross-platform userspace
interface of WireGuard). No other program of WireGuard's is needed for that.
"""

import socket
import sys
import time
from pathlib import Path

DIRECTORY = Path("/run/wireguard")
#: Seconds for the socket to appear.
_START_TIME = 10.0
_POLL = 0.02


def configure(interface: str, configuration: str) -> str:
    """Wait for the interface's socket, send the configuration, and return the answer. Raises OSError."""
    path = DIRECTORY / f"{interface}.sock"
    end = time.monotonic() + _START_TIME
    while not path.exists() and time.monotonic() < end:
        time.sleep(_POLL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_START_TIME)
        connection.connect(str(path))
        connection.sendall(f"set=1\n{configuration}\n".encode())
        return connection.recv(1024).decode().strip()


def main() -> int:
    """Configure the interface that is named; the exit code is 0 if it took that."""
    answer = configure(sys.argv[1], Path(sys.argv[2]).read_text())
    sys.stderr.write(f"{answer}\n")
    return 0 if answer == "errno=0" else 1


if __name__ == "__main__":
    sys.exit(main())
