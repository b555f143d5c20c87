"""The demonstration's report: its charts, and that it is one file that needs nothing else."""

from html.parser import HTMLParser
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from rvpn.lab.chart import close_up, overview, rates
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
        """The rate of each tenth of a second is what was verified in it, in megabits per second."""
        progress = [Progress(0.0, 0, 0, 0), Progress(0.05, 100_000, 0, 0), Progress(0.25, 150_000, 0, 0)]
        self.assertEqual([round(rate, 6) for rate in rates(progress, 0.4)], [8.0, 0.0, 4.0, 0.0])


class ChartTests(SynchronousTestCase):
    """The drawings."""

    def test_overview(self) -> None:
        """The overview is well-formed, names faults and gateways, and marks each outage once."""
        text = overview(story())
        ElementTree.fromstring(text)
        self.assertEqual(text.count('class="outage"'), 1)
        self.assertEqual(text.count('class="fault"'), 1)
        for words in ("gateway1 killed", ">gateway2<", "nothing for 100 ms"):
            self.assertIn(words, text)

    def test_close_up(self) -> None:
        """A close-up shows each ping of its half second, 80 answered and 20 lost."""
        text = close_up(story(), story().outages[0])
        paths = ElementTree.fromstring(text).findall("path")
        dots = {path.get("class"): (path.get("d") or "").count("M") for path in paths}
        self.assertEqual(dots, {"ping": 80, "lost": 20})
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
