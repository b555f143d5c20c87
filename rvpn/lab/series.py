"""
A series of trials of failover, as values: its terms, what each fault cost, and whether that was promised.

    Terms -> the client's policy; `rvpn.lab.trials` -> Trial... -> Series -> `figures`, `passed`

The keys of the figures are explained in docs/failover.md.
"""

from dataclasses import dataclass
from typing import Any

from rvpn.constants import CONFIRM_TIME, HeartbeatMode
from rvpn.lab.monitor import PING_INTERVAL
from rvpn.lab.records import spread

ALL_DEAD, DRAIN, CUT_TO_GATEWAY = "all-dead", "drain", "cut-to-gateway"
#: What a series may be about, in the order of `--fault all`.
FAULTS = (
    *("kill", "freeze", "restart", "lose-keys", "outside-down", "lan-down"),
    *("cut", CUT_TO_GATEWAY, "cut-to-client", DRAIN, ALL_DEAD),
)
#: HeartbeatConfirmTime in seconds where only X8 can notice the fault.
SHORT_CONFIRM_TIME = 0.5
#: Seconds that an outage may last beyond what the policy promises, and without standby for one key exchange.
TOLERANCE, ONE_EXCHANGE = 0.06, 0.05

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Terms:
    """The client's policy in a series; times in seconds, None is `auto`."""

    standby: int = 1
    heartbeat: HeartbeatMode = HeartbeatMode.INSTANT
    defer: float | None = 0.1
    response: float | None = 0.05
    confirm: float = CONFIRM_TIME

    def general(self) -> dict[str, str]:
        """Return the keywords of [GENERAL]."""
        return {
            "Heartbeat": self.heartbeat.value,
            "HeartbeatDeferTime": _number(self.defer),
            "HeartbeatResponseTime": _number(self.response),
            "HeartbeatConfirmTime": _number(self.confirm),
            "Standby": str(self.standby),
        }


@dataclass(frozen=True, slots=True)
class Trial:
    """What one fault cost. Times are in seconds, `at` of the monotonic clock; gateways are named."""

    at: float
    left: str
    taken: str
    bound: float
    outage: float
    pings_lost: int
    #: The longest time in which the transfer brought nothing.
    stall: float
    #: The longest outage while the fault was undone.
    disturbance: float
    #: Datagrams of the stream that came in meanwhile, of CUT_TO_GATEWAY.
    inbound: int
    #: How often the client left a gateway that nothing was wrong with.
    false_moves: int
    bytes_verified: int
    bytes_wrong: int
    tcp_broken: int


@dataclass(frozen=True, slots=True)
class Series:
    """Trials of one fault under the same terms."""

    fault: str
    terms: Terms
    family: int
    trials: tuple[Trial, ...]

    @property
    def tolerance(self) -> float:
        """How long 95 % of the outages may last beyond what the policy promised at the time."""
        return TOLERANCE if self.terms.standby else TOLERANCE + ONE_EXCHANGE

    @property
    def passed(self) -> bool:
        """Whether it was as promised: nothing too long, no connection broken, no byte wrong."""
        figures = self.figures()
        unharmed = not (figures["tcp_broken"] or figures["bytes_wrong"])
        drained = not figures["pings_lost"] and figures["moves"] == figures["trials"]
        in_time = figures["beyond_bound_s"]["p95"] <= self.tolerance
        return unharmed and (drained or self.fault != DRAIN) and in_time

    def figures(self) -> Figures:
        """Return what `rvpn lab failover --json` prints; docs/failover.md has the keys."""
        each = self.trials
        return {
            "fault": self.fault,
            "trials": len(each),
            "standby": self.terms.standby,
            "heartbeat": self.terms.heartbeat.value,
            "defer_s": "auto" if self.terms.defer is None else self.terms.defer,
            "response_s": "auto" if self.terms.response is None else self.terms.response,
            "confirm_s": self.terms.confirm,
            "family": self.family,
            "ping_interval_s": PING_INTERVAL,
            "bound_s": spread([trial.bound for trial in each])["median"],
            "outage_s": spread([trial.outage for trial in each]),
            "beyond_bound_s": spread([trial.outage - trial.bound for trial in each]),
            "moves": sum(trial.taken != trial.left for trial in each),
            "false_moves": sum(trial.false_moves for trial in each),
            "pings_lost": sum(trial.pings_lost for trial in each),
            "tcp_stall_s": spread([trial.stall for trial in each]),
            "tcp_broken": sum(trial.tcp_broken for trial in each),
            "bytes_verified": sum(trial.bytes_verified for trial in each),
            "bytes_wrong": sum(trial.bytes_wrong for trial in each),
            "healing_outage_s": spread([trial.disturbance for trial in each]),
            "inbound_during_outages": sum(trial.inbound for trial in each),
            "outages_s": [round(trial.outage, 4) for trial in each],
        }


def _number(value: float | None) -> str:
    return "auto" if value is None else f"{value:g}"
