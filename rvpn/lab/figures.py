"""
What the benchmark found, as values: medians over the rounds, ratios between tunnels, a table, JSON.

    rounds [{peer: figures}, ...] -> `summary` -> what --json prints -> `table`, `rvpn.lab.bars.chart`

The figures of one peer in one round and their medians have the same keys, which docs/benchmarks.md explains.
A figure that could not be measured is None, and so is everything that is made of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

#: The names of no tunnel and of ourselves; the others are those of their programs.
NONE, RVPN = "none", "rvpn"
TITLES = {NONE: "no tunnel"}

#: Numbers, dictionaries of them, or None.
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table: where the number is (`ping_ms.p50`), and how it is shown."""

    key: str
    title: str
    more_is_better: bool
    places: int = 0

    def of(self, figures: Mapping[str, Any]) -> float | None:
        """Return the number, None if there is none."""
        value: Any = figures
        for name in self.key.split("."):
            value = value.get(name) if value else None
        return None if value is None else float(value)

    def text(self, value: float | None) -> str:
        """Return the number as the table shows it."""
        return "-" if value is None else f"{value:,.{self.places}f}"


METRICS = (
    Metric("tcp_up_mbps", "TCP up, Mbit/s", True),
    Metric("tcp_down_mbps", "TCP down, Mbit/s", True),
    Metric("tcp4_up_mbps", "TCP up, four streams, Mbit/s", True),
    Metric("tcp4_down_mbps", "TCP down, four streams, Mbit/s", True),
    Metric("udp100_pps", "UDP of 100 bytes, packets/s", True),
    Metric("udp1300_pps", "UDP of 1300 bytes, packets/s", True),
    Metric("ping_ms.p50", "ping each 10 ms, p50, ms", False, 3),
    Metric("ping_ms.p99", "ping each 10 ms, p99, ms", False, 3),
    Metric("ping_added_us", "added to a ping each 10 ms, p50, us", False),
    Metric("ping_flood_added_us", "added to a flood ping, p50, us", False),
    Metric("cpu_s_per_gb", "CPU, both ends, TCP up, s/GB", False, 2),
    Metric("rss_mb", "memory of the gateway, MB", False, 1),
)


def added(figures: Figures, baseline: Figures | None) -> Figures:
    """Return a peer's figures of a round with what it adds to the round trips of `baseline`, no tunnel."""
    result = dict(figures)
    for name, ping in (("ping_added_us", "ping_ms"), ("ping_flood_added_us", "ping_flood_ms")):
        ours, theirs = figures.get(ping), (baseline or {}).get(ping)
        result[name] = round(1e3 * (ours["p50"] - theirs["p50"]), 1) if ours and theirs else None
    return result


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the rounds that have it; None if none does."""
    result: Figures = {}
    for key in dict.fromkeys(key for each in rounds for key in each):
        values = [value for each in rounds if (value := each.get(key)) is not None]
        if values and isinstance(values[0], dict):
            result[key] = medians(values)
        else:
            result[key] = _rounded(median(values)) if values else None
    return result


def ratios(ours: Figures, theirs: Figures) -> Figures:
    """Return, by the key of each metric, how many times theirs ours is; None where one is missing."""
    pairs = ((metric.key, metric.of(ours), metric.of(theirs)) for metric in METRICS)
    return {key: round(a / b, 3) if a is not None and b else None for key, a, b in pairs}


def summary(rounds: Sequence[Mapping[str, Figures]], **more: object) -> Figures:
    """
    Return what --json prints: medians of each peer, ratios of ours to each other's, `more`, and the rounds.
    """
    complete = [{name: added(figures, each.get(NONE)) for name, figures in each.items()} for each in rounds]
    names = dict.fromkeys(name for each in rounds for name in each)
    peers = {name: medians([each[name] for each in complete if name in each]) for name in names}
    others = [name for name in peers if name not in (NONE, RVPN)]
    return {
        "peers": peers,
        "ratios": {name: ratios(peers[RVPN], peers[name]) for name in others if RVPN in peers},
        **more,
        "rounds": complete,
    }


def shown(result: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics that some peer has."""
    everybody = result["peers"].values()
    return [metric for metric in METRICS if any(metric.of(figures) is not None for figures in everybody)]


def rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a heading and a row for each metric: each peer's median, and our share of each other's."""
    peers, compared = result["peers"], result["ratios"]
    yield ["", *(TITLES.get(name, name) for name in peers), *(f"{RVPN} / {name}" for name in compared)]
    for metric in shown(result):
        shares = (compared[name][metric.key] for name in compared)
        yield [
            metric.title,
            *(metric.text(metric.of(figures)) for figures in peers.values()),
            *("-" if share is None else f"{share:.2f}" for share in shares),
        ]


def table(result: Mapping[str, Any]) -> str:
    """Return the rows as a table in Markdown."""
    lines = list(rows(result))
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _rounded(value: float) -> float:
    """Return six digits, which are more than anything here is good for."""
    return float(f"{value:.6g}")
