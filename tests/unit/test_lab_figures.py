"""What is made of the benchmark's rounds: medians, ratios, the table, the chart, the object for programs."""

import json
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Self
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from rvpn.arguments import Parser
from rvpn.cli import main
from rvpn.lab import bench_command
from rvpn.lab.bars import chart
from rvpn.lab.figures import METRICS, Figures, medians, ratios, rows, summary, table
from rvpn.lab.rounds import Field, resident
from rvpn.lab.saturation import Saturation
from rvpn.lab.sightings import Judgement

PAGE = Path(__file__).resolve().parents[2] / "docs/benchmarks.md"


def figures(factor: float, tunnelled: bool = True) -> dict[str, Any]:
    """Return one peer's figures of one round, as `rvpn.lab.rounds` makes them."""
    return {
        "tcp_up_mbps": 1000 * factor,
        "cpu_s_per_gb": 8 / factor if tunnelled else None,
        "tcp_down_mbps": 1100 * factor,
        "tcp4_up_mbps": 900 * factor,
        "tcp4_down_mbps": 950 * factor,
        "udp100_pps": round(60_000 * factor),
        "udp1300_pps": round(50_000 * factor),
        "ping_ms": {"p50": 0.4 / factor, "p99": 0.8 / factor},
        "ping_flood_ms": {"p50": 0.2 / factor, "p99": 0.3 / factor},
        "rss_mb": 40.0 if tunnelled else None,
    }


def three_rounds() -> dict[str, Any]:
    """Return the summary of rounds in which another tunnel has half of what we have, but for one stray."""
    rounds = [
        {"none": figures(4, False), "rvpn": figures(factor), "openvpn": figures(factor / 2)}
        for factor in (1, 0.1, 1)
    ]
    return summary(rounds, versions={"rvpn": "1"}, absent={"wireguard-go": "is not installed"})


class SummaryTests(SynchronousTestCase):
    """Numbers."""

    def test_medians(self) -> None:
        """Each figure has its own median, inner ones too, of the rounds that have it."""
        three: list[Figures] = [
            {"a": 1, "b": {"c": 5}, "d": None},
            {"a": 9, "b": {"c": 7}},
            {"a": 2, "b": None, "d": 4},
        ]
        self.assertEqual(medians(three), {"a": 2, "b": {"c": 6}, "d": 4})
        self.assertEqual(medians([{"a": None}]), {"a": None})

    def test_summary(self) -> None:
        """Medians of each peer, what a tunnel adds to round trips, our ratios, and the rounds."""
        result = three_rounds()
        ours = result["peers"]["rvpn"]
        self.assertEqual(ours["tcp_up_mbps"], 1000)
        self.assertEqual(ours["ping_ms"], {"p50": 0.4, "p99": 0.8})
        self.assertEqual((ours["ping_added_us"], ours["ping_flood_added_us"]), (300, 150))
        self.assertEqual(result["peers"]["none"]["cpu_s_per_gb"], None)
        self.assertEqual(list(result["ratios"]), ["openvpn"])
        self.assertEqual(result["ratios"]["openvpn"]["tcp_up_mbps"], 2)
        self.assertEqual(result["ratios"]["openvpn"]["cpu_s_per_gb"], 0.5)
        self.assertEqual(result["ratios"]["openvpn"]["ping_added_us"], round(300 / 700, 3))
        self.assertEqual(len(result["rounds"]), 3)
        self.assertEqual(result["rounds"][1]["rvpn"]["tcp_up_mbps"], 100)

    def test_without_baseline(self) -> None:
        """Without figures of no tunnel nobody knows what a tunnel adds; a lost peer is lost from then on."""
        result = summary([{"rvpn": figures(1), "openvpn": figures(2)}, {"rvpn": figures(1)}])
        self.assertIsNone(result["peers"]["rvpn"]["ping_added_us"])
        self.assertEqual(result["peers"]["openvpn"]["tcp_up_mbps"], 2000)

    def test_nothing_to_compare(self) -> None:
        """A ratio to nothing, or to what is missing, is missing."""
        found = ratios({"rss_mb": 1.0, "udp100_pps": 0}, {"rss_mb": 0.0, "udp100_pps": 5})
        self.assertEqual((found["rss_mb"], found["udp100_pps"], found["tcp_up_mbps"]), (None, 0, None))

    def test_json(self) -> None:
        """It is one JSON object."""
        self.assertEqual(json.loads(json.dumps(three_rounds())), three_rounds())

    def test_documented(self) -> None:
        """The page names exactly the keys of a peer, and those of a run at saturation."""
        text = PAGE.read_text()
        parts = re.split(r"^##+ ", text, flags=re.MULTILINE)
        named = [set(re.findall(r"^\| `(\w+)`", part, re.MULTILINE)) for part in parts]
        self.assertIn(set(three_rounds()["peers"]["rvpn"]), named)
        saturation = Saturation(60, 0, 9, 0, 3.0, Judgement(1, 0, 0.1, 9, 0.1), 1, 1, 1)
        self.assertIn(set(saturation.figures()), named)

    def test_resident(self) -> None:
        """Resident memory is read from the process's status."""
        self.assertEqual(resident("Name:\tx\nVmRSS:\t   61440 kB\nThreads:\t1\n"), 60.0)


class PictureTests(SynchronousTestCase):
    """Table and chart."""

    def test_table(self) -> None:
        """The table has a column for each peer and ratio, and a row for each metric that somebody has."""
        lines = table(three_rounds()).splitlines()
        self.assertEqual(lines[0], "|  | no tunnel | rvpn | openvpn | rvpn / openvpn |")
        self.assertEqual(len(lines), 2 + len(METRICS))
        self.assertIn("| TCP up, Mbit/s | 4,000 | 1,000 | 500 | 2.00 |", lines)
        self.assertIn("| memory of the gateway, MB | - | 40.0 | 40.0 | 1.00 |", lines)
        without = summary([{"rvpn": {"tcp_up_mbps": 1.0}}])
        self.assertEqual(list(rows(without)), [["", "rvpn"], ["TCP up, Mbit/s", "1"]])

    def test_chart(self) -> None:
        """The chart is SVG with a panel for each metric and a bar for each tunnel, none beyond its panel."""
        picture = ElementTree.fromstring(chart(three_rounds()))
        space = "{http://www.w3.org/2000/svg}"
        bars = list(picture.iter(f"{space}rect"))
        self.assertEqual(len(bars), 2 * len(METRICS))
        width = float(picture.attrib["viewBox"].split()[2])
        self.assertTrue(all(float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width for bar in bars))
        words = [element.text for element in picture.iter(f"{space}text")]
        self.assertEqual(words.count("rvpn"), len(METRICS))
        self.assertNotIn("no tunnel", words)


class PageTests(SynchronousTestCase):
    """The figures that docs/benchmarks.md shows."""

    def test_files(self) -> None:
        """Table and chart in docs/benchmarks are what the figures beside them make."""
        directory = PAGE.parent / "benchmarks"
        result = json.loads((directory / bench_command.JSON_FILE).read_text())
        self.assertEqual((directory / bench_command.TABLE_FILE).read_text(), table(result))
        self.assertEqual((directory / bench_command.CHART_FILE).read_text(), chart(result))


class FakeField:
    """Has figures without a laboratory; `meanwhile` happens while it measures."""

    meanwhile: ClassVar[Callable[[], None]]

    def __init__(self, *_terms: object) -> None:
        self.absent: dict[str, str] = {}

    def round(self) -> dict[str, Figures]:
        """Return the same as ever."""
        FakeField.meanwhile()
        return {"none": figures(4, False), "rvpn": figures(1)}

    def __enter__(self) -> Self:
        """Return the field itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End nothing."""


class CommandTests(SynchronousTestCase):
    """The command line."""

    def parse(self, *words: str) -> Any:
        """Return what `rvpn lab bench` makes of these words."""
        parser = Parser(prog="rvpn lab")
        bench_command.register(parser.add_subparsers())
        return parser.parse_args(["bench", *words])

    def test_peers(self) -> None:
        """Peers are named with commas, each once."""
        self.assertEqual(
            self.parse("--peers", "openvpn, wireguard-go,openvpn").peers, ("openvpn", "wireguard-go")
        )
        self.assertNotIn("peers", self.parse())

    def test_refused(self) -> None:
        """Unknown peers or none, and numbers without sense or bound, are refused."""
        for words in (
            ("--peers", "tinc"),
            ("--peers", ""),
            ("--rounds", "0"),
            ("--rounds", "1000"),
            ("--seconds", "nan"),
            ("--seconds", "1e9"),
            ("--loss", "101"),
            ("--delay", "-1"),
            ("--saturate", "0"),
        ):
            with redirect_stderr(StringIO()), self.assertRaises(SystemExit):
                self.parse(*words)

    def run_main(self, *words: str) -> tuple[int | str | None, str, str]:
        """Run `rvpn lab bench`, in a field without tunnels; return exit code, output and errors."""
        self.patch(Field, "start", FakeField)
        output, errors = StringIO(), StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            try:
                code: int | str | None = main(["lab", "bench", *words])
            except SystemExit as end:
                code = end.code
        return code, output.getvalue(), errors.getvalue()

    def test_unknown(self) -> None:
        """Who gives an option that the benchmark does not have is led to its own help."""
        said = (
            "rvpn lab bench: error: unrecognized arguments: --frobnicate; rvpn lab bench --help tells more\n"
        )
        self.assertEqual(self.run_main("--frobnicate"), (2, "", said))

    def test_saturate_alone(self) -> None:
        """Options of the comparison beside --saturate are refused, even with their default values."""
        self.patch(bench_command, "saturate", None)
        for words in (
            ("--peers", "openvpn"),
            ("--install",),
            ("--rounds", "5"),
            ("--seconds", "2"),
            ("--delay", "0"),
            ("--loss", "1"),
            ("--write", "x"),
        ):
            code, _, errors = self.run_main("--saturate", "60", *words)
            self.assertEqual(code, 2)
            self.assertIn(f"takes no {words[0]};", errors)

    def test_write_nowhere(self) -> None:
        """Where --write can write nothing, nothing is measured."""
        file = Path(self.mktemp())
        file.write_text("")
        code, output, errors = self.run_main("--rounds", "1", "--write", str(file / "figures"))
        self.assertEqual((code, output), (1, ""))
        self.assertEqual(
            errors, f"rvpn: error: no file can be written to {file / 'figures'}: Not a directory\n"
        )

    def test_write_fails(self) -> None:
        """What was measured is printed even if --write fails afterwards; its directory was made before."""
        directory = Path(self.mktemp()) / "deeper"
        FakeField.meanwhile = lambda: (directory / bench_command.TABLE_FILE).mkdir()
        code, output, errors = self.run_main("--rounds", "1", "--write", str(directory))
        self.assertEqual(code, 1)
        self.assertIn("TCP up, Mbit/s", output)
        self.assertIn(f"cannot write {directory / bench_command.TABLE_FILE}: Is a directory\n", errors)


class SaturationTests(SynchronousTestCase):
    """Whether a run at saturation was as it must be."""

    def run_with(self, **changed: Any) -> bool:
        """Tell whether a good run would pass with something changed."""
        control = Judgement(100, 3, 0.1, 20, changed.pop("longest_exchange", 0.2))
        good = {"false_failovers": 0, "rekeys": 20, "exchanges_failed": 0, "oldest_key": 2.9, **changed}
        return Saturation(60, **good, control=control, mbps_up=1, mbps_down=1, datagrams=1).passed

    def test_passed(self) -> None:
        """No gateway left, no exchange failed or late, no key too old, and there were new keys at all."""
        self.assertTrue(self.run_with())
        for changed in (
            {"false_failovers": 1},
            {"rekeys": 0},
            {"exchanges_failed": 1},
            {"oldest_key": 4.6},
            {"longest_exchange": 2.1},
        ):
            self.assertFalse(self.run_with(**changed), changed)
