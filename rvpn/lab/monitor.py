"""
Continuous traffic that records every arrival: what trials of failover and the demonstration measure by.

    python -m rvpn.lab.monitor ping ADDRESS FILE       ICMP echo at fixed times; each reply
    python -m rvpn.lab.monitor transfer ADDRESS FILE   data over TCP at a fixed rate, sent back and compared
    python -m rvpn.lab.monitor send ADDRESS            numbered datagrams, one way, at fixed times
    python -m rvpn.lab.monitor receive ADDRESS FILE    each of them; ADDRESS is the receiver's own

Each says "ready" and goes on until it is killed. A record (`rvpn.lab.records`) is written at once, so that
the file can be read at any time. It is meant to run inside a node of the laboratory, as its root.
"""

import itertools
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO

from rvpn.arguments import Parser
from rvpn.interfaces import IPAddress
from rvpn.lab import wire
from rvpn.lab.echo import STAMP, EchoSocket
from rvpn.lab.payload import ECHO_PORT, STREAM_HEADER, blocks
from rvpn.lab.records import Arrival, Progress, pack

PING_INTERVAL = 0.005
#: Bytes per second of a transfer, in each direction: far below what the tunnel carries, so that pings are
#: not kept waiting, and enough to be in flight whenever something happens.
RATE = 500_000
STREAM_PORT = 9000
_TICK = 0.005
_CONNECT_TIME = 5.0
#: More than any transfer will send.
_ENDLESS = 1 << 50


def every(interval: float, act: Callable[[int], None], wait: Callable[[float], None] = time.sleep) -> None:
    """Call `act` with 0, 1, 2... at fixed times for ever, and `wait` with the seconds between."""
    start = time.monotonic()
    for number in itertools.count():
        while (left := start + number * interval - time.monotonic()) > 0:
            wait(left)
        act(number)


def ping(address: IPAddress, file: BinaryIO, interval: float) -> None:
    """Ping, and record each reply."""
    echo = EchoSocket(address)

    def send(number: int) -> None:
        with suppress(OSError):  # no route or no buffer: this ping has no answer
            echo.send(number)

    def receive(seconds: float) -> None:
        if select.select([echo], [], [], seconds)[0] and (reply := echo.receive()) is not None:
            file.write(pack(Arrival(reply.number, reply.sent / 1e9, reply.received / 1e9)))

    wire.say_ready()
    every(interval, send, receive)


def send(address: IPAddress, interval: float) -> None:
    """Send datagrams that nobody answers."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sender:

        def datagram(number: int) -> None:
            with suppress(OSError):
                sender.sendto(STAMP.pack(number, time.monotonic_ns()), (str(address), STREAM_PORT))

        wire.say_ready()
        every(interval, datagram)


def receive(address: IPAddress, file: BinaryIO) -> None:
    """Record each datagram of `send`; nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((str(address), STREAM_PORT))
        wire.say_ready()
        while True:
            number, sent = STAMP.unpack_from(receiver.recv(1 << 16))
            file.write(pack(Arrival(number, sent / 1e9, time.monotonic())))


# --- TCP -----------------------------------------------------------------------------------------


class Data:
    """The bytes of one connection, in order, to be sent or to be compared with."""

    def __init__(self, seed: int) -> None:
        self._blocks = blocks(_ENDLESS, seed)
        self._buffer = b""

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        while len(self._buffer) < size:
            self._buffer += next(self._blocks)
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


class Transfer:
    """A TCP connection to the echo server that is kept busy; one that breaks is counted and replaced."""

    def __init__(self, address: IPAddress, file: BinaryIO, rate: float) -> None:
        self._address, self._file, self._chunk = address, file, max(1, int(rate * _TICK))
        self._verified = self._wrong = self._broken = 0

    def run(self) -> None:
        """Transfer for ever."""
        wire.say_ready()
        for seed in itertools.count():
            try:
                with socket.create_connection((str(self._address), ECHO_PORT), _CONNECT_TIME) as connection:
                    connection.sendall(STREAM_HEADER.pack(_ENDLESS, True))
                    connection.setblocking(False)
                    self._exchange(connection, seed)
            except OSError:
                self._broken += 1
                self._record()
                time.sleep(_TICK)

    def _exchange(self, connection: socket.socket, seed: int) -> None:
        """Send and compare until the connection breaks. Raises OSError."""
        outbound, inbound = Data(seed), Data(seed)
        pending = b""

        def write(_number: int) -> None:
            nonlocal pending
            pending = pending or outbound.take(self._chunk)
            with suppress(BlockingIOError):
                pending = pending[connection.send(pending) :]

        def read(seconds: float) -> None:
            if not select.select([connection], [], [], seconds)[0]:
                return
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._compare(data, inbound.take(len(data)))

        every(_TICK, write, read)

    def _compare(self, data: bytes, expected: bytes) -> None:
        wrong = 0 if data == expected else sum(map(int.__ne__, data, expected))
        self._wrong += wrong
        self._verified += len(data) - wrong
        self._record()

    def _record(self) -> None:
        self._file.write(pack(Progress(time.monotonic(), self._verified, self._wrong, self._broken)))


# --- Command line --------------------------------------------------------------------------------


def main() -> None:
    """Run one tool until this process is killed."""
    parser = Parser(prog="python -m rvpn.lab.monitor")
    parser.add_argument("tool", choices=("ping", "transfer", "send", "receive"))
    parser.add_argument("address", type=ip_address)
    parser.add_argument("file", type=Path, nargs="?", default="/dev/null", help="for the records")
    parser.add_argument("--interval", type=float, default=PING_INTERVAL, help="seconds between packets")
    parser.add_argument("--rate", type=float, default=RATE, help="bytes per second in each direction")
    chosen = parser.parse_args()
    with chosen.file.open("ab", buffering=0) as file:
        if chosen.tool == "ping":
            ping(chosen.address, file, chosen.interval)
        elif chosen.tool == "transfer":
            Transfer(chosen.address, file, chosen.rate).run()
        elif chosen.tool == "send":
            send(chosen.address, chosen.interval)
        else:
            receive(chosen.address, file)


if __name__ == "__main__":
    main()
