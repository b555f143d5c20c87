"""
rvpn at saturation: whether heartbeats, new keys and key exchanges keep their deadlines while all is busy.

    a laboratory with short times -> TCP both ways, then a flood of small datagrams
        -> what control traffic did (rvpn.lab.sightings), what the client did -> `Saturation`

Nothing fails here, so that every change of gateway is a false one.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rvpn.constants import EXCHANGE_TIME, Role
from rvpn.lab import services
from rvpn.lab.lab import Lab
from rvpn.lab.records import Log, Sighting
from rvpn.lab.series import Terms
from rvpn.lab.sightings import Judgement, judge
from rvpn.lab.topology import Topology

#: HeartbeatConfirmTime: with traffic both ways nothing else has heartbeats sent (X8).
TERMS = Terms(standby=1, defer=0.1, response=0.05, confirm=0.25)
KEY_LIFETIME = 3.0
STREAMS = 4
_DATAGRAM = 100
#: Seconds for what belongs to the beginning of a session.
_SETTLING = 1.0
#: Seconds from one look at the client to the next.
_LOOK = 0.25


@dataclass(frozen=True, slots=True)
class Saturation:
    """What a client did in `seconds` at saturation. Rates are those that arrived."""

    seconds: float
    false_failovers: int
    rekeys: int
    exchanges_failed: int
    oldest_key: float
    control: Judgement
    mbps_up: float
    mbps_down: float
    datagrams: float

    @property
    def passed(self) -> bool:
        """Whether no gateway was left, and keys and exchanges were in time."""
        in_time = self.oldest_key < 1.5 * KEY_LIFETIME and self.control.longest_exchange < EXCHANGE_TIME
        return not self.false_failovers and not self.exchanges_failed and self.rekeys > 0 and in_time

    def figures(self) -> dict[str, Any]:
        """Return what --json prints; docs/benchmarks.md has the keys."""
        return {
            "seconds": self.seconds,
            "response_s": TERMS.response,
            "key_lifetime_s": KEY_LIFETIME,
            "false_failovers": self.false_failovers,
            "rekeys": self.rekeys,
            "exchanges_failed": self.exchanges_failed,
            "oldest_key_s": round(self.oldest_key, 2),
            "longest_exchange_s": round(self.control.longest_exchange, 4),
            "heartbeats": self.control.heartbeats,
            "heartbeats_late": self.control.late,
            "longest_answer_s": round(self.control.longest_answer, 4),
            "tcp_up_mbps": round(self.mbps_up, 1),
            "tcp_down_mbps": round(self.mbps_down, 1),
            "udp100_pps": round(self.datagrams),
            "passed": self.passed,
        }


def saturate(seconds: float) -> Saturation:
    """Load a laboratory of its own for `seconds`, half by TCP, half by datagrams. Raises `LocalError`."""
    general = {**TERMS.general(), "KeyLifetime": f"{KEY_LIFETIME:g}"}
    with ExitStack() as resources:
        lab = resources.enter_context(Lab.start(Topology(gateways=2, targets=1, proxy_arp=True)))
        services.configure(lab, {Role.CLIENT: general})
        services.start_all(lab)
        (target,) = lab.topology.target_names
        lab.serve_load()
        time.sleep(_SETTLING)
        log = Log(lab.directory / "sightings", Sighting)
        argv = [sys.executable, "-m", "rvpn.lab.sightings", "client", str(lab.topology.client_address)]
        resources.enter_context(lab.start_ready("router", [*argv, str(log.path)]))
        return _load(lab, str(lab.topology.lan_addresses(target)[0]), seconds, log)


def _load(lab: Lab, target: str, seconds: float, log: Log[Sighting]) -> Saturation:
    before, ages = services.ask_status(lab, "client"), [0.0]
    half = ("--seconds", seconds / 2)
    tcp = ("tcp", target, *half, f"--streams={STREAMS}")
    up, down = _watched(lab, ages, [tcp, (*tcp, "--down")])
    flood = ("udp", target, *half, f"--size={_DATAGRAM}", "--flood")
    (datagrams,) = _watched(lab, ages, [flood])
    time.sleep(_LOOK)
    after = services.ask_status(lab, "client")
    return Saturation(
        seconds,
        len(after["failovers"]) - len(before["failovers"]),
        after["exchanges"]["established"] - before["exchanges"]["established"],
        after["exchanges"]["failed"] - before["exchanges"]["failed"],
        max(ages),
        judge(log.read(), TERMS.response or 0.0),
        up["bits_per_s"] / 1e6,
        down["bits_per_s"] / 1e6,
        datagrams["per_s"],
    )


def _watched(lab: Lab, ages: list[float], tools: Iterable[Sequence[object]]) -> list[dict[str, Any]]:
    """Return what loads bring, and look meanwhile how old the keys of the gateway in use are."""
    loads = [lab.start_load("client", *tool) for tool in tools]
    while any(load.running() for load in loads):
        sessions = services.ask_status(lab, "client")["sessions"]
        ages += [each["key_age"] for each in sessions if each["in_use"] and each["key_age"] is not None]
        time.sleep(_LOOK)
    return [load.result() for load in loads]
