"""
Load for the benchmark: TCP as fast as it goes, the most datagrams that nearly all arrive, and round trips.

    python -m rvpn.lab.load serve           in the target: says "ready", serves until it is killed
    python -m rvpn.lab.load tcp ADDRESS     in the client: streams to the target, or from it with --down
    python -m rvpn.lab.load udp ADDRESS     datagrams to the target (rvpn.lab.search)
    python -m rvpn.lab.load ping ADDRESS    ICMP echo at fixed times, or each as the last is answered

Each prints one line of JSON. Every transfer has a TCP connection, which begins with `_REQUEST`. Bytes are
counted by whoever receives them. Datagrams go to a socket of the transfer's own, whose port the target tells,
and whose count it tells when the client has sent a byte.
"""

import argparse
import json
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from struct import Struct
from typing import Any, NamedTuple

from rvpn.arguments import Parser
from rvpn.errors import LocalError
from rvpn.interfaces import IPAddress
from rvpn.lab import wire
from rvpn.lab.echo import EchoSocket
from rvpn.lab.payload import receive_exactly
from rvpn.lab.search import Rates, Search

PORT = 5301
#: Seconds of a TCP stream that are not counted, in which it finds its speed.
WARM_UP = 0.3
#: Seconds without any progress after which a measurement is given up.
PATIENCE = 10.0
_UP, _DOWN, _DATAGRAMS = range(3)
_REQUEST = Struct("!Bd")
_COUNT = Struct("!Qd")
_PORT = Struct("!H")
_BLOCK = 1 << 18
_BUFFER = 4 << 20
#: Seconds between two bursts of datagrams: what many programs that pace have.
_TICK = 0.001
#: Seconds to wait for the answer to a ping.
_PING_TIME = 0.2
#: Seconds for the last datagrams to arrive.
_SETTLING = 0.15


class Received(NamedTuple):
    """What one end received: bytes in all, and bytes per second after the warm-up."""

    octets: int
    rate: float


# --- TCP -----------------------------------------------------------------------------------------


def send_for(connection: socket.socket, seconds: float) -> None:
    """Send as fast as the other end takes it, for `seconds`, and then its end. Raises OSError."""
    block, end = bytes(_BLOCK), time.monotonic() + seconds
    while time.monotonic() < end:
        connection.send(block)
    connection.shutdown(socket.SHUT_WR)


def receive_all(connection: socket.socket, seconds: float) -> Received:
    """
    Receive until the other end closes, and rate what came in `seconds` after the warm-up.

    Raises OSError.
    """
    buffer = memoryview(bytearray(_BLOCK))
    octets = before = after = 0
    start = begun = ended = time.monotonic()
    while size := connection.recv_into(buffer):
        octets, now = octets + size, time.monotonic()
        if now < start + WARM_UP:
            before, begun = octets, now
        elif now < start + WARM_UP + seconds:
            after, ended = octets, now
    return Received(octets, (after - before) / max(ended - begun, 1e-3) if after else 0.0)


def _take(connection: socket.socket, layout: Struct) -> tuple[Any, ...]:
    """Receive a message. Raises OSError if the other end closes first."""
    data = receive_exactly(connection, layout.size)
    if len(data) < layout.size:
        raise ConnectionError("the other end closed the connection")
    return layout.unpack(data)


def _connect(address: IPAddress, kind: int, seconds: float) -> socket.socket:
    connection = socket.create_connection((str(address), PORT), timeout=PATIENCE)
    connection.sendall(_REQUEST.pack(kind, seconds))
    return connection


def _one_stream(address: IPAddress, seconds: float, down: bool) -> Received:
    with _connect(address, _DOWN if down else _UP, seconds) as connection:
        if down:
            return receive_all(connection, seconds)
        send_for(connection, WARM_UP + seconds)
        return Received(*_take(connection, _COUNT))


def streams(address: IPAddress, number: int, seconds: float, down: bool) -> dict[str, float]:
    """
    Return bits per second of `number` streams at a time, and the bytes that passed, warm-up included.

    Raises OSError if one fails.
    """
    done: list[Received] = []

    def run() -> None:
        with suppress(OSError):
            done.append(_one_stream(address, seconds, down))

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) < number:
        raise OSError(f"{number - len(done)} of {number} streams failed")
    return {"bits_per_s": 8 * sum(each.rate for each in done), "bytes": sum(each.octets for each in done)}


# --- Datagrams -----------------------------------------------------------------------------------


def send_datagrams(sender: socket.socket, size: int, seconds: float, rate: float | None) -> float:
    """
    Send for `seconds`, at `rate` per second in small bursts or as fast as it goes; return the rate reached.

    What the own host refuses to take counts as sent.
    """
    datagram, sent = bytes(size), 0
    start = now = time.monotonic()
    while now < start + seconds:
        due = sent + 64 if rate is None else int((now + _TICK - start) * rate)
        for _ in range(due - sent):
            with suppress(OSError):
                sender.send(datagram)
        sent, now = max(sent, due), time.monotonic()
        if rate is not None and now < start + sent / rate:
            time.sleep(start + sent / rate - now)
            now = time.monotonic()
    return sent / (now - start)


def count_datagrams(receiver: socket.socket, until: socket.socket) -> int:
    """Return how many datagrams came before a byte on `until`."""
    buffer, count = bytearray(1 << 16), 0
    receiver.setblocking(False)
    while True:
        readable = select.select([receiver, until], [], [], PATIENCE)[0]
        with suppress(BlockingIOError):
            while True:
                receiver.recv_into(buffer)
                count += 1
        if receiver not in readable:
            return count


def _trial(address: IPAddress, size: int, seconds: float, rate: float | None) -> Rates:
    with _connect(address, _DATAGRAMS, seconds) as control:
        (port,) = _take(control, _PORT)
        with socket.socket(control.family, socket.SOCK_DGRAM) as sender:
            sender.connect((str(address), port))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            begun = time.monotonic()
            sent = send_datagrams(sender, size, seconds, rate)
            elapsed = time.monotonic() - begun
        time.sleep(_SETTLING)
        control.sendall(b"\0")
        count, _ = _take(control, _COUNT)
    return Rates(sent, count / elapsed)


def datagrams(address: IPAddress, size: int, seconds: float, flood: bool) -> dict[str, object]:
    """
    Search for the most datagrams of `size` bytes per second that nearly all arrive, `seconds` for each trial.

    With `flood` there is one trial, as fast as it goes, and whatever arrives counts. Raises OSError if the
    target cannot be asked.
    """
    trials = [_trial(address, size, seconds, None)]
    search = Search(trials[0])
    if flood:
        return {"per_s": trials[0].received}
    while not search.done:
        trials.append(_trial(address, size, seconds, search.next_rate))
        search.add(trials[-1])
    return {"per_s": search.best, "trials": [[round(each.sent), round(each.received)] for each in trials]}


# --- Round trips ---------------------------------------------------------------------------------


def round_trips(address: IPAddress, seconds: float, interval: float) -> dict[str, object]:
    """
    Return median and 99th percentile in milliseconds of pings for some time, one each `interval` seconds.

    With an interval of 0 each is sent as the last is answered. Raises OSError if none is answered.
    """
    echo, times, number = EchoSocket(address), list[float](), 0
    start = time.monotonic()
    while (now := time.monotonic()) < start + seconds:
        with suppress(OSError):  # a full queue: this ping has no answer
            echo.send(number)
        times += _replies(echo, start + (number + 1) * interval if interval else now + _PING_TIME, number)
        if interval:
            time.sleep(max(0.0, start + (number + 1) * interval - time.monotonic()))
        number += 1
    times += _replies(echo, time.monotonic() + _PING_TIME, number - 1)
    if not times:
        raise OSError("no ping was answered")
    times.sort()
    return {
        "p50": round(statistics.median(times), 4),
        "p99": round(times[len(times) * 99 // 100], 4),
        "lost": number - len(times),
    }


def _replies(echo: EchoSocket, until: float, last: int) -> Iterator[float]:
    """Yield the round trips in milliseconds of pings until some time, or the answer to number `last`."""
    while (left := until - time.monotonic()) > 0:
        if select.select([echo], [], [], left)[0] and (reply := echo.receive()) is not None:
            yield (reply.received - reply.sent) / 1e6
            if reply.number == last:
                return


# --- The target ----------------------------------------------------------------------------------


def _answer(connection: socket.socket) -> None:
    kind, seconds = _take(connection, _REQUEST)
    if kind == _UP:
        connection.sendall(_COUNT.pack(*receive_all(connection, seconds)))
    elif kind == _DOWN:
        send_for(connection, WARM_UP + seconds)
        receive_exactly(connection, 1)  # until the other end has it all
    else:
        with socket.socket(connection.family, socket.SOCK_DGRAM) as receiver:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            receiver.bind(("", 0))
            connection.sendall(_PORT.pack(receiver.getsockname()[1]))
            connection.sendall(_COUNT.pack(count_datagrams(receiver, connection), 0.0))


def _serve_one(connection: socket.socket) -> None:
    with connection, suppress(OSError):  # the other end sees it fail and reports it
        connection.settimeout(PATIENCE)
        _answer(connection)


def serve() -> None:
    """Serve on all addresses until killed; says when it is ready."""
    with socket.create_server(("", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        wire.say_ready()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


# --- Command line --------------------------------------------------------------------------------


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rvpn.lab.load", description="Load for the benchmark.")
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)
    tools.add_parser("serve", help="the other end of the rest")
    for name, help_text in (("tcp", "streams"), ("udp", "datagrams"), ("ping", "ICMP echo")):
        tool = tools.add_parser(name, help=help_text)
        tool.add_argument("address", type=ip_address, metavar="ADDRESS")
    tcp, udp, ping = (tools.choices[name] for name in ("tcp", "udp", "ping"))
    for tool in (tcp, udp, ping):
        tool.add_argument("--seconds", type=float, required=True, metavar="S", help="of each measurement")
    tcp.add_argument("--streams", type=int, default=1, metavar="N", help="at a time (default: 1)")
    tcp.add_argument("--down", action="store_true", help="from the target")
    udp.add_argument("--size", type=int, required=True, metavar="BYTES", help="of a datagram's payload")
    udp.add_argument("--flood", action="store_true", help="as fast as it goes, without a search")
    ping.add_argument("--interval", type=float, default=0.0, metavar="S", help="0: as they are answered")
    return parser.parse_args(words)


_TOOLS: dict[str, Callable[[argparse.Namespace], object]] = {
    "tcp": lambda chosen: streams(chosen.address, chosen.streams, chosen.seconds, chosen.down),
    "udp": lambda chosen: datagrams(chosen.address, chosen.size, chosen.seconds, chosen.flood),
    "ping": lambda chosen: round_trips(chosen.address, chosen.seconds, chosen.interval),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one tool; return its exit code."""
    chosen = _arguments(words)
    if chosen.tool == "serve":
        serve()
    try:
        figures = _TOOLS[chosen.tool](chosen)
    except (OSError, LocalError) as error:
        sys.stderr.write(f"{chosen.tool} {chosen.address}: {error}\n")
        return 2
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
