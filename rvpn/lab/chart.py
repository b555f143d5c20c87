"""
Charts as inline SVG: an overview of a story, and a close-up of each outage.

    Story -> `overview`: which gateway was in use, throughput, round-trip times, faults marked
          -> `close_up`: every single ping around one fault, and the throughput

Colours and fonts are those of the page (`rvpn.lab.page`), by CSS classes and, for gateways, variables.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rvpn.lab.records import Arrival, Progress
from rvpn.lab.story import Outage, Sort, Story
from rvpn.lab.svg import Scale, box, dots, line, svg, text, ticks

#: The width of an overview on a screen, and on a telephone.
WIDE, NARROW = 960.0, 460.0
_LEFT, _RIGHT = 46.0, 16.0
#: Seconds that one point of the throughput covers: shorter than what a failover costs.
BIN = 0.02
_PANEL, _LANE, _GAP, _FOOT = 150.0, 26.0, 34.0, 30.0
#: The height of a row of labels, and the width of a letter, in the fonts of the page.
_ROW, _LETTER = 16.0, 7.0
#: Seconds before and after a fault in a close-up, and the size of one.
_BEFORE, _AFTER, _CLOSE_WIDTH, _CLOSE_HEIGHT = 0.1, 0.4, 470.0, 266.0


def rates(progress: Sequence[Progress], begin: float, end: float) -> list[float]:
    """Return the megabits per second that were verified in each `BIN` from `begin` to `end`."""
    amounts = [0.0] * math.ceil((end - begin) / BIN - 1e-9)
    for before, each in pairwise(progress):
        if begin <= each.when < end:
            amounts[int((each.when - begin) / BIN)] += each.verified - before.verified
    return [amount * 8e-6 / BIN for amount in amounts]


def _colour(gateway: str) -> str:
    return f'style="fill: var(--{gateway})"'


# --- The overview --------------------------------------------------------------------------------


def overview(story: Story, width: float = WIDE) -> str:
    """Return the chart of the whole story, so many pixels wide."""
    x = Scale(0.0, story.length, _LEFT, width - _RIGHT)
    labels = list(_placed(_labels(story), x, width))
    lane = _ROW * (1 + max((label.row for label in labels), default=0)) + 14
    first = lane + _LANE + _GAP
    second = first + _PANEL + _GAP
    bottom = second + _PANEL
    parts = [
        *_outages(story, x, lane, bottom),
        # Behind the data, of which a short outage is a narrow gap.
        *(part for label in labels for part in label.drawn(bottom)),
        *_lane(story, x, lane),
        *_throughput(story, x, first),
        *_round_trips(story, x, second),
        *_time_axis(x, bottom),
    ]
    return svg(width, bottom + _FOOT, "Throughput and round-trip time while gateways fail", parts)


def _outages(story: Story, x: Scale, top: float, bottom: float) -> Iterator[str]:
    for outage in story.outages:
        yield box(x(outage.begin), top, x(outage.end) - x(outage.begin), bottom - top, "outage")


def _lane(story: Story, x: Scale, top: float) -> Iterator[str]:
    """Draw which gateway was in use when."""
    ends = [*(since for since, _ in story.used[1:]), story.length]
    for (since, gateway), end in zip(story.used, ends, strict=True):
        width = x(end) - x(since)
        yield box(x(since), top, width - 1, _LANE, "use", _colour(gateway))
        name = gateway if _LETTER * len(gateway) + 8 < width else gateway.removeprefix("gateway")
        if _LETTER * len(name) + 8 < width:
            yield text(x(since) + 6, top + 17, name, "on-colour")


def _panel(x: Scale, top: float, title: str, high: float) -> tuple[Scale, list[str]]:
    """Return the vertical scale of a panel, and its title and grid."""
    values = ticks(high, 4)
    y = Scale(0.0, values[-1], top + _PANEL, top)
    return y, [text(_LEFT, top - 9, title, "title"), *_grid(x, y, values)]


def _grid(x: Scale, y: Scale, values: Iterable[float]) -> Iterator[str]:
    for value in values:
        yield line(x.start, y(value), x.end, y(value), "grid")
        yield text(x.start - 8, y(value) + 4, f"{value:g}", "label", "end")


def _throughput(story: Story, x: Scale, top: float) -> Iterator[str]:
    amounts = rates(story.progress, x.low, x.high)
    y, parts = _panel(x, top, "TCP throughput, verified, Mbit/s", max(amounts, default=1.0))
    yield from parts
    yield _area(amounts, x, y)


def _area(amounts: Sequence[float], x: Scale, y: Scale) -> str:
    """Draw rates, each `BIN` wide."""
    path = f"M{x.start:.1f} {y(0):.1f}" + "".join(
        f"V{y(amount):.1f}H{x(min(x.high, x.low + number * BIN)):.1f}"
        for number, amount in enumerate(amounts, 1)
    )
    return f'<path d="{path}V{y(0):.1f}Z" class="area"/>'


def _round_trips(story: Story, x: Scale, top: float) -> Iterator[str]:
    times = sorted(map(_milliseconds, story.replies))
    # A few stragglers must not flatten all others.
    y, parts = _panel(x, top, "Round trip of each ping, ms", 2 * times[len(times) * 98 // 100])
    yield from parts
    shown, beyond = _split(story.replies, lambda reply: _milliseconds(reply) <= y.high)
    yield dots(((x(each.received), y(_milliseconds(each))) for each in shown), "ping")
    if beyond:
        yield dots(((x(each.received), y.end) for each in beyond), "beyond")
        words = f"{len(beyond)} at the edge: up to {times[-1]:.0f} ms"
        yield text(x.end, top - 9, words, "note", "end")


def _split(
    replies: Iterable[Arrival], within: Callable[[Arrival], bool]
) -> tuple[list[Arrival], list[Arrival]]:
    """Return those that are within, and the others."""
    parts: tuple[list[Arrival], list[Arrival]] = ([], [])
    for reply in replies:
        parts[not within(reply)].append(reply)
    return parts


def _milliseconds(reply: Arrival) -> float:
    return (reply.received - reply.sent) * 1e3


def _time_axis(x: Scale, y: float) -> Iterator[str]:
    for value in ticks(x.high, round((x.end - x.start) / 60)):
        if value <= x.high:
            yield line(x(value), y, x(value), y + 4, "axis")
            yield text(x(value), y + 18, f"{value:g} s", "label", "middle")


@dataclass(frozen=True, slots=True)
class _Label:
    """Words above the chart, in a row of their own or of several, at a line across all of it."""

    at: float
    words: str
    style: str
    row: int = 0
    anchor: str = "start"

    def drawn(self, bottom: float) -> Iterator[str]:
        """Draw it, `at` a coordinate."""
        y = _ROW * (self.row + 1)
        side = -4 if self.anchor == "start" else 4
        yield line(self.at, y + 4, self.at, bottom, self.style)
        yield text(self.at + side, y, self.words, f"mark {self.style}-words", self.anchor)


def _labels(story: Story) -> Iterator[_Label]:
    """Yield what is marked, in its order, with what it cost."""
    costs = {outage.at: f": nothing for {outage.length * 1e3:.0f} ms" for outage in story.outages}
    for moment in story.moments:
        if moment.mark:
            style = "fault" if moment.sort is Sort.FAULT else "event"
            yield _Label(moment.at, moment.mark + costs.get(moment.at, ""), style)


def _placed(labels: Iterable[_Label], x: Scale, width: float) -> Iterator[_Label]:
    """Give each label its place: the highest row that is free, to the left of its line where it must be."""
    ends: list[float] = []
    for label in labels:
        at, length = x(label.at), _LETTER * len(label.words)
        leftward = at + length > width
        begin = at - length if leftward else at - 4
        row = next((row for row, end in enumerate(ends) if end < begin), len(ends))
        ends[row : row + 1] = [at if leftward else begin + length]
        yield replace(label, at=at, row=row, anchor="end" if leftward else "start")


# --- A close-up ----------------------------------------------------------------------------------


def close_up(story: Story, outage: Outage) -> str:
    """Return the chart of every ping around one outage, and of the throughput below."""
    low, high = outage.at - _BEFORE, outage.at + _AFTER
    x = Scale(low, high, 44.0, _CLOSE_WIDTH - 26.0)
    answered = [reply for reply in story.replies if low < reply.sent < high]
    values = ticks(max((_milliseconds(reply) for reply in answered), default=1.0), 3)
    y = Scale(0.0, values[-1], 132.0, 40.0)
    amounts = rates(story.progress, low, high)
    levels = ticks(max(amounts, default=1.0), 2)
    below = Scale(0.0, levels[-1], _CLOSE_HEIGHT - 34.0, _CLOSE_HEIGHT - 90.0)
    parts = [
        box(x(outage.begin), y.end, x(outage.end) - x(outage.begin), below.start - y.end, "outage"),
        *_grid(x, y, values),
        *_grid(x, below, levels),
        text(x.start, 16, outage.words, "title"),
        text(x.start, below.end - 7, "TCP, Mbit/s", "label"),
        *_events(story, outage, x, y.end, below.start),
        dots(((x(reply.sent), y(_milliseconds(reply))) for reply in answered), "ping"),
        dots(((x(when), y.start + 14) for when in _lost(story.replies, low, high)), "lost"),
        text(x.start - 6, y.start + 18, "lost", "label", "end"),
        _area(amounts, x, below),
    ]
    for tenth in range(math.ceil(-_BEFORE * 10), int(_AFTER * 10) + 1):
        at, words = x(outage.at + tenth / 10), f"{tenth * 100} ms" if tenth else "fault"
        parts.append(text(at, _CLOSE_HEIGHT - 8, words, "label", "middle"))
        parts.append(line(at, below.start, at, below.start + 5, "axis"))
    return svg(_CLOSE_WIDTH, _CLOSE_HEIGHT, f"Each ping around the fault: {outage.words}", parts)


def _events(story: Story, outage: Outage, x: Scale, top: float, bottom: float) -> Iterator[str]:
    """Mark the fault, and when the client went to another gateway."""
    yield line(x(outage.at), top, x(outage.at), bottom, "fault")
    for since, gateway in story.used:
        if outage.at < since < x.high:
            yield line(x(since), top, x(since), bottom, "switch")
            yield text(x(since) + 4, top - 5, f"client uses {gateway}", "note")


def _lost(replies: Sequence[Arrival], low: float, high: float) -> Iterator[float]:
    """Yield when the pings were sent that were not answered, as their neighbours tell."""
    ordered = sorted(replies)
    for before, after in pairwise(ordered):
        missing = after.number - before.number - 1
        for number in range(1, missing + 1):
            sent = before.sent + (after.sent - before.sent) * number / (missing + 1)
            if low < sent < high:
                yield sent
