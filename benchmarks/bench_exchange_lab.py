"""
Key exchange with a real gateway in the lab: the time and the CPU that one takes, and how many there can be.

    this process: the lab, a gateway that accepts CLIENTS clients, and this file again in the client's node
        -> each of the clients (`rvpn.client.node`, with a socket each) exchanges keys once
        -> EXCHANGES one after another, in one round trip; EXCHANGES with old timestamps, which draw cookies
           (`tls` always draws one: there it is EXCHANGES once)
        -> IN_FLIGHT at a time, as many as the gateway takes
    <- figures in JSON: printed with `--json`, else as a table

Run `.venv/bin/python benchmarks/bench_exchange_lab.py [--mechanism tls]`; it takes 20 seconds and needs
what `rvpn lab` needs. An exchange lasts from the client's wish for keys until an ESP packet under them has
come back, when both ends are sure of them. CPU is that of the whole process, user and system.
"""

import argparse
import json
import os
import pathlib
import random
import selectors
import sys
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from socket import AF_INET, SOCK_DGRAM, socket
from statistics import median, quantiles

from rvpn.client.node import Client
from rvpn.constants import DEFAULT_PORT, KEY_EXCHANGE_MARKER, Mechanism, Role
from rvpn.errors import LocalError
from rvpn.files import certificatefiles, keyfile
from rvpn.interfaces import Action, DatagramBatch, Endpoint, IPAddress, PacketBatch, Path, PeerIdentity, Send
from rvpn.keyexchange import tokens
from rvpn.keyexchange.acceptor import LOAD_RATE
from rvpn.keyexchange.cookies import MAX_SPENT
from rvpn.keyexchange.credentials import Credentials
from rvpn.keyexchange.noise import public_key
from rvpn.lab import certificates, requirements, services
from rvpn.lab.lab import Lab
from rvpn.lab.report import say, table
from rvpn.lab.topology import Topology
from rvpn.policy.model import Authority, Policy

CLIENTS = 128
#: Exchanges one after another, of each kind, and the seconds from one to the next: half of what is load.
EXCHANGES, INTERVAL = 300, 2 / LOAD_RATE
#: Exchanges at a time: enough to keep the gateway busy, few enough that answers come before repetitions do.
IN_FLIGHT = 32
#: The end of those: after so many seconds, or so many exchanges that the gateway can still remember cookies.
LOAD_SECONDS, LOAD_EXCHANGES = 10.0, MAX_SPENT * 3 // 4
#: Seconds between looks at what has to be sent again.
LOOK = 0.02
LONGEST_RUN = 30.0
GATEWAY = "gateway1"
#: The directory of the initiators' certificates, in that of the lab.
CERTIFICATES = "clients"

Figures = dict[str, float]

#: Which figures are shown: title, scale, decimal places.
COLUMNS = {
    "confirmed": ("exchanges", 1, 0),
    "with_cookie": ("cookies", 1, 0),
    "failed": ("failed", 1, 0),
    "min": ("min ms", 1e3, 2),
    "median": ("median ms", 1e3, 2),
    "p99": ("p99 ms", 1e3, 2),
    "gateway_cpu": ("gateway CPU us", 1e6, 0),
    "client_cpu": ("client CPU us", 1e6, 0),
}


# --- The initiators, in the client's node ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """How one exchange went: its seconds, whether a cookie was drawn, whether it led to confirmed keys."""

    seconds: float
    cookie: bool
    confirmed: bool


class Initiator:
    """
    One client of the gateway, at most one exchange at a time; `outcome` is set when that is over.

    `clock` is the time of day in its first messages.
    """

    def __init__(
        self, number: int, gateway: Endpoint, identity: PeerIdentity, credentials: Credentials
    ) -> None:
        self.socket = socket(AF_INET, SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.connect((str(gateway.address), gateway.port))
        self.clock: Callable[[], float] = time.time
        self.outcome: Exchange | None = None
        self._path = Path(gateway)
        self._client = Client(
            Policy(peers={gateway.address: identity}),
            credentials,
            (inner_address(number),),
            random.SystemRandom(),
            lambda: self.clock(),
            time.monotonic(),
        )
        self._received, self._opened = DatagramBatch(2048), PacketBatch(2048)
        self._begun = 0.0
        self._cookie = False
        self._ended_before = (0, 0)

    def begin(self) -> None:
        """Ask the gateway for new keys."""
        self.outcome, self._cookie = None, False
        self._ended_before = self._ended
        self._begun = time.monotonic()
        self._send(self._client.authenticate(self._path.remote.address, self._begun))

    def receive(self) -> None:
        """Take a datagram that has arrived."""
        batch, now = self._received, time.monotonic()
        batch.clear()
        length = self.socket.recv_into(batch.buffer)
        batch.add(self._path, length, length)
        datagram = bytes(batch.view[:length])
        if datagram.startswith(KEY_EXCHANGE_MARKER):
            self._cookie |= isinstance(tokens.decode(datagram), tokens.CookieDemand)
            self._send(self._client.key_exchange(datagram, self._path, now))
        else:
            self._opened.clear()
            self._send(self._client.inbound(batch, self._opened, now))
        self._look()

    def advance(self) -> None:
        """Send again what was not answered in time."""
        self._send(self._client.advance(time.monotonic()))
        self._look()

    @property
    def _ended(self) -> tuple[int, int]:
        """How many exchanges led to confirmed keys, and how many did not."""
        return self._client.kms.established, self._client.kms.failures

    def _send(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.socket.send(action.datagram)

    def _look(self) -> None:
        if self.outcome is None and self._ended != self._ended_before:
            confirmed = self._ended[0] > self._ended_before[0]
            self.outcome = Exchange(time.monotonic() - self._begun, self._cookie, confirmed)


def private_key(number: int) -> bytes:
    """Return a client's private key, which both processes know so; it opens nothing outside this lab."""
    return random.Random(number).randbytes(32)


def credentials(mechanism: Mechanism, number: int, lab: str) -> Credentials:
    """Return what an initiator authenticates with."""
    if mechanism is Mechanism.NOISE:
        return Credentials(private_key(number))
    own = f"{CERTIFICATES}/client{number}"
    policy = Policy(
        certificate=f"{own}.pem",
        certificate_key=f"{own}.key",
        authorities=(Authority(1, certificates.AUTHORITY, ()),),
    )
    return Credentials(certificates=certificatefiles.load(policy, pathlib.Path(lab), Role.CLIENT))


def inner_address(number: int) -> IPAddress:
    """Return a client's address inside the tunnel."""
    return ip_address("10.99.1.0") + number


def drive(
    initiators: Sequence[Initiator],
    count: int,
    *,
    in_flight: int = 1,
    interval: float = 0.0,
    seconds: float = inf,
) -> list[Exchange]:
    """
    Have the initiators, in turn, make `count` exchanges, and return those that ended within `seconds`.

    At most `in_flight` are under way at a time, and none begins less than `interval` seconds after the last.
    """
    idle, running = deque(initiators), set[Initiator]()
    done: list[Exchange] = []
    now = begin_next = look_next = time.monotonic()
    end = now + seconds
    with selectors.DefaultSelector() as selector:
        for initiator in initiators:
            selector.register(initiator.socket, selectors.EVENT_READ, initiator)
        while now < end and len(done) < count:
            while len(running) < in_flight and now >= begin_next:
                initiator = idle.popleft()
                initiator.begin()
                running.add(initiator)
                begin_next = now + interval
            for key, _ in selector.select(LOOK if running else begin_next - now):
                key.data.receive()
            now = time.monotonic()
            if now >= look_next:
                look_next = now + LOOK
                for initiator in running:
                    initiator.advance()
            for initiator in list(running):
                if initiator.outcome is not None:
                    done.append(initiator.outcome)
                    running.remove(initiator)
                    idle.append(initiator)
    return done


def measure(gateway_pid: int, work: Callable[[], list[Exchange]]) -> Figures:
    """Return what the exchanges of `work` took: times in seconds, CPU of either end in seconds for each."""
    begun, gateway_cpu, own_cpu = time.monotonic(), cpu_seconds(gateway_pid), time.process_time()
    done = work()
    seconds = time.monotonic() - begun
    gateway_cpu, own_cpu = cpu_seconds(gateway_pid) - gateway_cpu, time.process_time() - own_cpu
    times = sorted(exchange.seconds for exchange in done if exchange.confirmed)
    if len(times) < 2:
        raise LocalError(f"{len(times)} of {len(done)} exchanges were confirmed")
    return {
        "confirmed": len(times),
        "failed": len(done) - len(times),
        "with_cookie": sum(exchange.cookie for exchange in done),
        "seconds": seconds,
        "per_second": len(times) / seconds,
        "min": times[0],
        "median": median(times),
        "p99": quantiles(times, n=100)[-1],
        "gateway_cpu": gateway_cpu / len(times),
        "gateway_share": gateway_cpu / seconds,
        "client_cpu": own_cpu / len(times),
        "client_share": own_cpu / seconds,
    }


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process, in steps of a clock tick (proc_pid_stat(5))."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(mechanism: str, address: str, name: str, pid: str, directory: str) -> dict[str, Figures]:
    """
    Measure the gateway at `address`, called `name` (its public key, or its address), of the process `pid`.

    The clients' certificates, if they have any, are in the laboratory's `directory`.
    """
    gateway, identity = Endpoint(ip_address(address), DEFAULT_PORT), PeerIdentity(Mechanism[mechanism], name)
    initiators = [
        Initiator(number, gateway, identity, credentials(identity.mechanism, number, directory))
        for number in range(CLIENTS)
    ]

    def one_after_another() -> list[Exchange]:
        return drive(initiators, EXCHANGES, interval=INTERVAL)

    def at_a_time() -> list[Exchange]:
        return drive(initiators, LOAD_EXCHANGES, in_flight=IN_FLIGHT, seconds=LOAD_SECONDS)

    # The first from each key since the gateway's start draws a cookie, whatever its timestamp.
    first = measure(int(pid), lambda: drive(initiators, CLIENTS, interval=INTERVAL))
    if identity.mechanism is Mechanism.TLS:
        with_a_cookie = measure(int(pid), one_after_another)
        return {"first": first, "with_a_cookie": with_a_cookie, "at_a_time": measure(int(pid), at_a_time)}
    one_round_trip = measure(int(pid), one_after_another)
    set_clocks(initiators, float)  # 0.0: older than all before, as a recording would be
    with_a_cookie = measure(int(pid), one_after_another)
    set_clocks(initiators, time.time)
    return {
        "first_of_a_key": first,
        "one_round_trip": one_round_trip,
        "with_a_cookie": with_a_cookie,
        "at_a_time": measure(int(pid), at_a_time),
    }


def set_clocks(initiators: Iterable[Initiator], clock: Callable[[], float]) -> None:
    """Give the initiators this time of day."""
    for initiator in initiators:
        initiator.clock = clock


# --- The lab ---------------------------------------------------------------------------------------------


def run_lab(mechanism: Mechanism) -> dict[str, Figures]:
    """Return the figures of a gateway in a lab of its own. Raises `LocalError`."""
    with Lab.start(Topology(gateways=1, targets=1)) as lab:
        services.configure(lab, mechanism=mechanism)
        address = name = str(lab.topology.gateway_address(GATEWAY))
        if mechanism is Mechanism.TLS:
            certify_clients(lab.directory)
        else:
            name = keyfile.public_key(str(lab.directory / f"{GATEWAY}.key"))
            add_clients(lab.directory / f"{GATEWAY}.policy")
        services.start(lab, GATEWAY)
        pid = str(lab.status()["processes"][GATEWAY]["pid"])
        told = (mechanism.name, address, name, pid, str(lab.directory))
        argv = [sys.executable, str(pathlib.Path(__file__).resolve()), "--load", *told]
        finished = lab.run("client", argv, timeout=LONGEST_RUN)
        if finished.code:
            raise LocalError(finished.errors.decode(errors="replace").strip())
        figures: dict[str, Figures] = json.loads(finished.output)
        accepted = services.ask_status(lab, GATEWAY)["exchanges"]["established"]
    confirmed = sum(each["confirmed"] for each in figures.values())
    if accepted < confirmed:
        raise LocalError(f"the gateway counts {accepted} exchanges, its clients {confirmed}")
    return figures


def add_clients(policy: pathlib.Path) -> None:
    """Add the initiators to a gateway's policy."""
    title = "[CLIENTS]\n"
    public = (b64encode(public_key(private_key(number))).decode() for number in range(CLIENTS))
    lines = (f"Client{2 + n} = {key} {inner_address(n)}\n" for n, key in enumerate(public))
    policy.write_text(policy.read_text().replace(title, title + "".join(lines)))


def certify_clients(lab: pathlib.Path) -> None:
    """Issue the initiators' certificates by an authority of their own, and have the gateway accept that."""
    place = lab / CERTIFICATES
    place.mkdir()
    clients = {f"client{number}": [str(inner_address(number))] for number in range(CLIENTS)}
    certificates.issue(place, {}, clients, "clients")
    title, file = "[AUTHORITIES]\n", lab / f"{GATEWAY}.policy"
    line = (
        f"Authority2 = {place / certificates.AUTHORITY} {inner_address(0)} - {inner_address(CLIENTS - 1)}\n"
    )
    file.write_text(file.read_text().replace(title, title + line))


def report(figures: dict[str, Figures]) -> None:
    """Print a table, and what its last row means for a gateway."""
    rows: list[Sequence[str]] = [("", *(title for title, _, _ in COLUMNS.values()))]
    for name, each in figures.items():
        cells = (f"{each[key] * scale:.{places}f}" for key, (_, scale, places) in COLUMNS.items())
        rows.append((name.replace("_", " "), *cells))
    say(table(rows))
    many = figures["at_a_time"]
    say(f"{IN_FLIGHT} at a time: {many['per_second']:.0f} exchanges per second for {many['seconds']:.1f} s")
    for end in "gateway", "client":
        share, of_its_cpu = many[f"{end}_share"], 1 / many[f"{end}_cpu"]
        say(f"{end}: {share:.0%} of a core, {of_its_cpu:.0f} exchanges in a second of its CPU")


def main() -> int:
    """Measure and print; where there can be no lab, say so and leave it at that."""
    parser = argparse.ArgumentParser(description="Measure key exchanges with a gateway in the lab.")
    parser.add_argument("--json", action="store_true", help="print one JSON object, times in seconds")
    parser.add_argument("--mechanism", choices=("noise", "tls"), default="noise", help="default: noise")
    parser.add_argument("--load", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.load and (missing := requirements.missing()):
        reason = " ".join(missing)
        say(json.dumps({"not_measured": reason}) if chosen.json else f"not measured: {reason}")
        return 0
    try:
        figures = load(*chosen.load) if chosen.load else run_lab(Mechanism[chosen.mechanism.upper()])
    except LocalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if chosen.json or chosen.load:
        say(json.dumps(figures))
    else:
        report(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
