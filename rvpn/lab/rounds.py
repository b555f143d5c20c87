"""
Rounds of the benchmark: each tunnel is measured once in each of them, one after another.

    `Field.start` -> a laboratory for each peer, all at the same time -> `Field.round` -> figures of each

While one is measured the others are idle. Rounds are interleaved so that whatever else the machine has to do
falls on all of them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from rvpn.errors import LocalError
from rvpn.lab import faults
from rvpn.lab.figures import NONE, Figures
from rvpn.lab.impairment import Impairment
from rvpn.lab.lab import Lab
from rvpn.lab.peers import CLIENT, GATEWAY, PEERS
from rvpn.lab.topology import Topology

#: Sizes of datagrams, in bytes of payload.
DATAGRAM_SIZES = (100, 1300)
STREAMS = 4
#: Which part of `seconds` one trial of the search for a rate takes, and the pings of either kind.
_TRIAL_SHARE, _PING_SHARE = 0.2, 0.75
#: Seconds of a trial at least: the datagrams of a shorter one are gone before the receiver has its turn.
_SHORTEST_TRIAL = 0.3
_PING_INTERVAL = 0.01
#: Seconds beyond its own that a measurement may take.
_GRACE = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")

#: Paths as they are.
UNSPOILT = Impairment()


@dataclass(frozen=True, slots=True)
class Scenario:
    """How long each transfer lasts, and what is done to the paths; lossy ones are good for TCP alone."""

    seconds: float
    impairment: Impairment = UNSPOILT

    @property
    def impaired(self) -> bool:
        """Whether something is done to the paths."""
        return self.impairment != UNSPOILT


class Contender:
    """A peer in its own laboratory."""

    def __init__(self, lab: Lab, name: str, scenario: Scenario) -> None:
        self._lab, self._scenario, self._tunnelled = lab, scenario, name != NONE
        self._target = str(lab.topology.lan_addresses(lab.topology.target_names[0])[0])
        lab.serve_load()

    def measure(self) -> Figures:
        """Return the figures of one round. Raises `LocalError` if something cannot be measured."""
        figures: Figures = {}
        for key, streams, down in (
            ("tcp_up", 1, False),
            ("tcp_down", 1, True),
            ("tcp4_up", STREAMS, False),
            ("tcp4_down", STREAMS, True),
        ):
            before = self._cpu_seconds()
            transfer = self._load("tcp", *self._seconds(1), f"--streams={streams}", *["--down"] * down)
            figures[f"{key}_mbps"] = round(transfer["bits_per_s"] / 1e6, 1)
            if key == "tcp_up":
                spent = self._cpu_seconds() - before
                figures["cpu_s_per_gb"] = (
                    round(spent * 1e9 / transfer["bytes"], 3) if self._tunnelled else None
                )
        if not self._scenario.impaired:
            for size in DATAGRAM_SIZES:
                figures[f"udp{size}_pps"] = round(self._datagrams(size))
        figures["ping_ms"] = self._pings(_PING_INTERVAL)
        figures["ping_flood_ms"] = self._pings(0.0)
        figures["rss_mb"] = self._gateway_memory() if self._tunnelled else None
        return figures

    def _seconds(self, share: float, least: float = 0.0) -> tuple[str, str]:
        return "--seconds", str(max(self._scenario.seconds * share, least))

    def _datagrams(self, size: int) -> float:
        rate: float = self._load("udp", f"--size={size}", *self._seconds(_TRIAL_SHARE, _SHORTEST_TRIAL))[
            "per_s"
        ]
        return rate

    def _pings(self, interval: float) -> Figures:
        pings = self._load("ping", *self._seconds(_PING_SHARE), f"--interval={interval}")
        return {name: pings[name] for name in ("p50", "p99")}

    def _load(self, tool: str, *arguments: str) -> dict[str, Any]:
        load = self._lab.start_load(CLIENT, tool, self._target, *arguments)
        return load.result(self._scenario.seconds + _GRACE)

    # --- What the tunnel's own processes use ---------------------------------------------------------

    def _cpu_seconds(self) -> float:
        """Return user and system time of the tunnel's processes at both ends (proc_pid_stat(5))."""
        if not self._tunnelled:
            return 0.0
        stats = (self._process(node, "stat").rpartition(")")[2].split() for node in (CLIENT, GATEWAY))
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / _TICKS

    def _gateway_memory(self) -> float:
        """Return the resident memory of the gateway's process in MB of 2^20 bytes."""
        return resident(self._process(GATEWAY, "status"))

    def _process(self, node: str, file: str) -> str:
        pid = self._lab.status()["processes"][node]["pid"]
        return self._lab.run(node, ["cat", f"/proc/{pid}/{file}"]).output.decode()


def resident(status: str) -> float:
    """Return the resident memory in MB of 2^20 bytes out of a /proc/PID/status (proc_pid_status(5))."""
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return round(int(line.split()[1]) / 1024, 1)


class Field:
    """All contenders; those that could not start are in `absent`, with a reason."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self.contenders: dict[str, Contender] = {}
        self.absent: dict[str, str] = {}

    @classmethod
    def start(cls, names: Iterable[str], scenario: Scenario) -> Self:
        """Start a laboratory and a tunnel for each. Raises `LocalError` if there can be no laboratory."""
        field = cls()
        with ExitStack() as resources:
            field._resources = resources
            for name in names:
                if reason := PEERS[name].missing:
                    field.absent[name] = reason
                    continue
                lab = resources.enter_context(Lab.start(Topology(gateways=1, targets=1)))
                field._add(name, lab, scenario)
            field._resources = resources.pop_all()
        return field

    def _add(self, name: str, lab: Lab, scenario: Scenario) -> None:
        try:
            PEERS[name].start(lab)
            if scenario.impaired:
                faults.impair(lab, scenario.impairment)
            self.contenders[name] = Contender(lab, name, scenario)
        except LocalError as error:
            self._lose(name, error)

    def round(self) -> Mapping[str, Figures]:
        """Measure everybody once."""
        return dict(self._measured())

    def _measured(self) -> Iterator[tuple[str, Figures]]:
        for name, contender in list(self.contenders.items()):
            try:
                yield name, contender.measure()
            except LocalError as error:
                self._lose(name, error)

    def _lose(self, name: str, error: LocalError) -> None:
        """Leave a peer out that fails; a failure of our own, or of the laboratory, is the benchmark's."""
        if PEERS[name].program is None:
            raise error
        self.absent[name] = str(error)
        self.contenders.pop(name, None)

    def __enter__(self) -> Self:
        """Return the field itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End all laboratories."""
        self._resources.close()
