"""
Traffic for the laboratory: ping, HTTP, TCP and UDP, with checksums at both ends and results as JSON.

    python -m rvpn.lab.traffic ping ADDRESS          ICMP echo, down to an interval of a few milliseconds
    python -m rvpn.lab.traffic fetch ADDRESS         a file over HTTP
    python -m rvpn.lab.traffic stream ADDRESS        random data over TCP, and back with --echo
    python -m rvpn.lab.traffic udp ADDRESS           numbered datagrams, echoed

Each prints one line of JSON and exits with 0 if everything arrived as it was sent, 1 if not, 2 if nothing
could be measured. Data is made from a seed, so both ends know what it must be; `rvpn.lab.servers` is the
other end. It is meant to run inside a node of the laboratory, as its root.
"""

import argparse
import hashlib
import http.client
import json
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from ipaddress import ip_address
from typing import Any

from rvpn.arguments import Parser
from rvpn.interfaces import IPAddress
from rvpn.lab.echo import STAMP, EchoSocket
from rvpn.lab.payload import BLOCK, ECHO_PORT, HTTP_PORT, STREAM_HEADER, blocks, digest, receive_exactly

MOST_GAPS = 100

Result = dict[str, Any]


# --- Ping ----------------------------------------------------------------------------------------


class Pinger:
    """Sends ICMP echo requests at fixed times and counts what comes back, in one thread."""

    def __init__(self, address: IPAddress, count: int, interval: float, size: int) -> None:
        self._address, self._count, self._interval = address, count, interval
        self._socket = EchoSocket(address, size)
        self._times: dict[int, float] = {}  # round trips in seconds by sequence
        self._duplicates = self._send_errors = 0

    def run(self, wait: float) -> Result:
        """Ping, wait at most `wait` seconds for the last answers, and return the figures."""
        start = time.monotonic()
        for sequence in range(self._count):
            self._receive_until(start + sequence * self._interval)
            self._send(sequence)
        last = time.monotonic() + wait
        while len(self._times) + self._send_errors < self._count and time.monotonic() < last:
            self._receive_until(min(last, time.monotonic() + 0.01))
        return self._result()

    def _send(self, sequence: int) -> None:
        try:
            self._socket.send(sequence)
        except OSError:
            self._send_errors += 1

    def _receive_until(self, when: float) -> None:
        while (left := when - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                self._receive()

    def _receive(self) -> None:
        reply = self._socket.receive()
        if reply is None:
            return
        if reply.number in self._times:
            self._duplicates += 1
        else:
            self._times[reply.number] = (reply.received - reply.sent) / 1e9

    def _result(self) -> Result:
        gaps = list(_gaps(self._times, self._count))
        return {
            "address": str(self._address),
            "sent": self._count,
            "received": len(self._times),
            "lost": self._count - len(self._times),
            "duplicates": self._duplicates,
            "send_errors": self._send_errors,
            "gaps": gaps[:MOST_GAPS],
            "longest_gap": max((last - first + 1 for first, last in gaps), default=0) * self._interval,
            "rtt": _summary(list(self._times.values())),
        }


def _gaps(answered: dict[int, float], count: int) -> Iterator[tuple[int, int]]:
    """Yield first and last sequence number of each run without an answer."""
    first = None
    for sequence in range(count + 1):
        if sequence < count and sequence not in answered:
            first = sequence if first is None else first
        elif first is not None:
            yield first, sequence - 1
            first = None


def _summary(seconds: list[float]) -> Result | None:
    """Return minimum, median, 99th percentile and maximum in milliseconds, None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    figures = {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max": ordered[-1],
    }
    return {name: round(value * 1e3, 3) for name, value in figures.items()}


# --- UDP -----------------------------------------------------------------------------------------


class UDPStream:
    """Sends numbered datagrams to the echo port at fixed times, and counts what returns in what order."""

    def __init__(self, address: IPAddress, count: int, interval: float, size: int) -> None:
        self._count, self._interval, self._size = count, interval, size
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.connect((str(address), ECHO_PORT))
        self._socket.setblocking(False)
        self._seen: set[int] = set()
        self._latest = -1
        self._duplicates = self._reordered = self._send_errors = 0

    def run(self, wait: float) -> Result:
        """Send, wait at most `wait` seconds for the last datagrams, and return the figures."""
        start = time.monotonic()
        for number in range(self._count):
            self._receive_until(start + number * self._interval)
            self._send(number)
        self._receive_until(time.monotonic() + wait)
        return {
            "sent": self._count,
            "received": len(self._seen),
            "lost": self._count - len(self._seen),
            "duplicates": self._duplicates,
            "reordered": self._reordered,
            "send_errors": self._send_errors,
        }

    def _send(self, number: int) -> None:
        try:
            self._socket.send(STAMP.pack(number, time.monotonic_ns()).ljust(self._size, b"\0"))
        except OSError:
            self._send_errors += 1

    def _receive_until(self, when: float) -> None:
        while len(self._seen) < self._count and (left := when - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                self._receive()

    def _receive(self) -> None:
        try:
            number, _ = STAMP.unpack_from(self._socket.recv(1 << 16))
        except OSError:
            return  # an ICMP error; the datagram counts as lost
        self._duplicates += number in self._seen
        self._reordered += number < self._latest
        self._seen.add(number)
        self._latest = max(self._latest, number)


# --- Clients -------------------------------------------------------------------------------------


def fetch(address: IPAddress, size: int, seed: int, timeout: float) -> Result:
    """Fetch a file over HTTP and compare its SHA-256. Raises OSError if the server cannot be reached."""
    value, received, start = hashlib.sha256(), 0, time.monotonic()
    connection = http.client.HTTPConnection(str(address), HTTP_PORT, timeout=timeout)
    with closing(connection):
        connection.request("GET", f"/{size}/{seed}")
        answer = connection.getresponse()
        while block := answer.read(BLOCK):
            value.update(block)
            received += len(block)
    elapsed = time.monotonic() - start
    return _transfer(received, elapsed, value.hexdigest(), digest(size, seed))


def stream(address: IPAddress, size: int, seed: int, timeout: float, echo: bool) -> Result:
    """
    Send random data over TCP; the server answers with the SHA-256 of what it got, after the data itself if
    `echo`.

    Raises OSError if the connection fails.
    """
    start = time.monotonic()
    with socket.create_connection((str(address), ECHO_PORT), timeout=timeout) as connection:
        sender = threading.Thread(target=_send_stream, args=(connection, size, seed, echo), daemon=True)
        sender.start()
        echoed, left = hashlib.sha256(), size if echo else 0
        while left and (block := connection.recv(min(BLOCK, left))):
            echoed.update(block)
            left -= len(block)
        answer = receive_exactly(connection, echoed.digest_size)
        sender.join(timeout)
    elapsed, expected = time.monotonic() - start, digest(size, seed)
    result = _transfer(size, elapsed, answer.hex(), expected)
    if echo:
        result["echoed_sha256"] = echoed.hexdigest()
        result["ok"] = result["ok"] and echoed.hexdigest() == expected
    return result


def _send_stream(connection: socket.socket, size: int, seed: int, echo: bool) -> None:
    try:
        connection.sendall(STREAM_HEADER.pack(size, echo))
        for block in blocks(size, seed):
            connection.sendall(block)
    except OSError:
        return  # the receiving side sees the connection fail and reports it


def _transfer(size: int, elapsed: float, found: str, expected: str) -> Result:
    rate = round(size * 8 / 1e6 / max(elapsed, 1e-9), 1)
    return {
        "bytes": size,
        "seconds": round(elapsed, 3),
        "mbit_per_s": rate,
        "sha256": found,
        "expected_sha256": expected,
        "ok": found == expected,
    }


# --- Command line --------------------------------------------------------------------------------


_PROBES: dict[str, type[Pinger] | type[UDPStream]] = {"ping": Pinger, "udp": UDPStream}


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rvpn.lab.traffic", description="Traffic for the laboratory.")
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)
    for name, help_text in (("ping", "ICMP echo"), ("udp", "numbered datagrams, echoed")):
        tool = tools.add_parser(name, help=help_text)
        tool.add_argument("address", type=ip_address, metavar="ADDRESS")
        tool.add_argument("--count", type=int, default=5, metavar="N")
        tool.add_argument("--interval", type=float, default=0.2, metavar="S", help="seconds between packets")
        tool.add_argument("--size", type=int, default=56, metavar="BYTES", help="bytes of payload")
        tool.add_argument(
            "--wait", type=float, default=1.0, metavar="S", help="seconds to wait for the last answers"
        )
    for name, help_text in (("fetch", "a file over HTTP"), ("stream", "random data over TCP")):
        tool = tools.add_parser(name, help=help_text)
        tool.add_argument("address", type=ip_address, metavar="ADDRESS")
        tool.add_argument("--size", type=int, default=1 << 20, metavar="BYTES", help="bytes")
        tool.add_argument("--seed", type=int, default=1, metavar="N", help="which random data")
        tool.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds without progress")
        if name == "stream":
            tool.add_argument("--echo", action="store_true", help="have the data sent back too")
    return parser.parse_args(words)


def _measure(chosen: argparse.Namespace) -> tuple[Result, bool]:
    """Run the chosen tool; return its figures and whether everything arrived."""
    if chosen.tool in _PROBES:
        probe = _PROBES[chosen.tool](chosen.address, chosen.count, chosen.interval, chosen.size)
        result = probe.run(chosen.wait)
        return result, result["lost"] == 0
    if chosen.tool == "fetch":
        result = fetch(chosen.address, chosen.size, chosen.seed, chosen.timeout)
    else:
        result = stream(chosen.address, chosen.size, chosen.seed, chosen.timeout, chosen.echo)
    return result, result["ok"]


def main(words: Sequence[str] | None = None) -> int:
    """Run one tool; return its exit code."""
    chosen = _arguments(words)
    try:
        result, complete = _measure(chosen)
    except OSError as error:
        sys.stderr.write(f"{chosen.tool} {chosen.address}: {error.strerror or error}\n")
        return 2
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
