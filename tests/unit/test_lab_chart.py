"""The demonstration's report: its charts, and that it is one file that needs nothing else."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.chart import NARROW, WIDE, close_up, overview, rates
from rvpn.lab.page import page
from rvpn.lab.records import Arrival, Progress
from rvpn.lab.story import Moment, Outage, Sort, Story
from rvpn.lab.svg import Scale, ticks

VOID = {"meta", "br", "hr", "img", "input", "link"}


def _change(left: str | None, taken: str | None, reason: str, **times: float) -> dict[str, object]:
    return {"left": left, "taken": taken, "reason": reason, "detection": None, "first_packet": None, **times}


def story() -> Story:
    """Return four seconds in which one gateway of two dies after two; pings 400 to 419 are lost."""
    sent = [(number, number * 0.005 + 0.0025) for number in range(800) if not 400 <= number < 420]
    return Story(
        bound=0.2,
        length=4.0,
        moments=[
            Moment(0.0, Sort.NOTE, "traffic flows"),
            Moment(2.0, Sort.FAULT, "gateway1 is <killed> & gone", "gateway1 killed"),
            Moment(2.08, Sort.SWITCH, "the client goes to gateway2"),
        ],
        outages=[Outage("gateway1 killed", at=2.0, begin=1.996, end=2.101, lost=20)],
        used=[(0.0, "gateway1"), (2.08, "gateway2")],
        journal=[
            _change(None, "gateway1", "a packet", first_packet=0.01),
            _change("gateway1", None, "<silence>", detection=0.08),
        ],
        replies=[Arrival(number, when, when + 0.001) for number, when in sent],
        progress=[Progress(tenth / 10, tenth * 100_000, 0, 0) for tenth in range(40)],
        pings=800,
    )


class ScaleTests(SynchronousTestCase):
    """Numbers and where they lie."""

    def test_scale(self) -> None:
        """A scale maps linearly, downwards too, and one of no length to its start."""
        self.assertEqual([Scale(0, 10, 100, 0)(value) for value in (0, 5, 10)], [100, 50, 0])
        self.assertEqual(Scale(1, 1, 5, 9)(1), 5)

    def test_ticks(self) -> None:
        """Ticks are round, begin at 0, reach what must be shown and are no more than asked for."""
        self.assertEqual(ticks(31, 4), [0, 10, 20, 30, 40])
        self.assertEqual(ticks(8, 4), [0, 2, 4, 6, 8])
        self.assertEqual(ticks(13.4, 14), list(range(15)))
        for high in (0.0, 0.003, 0.7, 1.0, 99.0, 12345.0):
            values = ticks(high, 4)
            self.assertTrue(values[-1] >= high and len(values) <= 5, values)

    def test_rates(self) -> None:
        """The rate of each 20 ms is what was verified in it, in megabits per second."""
        progress = [Progress(0.0, 0, 0, 0), Progress(0.11, 20_000, 0, 0), Progress(0.15, 30_000, 0, 0)]
        self.assertEqual([round(rate, 6) for rate in rates(progress, 0.1, 0.18)], [8.0, 0.0, 4.0, 0.0])


class ChartTests(SynchronousTestCase):
    """The drawings."""

    def test_overview(self) -> None:
        """The overview is well-formed, names faults and gateways, and marks each outage once."""
        text = overview(story())
        ElementTree.fromstring(text)
        self.assertEqual(text.count('class="outage"'), 1)
        self.assertEqual(text.count('class="fault"'), 1)
        for words in ("gateway1 killed: nothing for 100 ms", ">gateway2<"):
            self.assertIn(words, text)

    def test_short_outage(self) -> None:
        """An outage of 100 ms is a gap in the throughput, in the overview and close up."""
        busy = story()
        busy.progress = [
            Progress(when, number * 5000, 0, 0)
            for number in range(800)
            if not 2.0 < (when := number * 0.005 + 0.001) < 2.1
        ]
        for text in overview(busy), close_up(busy, busy.outages[0]):
            area = next(
                path for path in ElementTree.fromstring(text).findall("path") if path.get("class") == "area"
            )
            levels = re.findall(r"V([0-9.]+)H", area.get("d") or "")
            self.assertEqual(levels.count(max(levels, key=float)), 5)

    def test_beyond(self) -> None:
        """Round trips above the scale are drawn at its edge, and that is said with the longest."""
        slow = story()
        slow.replies = [*slow.replies, Arrival(800, 3.9, 3.99), Arrival(801, 3.91, 3.99)]
        text = overview(slow)
        self.assertIn("2 at the edge: up to 90 ms", text)
        self.assertNotIn("at the edge", overview(story()))

    def test_labels(self) -> None:
        """Labels do not overlap, nor leave the chart, however narrow it is."""
        crowded = story()
        crowded.moments += [Moment(at, Sort.NOTE, "", f"gateway{at:g} started") for at in (2.5, 2.6, 3.9)]
        for width in (WIDE, NARROW):
            taken: dict[float, list[tuple[float, float]]] = {}
            for element in ElementTree.fromstring(overview(crowded, width)).findall("text"):
                if "mark" in (element.get("class") or ""):
                    x, length = float(element.get("x") or 0), 7.0 * len(element.text or "")
                    begin = x - length if element.get("text-anchor") == "end" else x
                    self.assertTrue(begin >= 0 and begin + length <= width + 8)
                    taken.setdefault(float(element.get("y") or 0), []).append((begin, begin + length))
            self.assertEqual(sum(map(len, taken.values())), 4)
            for row in taken.values():
                self.assertTrue(all(before[1] <= after[0] for before, after in pairwise(sorted(row))))

    def test_close_up(self) -> None:
        """A close-up shows each ping of its half second, 80 answered and 20 lost."""
        text = close_up(story(), story().outages[0])
        paths = ElementTree.fromstring(text).findall("path")
        dots = {path.get("class"): (path.get("d") or "").count("h0") for path in paths}
        self.assertEqual(dots, {"ping": 80, "lost": 20, "area": 0})
        self.assertIn("client uses gateway2", text)


class _Reader(HTMLParser):
    """Follows tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


class PageTests(SynchronousTestCase):
    """The file."""

    def setUp(self) -> None:
        """Write it."""
        visits, links = [("TARGET", "PINGS"), ("target1", "20/20")], [("LINK",), ("outside",)]
        self.text = page(4, story(), visits, links, [(True, "it works"), (False, "it does <not>")])

    def test_well_formed(self) -> None:
        """Every tag is closed in order, and words are escaped."""
        reader = _Reader()
        reader.feed(self.text)
        self.assertEqual(reader.open, [])
        for words in ("gateway1 is &lt;killed&gt; &amp; gone", "&lt;silence&gt;", "✗ it does &lt;not&gt;"):
            self.assertIn(words, self.text)

    def test_alone(self) -> None:
        """It refers to nothing outside itself, and runs nothing."""
        reader = _Reader()
        reader.feed(self.text)
        self.assertFalse({"script", "link", "img", "iframe", "object"} & {tag for tag, _ in reader.seen})
        self.assertFalse({"src", "href"} & {name for _, attrs in reader.seen for name in attrs})
        for reference in ("url(", "@import", "://"):
            self.assertNotIn(reference, self.text)

    def test_figures(self) -> None:
        """The figures at the top are the longest outage, broken connections, bytes and lost pings."""
        for figure in ("<b>100 ms</b>", "<b>0</b>", "<b>3.9 MB</b>", "<b>20 of 800</b>"):
            self.assertIn(figure, self.text)
