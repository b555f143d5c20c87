"""
`rvpn lab bench`: how fast rvpn is, beside others and no tunnel, from the command line.

    --peers, --install -> `rvpn.lab.peers`; --rounds -> `rvpn.lab.rounds` -> `rvpn.lab.figures.summary`
        -> a table, with --json one object, with --write also files for the documentation
    --saturate -> `rvpn.lab.saturation`
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rvpn.arguments import Parser, number, whole_number
from rvpn.cli.subcommand import Subparsers
from rvpn.errors import LocalError
from rvpn.lab import bars, figures, peers, report
from rvpn.lab.figures import NONE, RVPN, Figures
from rvpn.lab.impairment import Impairment
from rvpn.lab.rounds import Field, Scenario
from rvpn.lab.saturation import saturate

_MOST_ROUNDS, _LONGEST = 100, 600.0
#: Percent of the packets each way: with more, too few of the lab's own connections come about.
_MOST_LOSS = 30
#: What rvpn is compared with.
_OTHERS = tuple(name for name, peer in peers.PEERS.items() if peer.program)
#: The options of the comparison, which mean nothing to --saturate; they are absent where they are not given.
_COMPARISON: Mapping[str, Any] = {
    "peers": (),
    "install": False,
    "rounds": 5,
    "seconds": 2.0,
    "delay": 0.0,
    "loss": 0.0,
    "write": None,
}
#: Files that --write makes.
JSON_FILE, TABLE_FILE, CHART_FILE = "lab.json", "lab.md", "lab.svg"


def register(parsers: Subparsers) -> None:
    """Add `bench`."""
    bench = parsers.add_parser(
        "bench",
        help="measure throughput, packet rate, round trip, CPU and memory, beside other tunnels",
        description="Measure rvpn, no tunnel, and other tunnels, each in a lab of its own, one after the "
        "other, in several rounds. With --loss or --delay the paths between client and gateway are spoilt, "
        "and only what goes through a tunnel is measured, by TCP and pings.",
    )
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument(
        "--saturate",
        type=number(0.1, _LONGEST),
        metavar="S",
        help="instead: watch rvpn's heartbeats and keys for so long while everything is busy",
    )
    _register_comparison(bench.add_argument_group("without --saturate", argument_default=argparse.SUPPRESS))
    bench.set_defaults(run=partial(_bench, bench))


def _register_comparison(group: argparse._ArgumentGroup) -> None:
    """Add the options of the comparison; what is not given is in _COMPARISON."""
    group.add_argument("--peers", type=_peers, metavar="NAMES", help=f"some of: {', '.join(_OTHERS)}")
    group.add_argument("--install", action="store_true", help="have apt-get install those that are missing")
    group.add_argument("--rounds", type=whole_number(1, _MOST_ROUNDS), metavar="N", help="default: 5")
    seconds = number(0.1, _LONGEST)
    group.add_argument("--seconds", type=seconds, metavar="S", help="of each transfer (default: 2)")
    group.add_argument("--delay", type=number(0, 100), metavar="MS", help="of each packet, one way")
    group.add_argument("--loss", type=number(0, _MOST_LOSS), metavar="PERCENT", help="each way")
    group.add_argument(
        "--write",
        type=_directory,
        metavar="DIRECTORY",
        help=f"also write {JSON_FILE}, {TABLE_FILE}, {CHART_FILE}",
    )


def _peers(text: str) -> tuple[str, ...]:
    """Take names with commas between them."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or [text]:
        if name not in _OTHERS:
            raise argparse.ArgumentTypeError(f"found {name!r}, expected some of {', '.join(_OTHERS)}")
    return names


def _directory(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("found '', expected the name of a directory")
    return Path(text)


def _bench(parser: Parser, options: argparse.Namespace) -> int:
    if options.saturate is None:
        return _compare(argparse.Namespace(**{**_COMPARISON, **vars(options)}))
    if given := [f"--{name}" for name in _COMPARISON if name in options]:
        parser.error(f"--saturate measures something else, and takes no {', '.join(given)}")
    return _saturate(options)


def _saturate(options: argparse.Namespace) -> int:
    result = saturate(options.saturate)
    found = {"saturation": result.figures(), "versions": _versions([RVPN])}
    report.say(json.dumps(found) if options.json else report.table(found["saturation"].items()))
    return 0 if result.passed else 1


def _compare(options: argparse.Namespace) -> int:
    if options.write:
        _make(options.write)
    scenario = Scenario(options.seconds, Impairment(delay=options.delay / 1e3, loss=options.loss / 1e2))
    if options.install:
        peers.install(options.peers)
    always = (RVPN,) if scenario.impaired else (NONE, RVPN)
    names = list(dict.fromkeys((*always, *options.peers)))
    with Field.start(names, scenario) as field:
        _tell_absent(field.absent)
        rounds = []
        for done in range(1, options.rounds + 1):
            rounds.append(field.round())
            _tell(f"round {done} of {options.rounds} is done")
        absent = dict(field.absent)
    result = figures.summary(
        rounds,
        scenario={"seconds": options.seconds, "delay_ms": options.delay, "loss_percent": options.loss},
        versions=_versions(rounds[0]),
        absent=absent,
    )
    report.say(json.dumps(result) if options.json else report.table(figures.rows(result)))
    if options.write:
        _write(options.write, result)
    return 0


def _tell(words: str) -> None:
    """Say something that is no result."""
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


def _tell_absent(absent: Mapping[str, str]) -> None:
    for name, reason in absent.items():
        _tell(f"{name} is left out: {reason}")


def _versions(names: Iterable[str]) -> Figures:
    """Return what was measured, and on what."""
    programs = {name: peers.PEERS[name].version for name in names if name != NONE}
    return {
        **programs,
        "python": platform.python_version(),
        "linux": platform.release(),
        "tcp": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "cryptography": version("cryptography"),
        "twisted": version("twisted"),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _make(directory: Path) -> None:
    """Make the directory of --write. Raises `LocalError` if it takes no files."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise LocalError(f"no file can be written to {directory}: {error.strerror}") from error


def _write(directory: Path, result: Mapping[str, Any]) -> None:
    """Write the files. Raises `LocalError`."""
    texts = {
        JSON_FILE: json.dumps(result, indent=1) + "\n",
        TABLE_FILE: figures.table(result),
        CHART_FILE: bars.chart(result),
    }
    for name, text in texts.items():
        try:
            (directory / name).write_text(text)
        except OSError as error:
            raise LocalError(f"cannot write {directory / name}: {error.strerror}") from error
