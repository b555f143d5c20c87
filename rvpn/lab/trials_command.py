"""
`rvpn lab failover` and `rvpn lab heartbeats`: what is measured, from the command line, as a table or as JSON.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence

from rvpn.arguments import number, whole_number
from rvpn.cli.subcommand import Subparsers
from rvpn.constants import CONFIRM_TIME, HeartbeatMode, Mechanism
from rvpn.lab import economy
from rvpn.lab.economy import Count
from rvpn.lab.records import spread
from rvpn.lab.report import mark, say, table
from rvpn.lab.series import (
    CUT_TO_GATEWAY,
    FAULTS,
    ONE_EXCHANGE,
    SHORT_CONFIRM_TIME,
    TOLERANCE,
    Figures,
    Series,
    Terms,
    Trial,
)
from rvpn.lab.trials import Bench

ALL, AUTO = "all", "auto"
_MOST_TRIALS, _LONGEST = 10_000, 3600.0


def register(parsers: Subparsers) -> None:
    """Add `failover` and `heartbeats`."""
    _register_failover(parsers)
    heartbeats = parsers.add_parser(
        "heartbeats",
        help="count what an idle and a busy client sends, in each heartbeat mode",
        description="Start one lab for each heartbeat mode and count the packets that the client sends while "
        "it is idle, while its packets are answered, and while they are not. Exits with 0 if that is what "
        "the modes promise.",
    )
    heartbeats.add_argument(
        "--seconds",
        type=number(1, _LONGEST),
        default=60.0,
        metavar="S",
        help="for each of the three (default: 60)",
    )
    heartbeats.add_argument("--json", action="store_true", help="print one JSON object")
    heartbeats.set_defaults(run=_heartbeats)


def _register_failover(parsers: Subparsers) -> None:
    failover = parsers.add_parser(
        "failover",
        help="break the gateway in use, again and again, and measure the outages",
        description="Start the lab, break the gateway in use, measure by pings every 5 ms and a TCP transfer "
        "through the tunnel how long nothing gets through, mend it, and do it again. Each outage is judged "
        "by what `rvpn status --explain` promised just before it, which changes where times are auto. Exits "
        f"with 0 if 95 % of them lasted at most {TOLERANCE * 1e3:.0f} ms longer than that "
        f"({(TOLERANCE + ONE_EXCHANGE) * 1e3:.0f} ms without standby), no connection broke and no byte was "
        "wrong; after draining, also no packet may be missing.",
    )
    failover.add_argument("--fault", choices=(*FAULTS, ALL), default="kill", help="default: kill")
    failover.add_argument(
        "--trials",
        type=whole_number(1, _MOST_TRIALS),
        default=5,
        metavar="N",
        help="of each fault (default: 5)",
    )
    failover.add_argument(
        "--standby",
        type=whole_number(0, 15),
        default=1,
        metavar="K",
        help="gateways that the client keeps keys with (default: 1)",
    )
    failover.add_argument(
        "--heartbeat", type=_mode, default=HeartbeatMode.INSTANT, metavar="MODE", help="default: INSTANT"
    )
    failover.add_argument(
        "--defer",
        type=_time,
        default=argparse.SUPPRESS,
        metavar="S",
        help="HeartbeatDeferTime, seconds or auto (default: 0.1, or auto if the response time is)",
    )
    failover.add_argument(
        "--response",
        type=_time,
        default="0.05",
        metavar="S",
        help="HeartbeatResponseTime, seconds or auto (default: 0.05)",
    )
    failover.add_argument("--family", type=int, choices=(4, 6), default=4, help="IP version outside")
    add_mechanism(failover)
    failover.add_argument("--json", action="store_true", help="print one JSON object")
    failover.set_defaults(run=_failover)


def add_mechanism(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how the lab's nodes authenticate."""
    parser.add_argument(
        "--mechanism",
        type=_mechanism,
        default=Mechanism.NOISE,
        metavar="NAME",
        help="noise (default) or tls: by pinned keys, or by certificates",
    )


def _mechanism(text: str) -> Mechanism:
    try:
        return Mechanism[text.upper()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected noise or tls") from None


def _mode(text: str) -> HeartbeatMode:
    try:
        return HeartbeatMode(text.upper())
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NONE, DEFERRED or INSTANT") from None


def _time(text: str) -> float | None:
    """Return seconds within the limits of the policy's keys, None for `auto`."""
    return None if text == AUTO else number(0.001, 3600)(text)


def _failover(options: argparse.Namespace) -> int:
    names = FAULTS if options.fault == ALL else (options.fault,)
    done = []
    for name in names:
        if not options.json:
            say(f"- {name}")
        with Bench.start(_terms(name, options), options.family, options.mechanism) as bench:
            done.append(bench.series(name, options.trials, _told(options)))
    if options.json:
        say(json.dumps(done[0].figures() if len(done) == 1 else together(done)))
    else:
        say("\n" + table(rows(done)))
        say(
            "\nPROMISED is the median. BEYOND: 95 % of the outages lasted at most so much longer than "
            f"was promised at their time; up to {done[0].tolerance * 1e3:.0f} ms are allowed."
        )
    return 0 if all(series.passed for series in done) else 1


def _terms(fault: str, options: argparse.Namespace) -> Terms:
    return Terms(
        options.standby,
        options.heartbeat,
        getattr(options, "defer", None if options.response is None else 0.1),
        options.response,
        SHORT_CONFIRM_TIME if fault == CUT_TO_GATEWAY else CONFIRM_TIME,
    )


def _told(options: argparse.Namespace) -> Callable[[Trial], None]:
    if options.json:
        return lambda _trial: None
    return lambda trial: say(
        f"  {trial.left} -> {trial.taken}: {trial.outage * 1e3:.0f} ms, {trial.bound * 1e3:.0f} ms promised, "
        f"pings lost: {trial.pings_lost}, TCP stood still for {trial.stall * 1e3:.0f} ms"
    )


def together(done: Sequence[Series]) -> Figures:
    """Return the figures of several faults as those of one series, and each by itself in `series`."""
    each = [series.figures() for series in done]
    outages = [trial.outage for series in done for trial in series.trials]
    summed = ("trials", "pings_lost", "tcp_broken", "bytes_verified", "bytes_wrong")
    return {
        "fault": ALL,
        "standby": each[0]["standby"],
        "bound_s": max(figures["bound_s"] for figures in each),
        "outage_s": spread(outages),
        **{name: sum(figures[name] for figures in each) for name in summed},
        "series": each,
    }


def rows(done: Sequence[Series]) -> Iterator[Sequence[object]]:
    """Yield the table: what was promised, what it took, and what is judged."""
    yield (
        "",
        "FAULT",
        "TRIALS",
        "PROMISED",
        "MIN",
        "MEDIAN",
        "P95",
        "MAX",
        "BEYOND",
        "PINGS LOST",
        "TCP BROKEN",
        "BYTES WRONG",
    )
    for series in done:
        figures = series.figures()
        yield (
            mark(series.passed),
            series.fault,
            figures["trials"],
            _milliseconds(figures["bound_s"]),
            *map(_milliseconds, figures["outage_s"].values()),
            f"{figures['beyond_bound_s']['p95'] * 1e3:+.0f} ms",
            figures["pings_lost"],
            figures["tcp_broken"],
            f"{figures['bytes_wrong']} of {figures['bytes_verified']:,}",
        )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


# --- Heartbeats ----------------------------------------------------------------------------------


def _heartbeats(options: argparse.Namespace) -> int:
    # The patent's and the policy's default times.
    terms = [Terms(heartbeat=mode, defer=5.0, response=1.0) for mode in HeartbeatMode]
    counts = economy.count(terms, options.seconds)
    good = all(count.good for count in counts)
    if options.json:
        figures = [_count_figures(count) for count in counts]
        say(json.dumps({"seconds": options.seconds, "good": good, "counts": figures}))
    else:
        say(table(_count_rows(counts)))
    return 0 if good else 1


def _count_figures(count: Count) -> Figures:
    return {
        "heartbeat": count.terms.heartbeat.value,
        "load": count.load.value,
        "seconds": round(count.seconds, 3),
        "payload": count.payload,
        "heartbeats": count.heartbeats,
        "following_payload": count.following,
        "other": count.other,
        "good": count.good,
    }


def _count_rows(counts: Sequence[Count]) -> Iterator[Sequence[object]]:
    yield "", "MODE", "CLIENT", "SECONDS", "PAYLOAD", "HEARTBEATS", "DIRECTLY BEHIND PAYLOAD", "OTHER"
    for count in counts:
        yield (
            mark(count.good),
            count.terms.heartbeat.value,
            count.load.value,
            f"{count.seconds:.1f}",
            count.payload,
            count.heartbeats,
            count.following,
            count.other,
        )
