"""
Charts as inline SVG: an overview of a story, and a close-up of each outage.

    Story -> `overview`: which gateway was in use, throughput, round-trip times, faults marked
          -> `close_up`: every single ping around one fault

Colours and fonts are those of the page (`rvpn.lab.page`), by CSS classes and, for gateways, variables.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from rvpn.lab.records import Arrival, Progress
from rvpn.lab.story import Outage, Sort, Story

WIDTH, LEFT, RIGHT = 960.0, 62.0, 16.0
#: Seconds that one point of the throughput covers.
BIN = 0.1
_PANEL, _LANE, _GAP, _HEAD, _FOOT = 150.0, 26.0, 34.0, 46.0, 30.0
#: Seconds before and after a fault in a close-up, and the size of one.
_BEFORE, _AFTER, _CLOSE_WIDTH, _CLOSE_HEIGHT = 0.1, 0.4, 470.0, 190.0


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear scale: values from `low` to `high` lie between the coordinates `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        share = (value - self.low) / (self.high - self.low or 1.0)
        return self.start + share * (self.end - self.start)


def ticks(high: float, most: int) -> list[float]:
    """Return round values from 0 to at least `high`, at most `most` steps apart: 0, 5, 10... or 0, 2, 4..."""
    rough = max(high, 1e-9) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(high / step - 1e-9) + 1)]


def rates(progress: Sequence[Progress], length: float) -> list[float]:
    """Return the megabits per second that were verified in each `BIN`."""
    amounts = [0.0] * math.ceil(length / BIN)
    before = None
    for each in progress:
        if before is not None and 0 <= each.when < length:
            amounts[int(each.when / BIN)] += each.verified - before.verified
        before = each
    return [amount * 8e-6 / BIN for amount in amounts]


# --- Elements ------------------------------------------------------------------------------------


def _text(x: float, y: float, words: object, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(str(words))}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _box(x: float, y: float, width: float, height: float, style: str, more: str = "") -> str:
    size = f'width="{max(width, 0.8):.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{style}" {more}/>'


def _dots(points: Iterable[tuple[float, float]], style: str) -> str:
    """Return many dots as one path: a line of no length has a round cap."""
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path d="{path}" class="{style}"/>'


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    label = escape(title, quote=True)
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">\n{inside}\n</svg>'


def _colour(gateway: str) -> str:
    return f'style="fill: var(--{gateway})"'


# --- The overview --------------------------------------------------------------------------------


def overview(story: Story) -> str:
    """Return the chart of the whole story."""
    x = Scale(0.0, story.length, LEFT, WIDTH - RIGHT)
    lane = _HEAD
    first = lane + _LANE + _GAP
    second = first + _PANEL + _GAP
    bottom = second + _PANEL
    parts = [
        *_outages(story, x, lane, bottom),
        *_lane(story, x, lane),
        *_throughput(story, x, first),
        *_round_trips(story, x, second),
        *_time_axis(x, bottom),
        *_marks(story, x, bottom),
    ]
    return _svg(WIDTH, bottom + _FOOT, "Throughput and round-trip time while gateways fail", parts)


def _outages(story: Story, x: Scale, top: float, bottom: float) -> Iterator[str]:
    for outage in story.outages:
        yield _box(x(outage.begin), top, x(outage.end) - x(outage.begin), bottom - top, "outage")


def _lane(story: Story, x: Scale, top: float) -> Iterator[str]:
    """Draw which gateway was in use when."""
    yield _text(LEFT - 8, top + 17, "in use", "label", "end")
    ends = [*(since for since, _ in story.used[1:]), story.length]
    for (since, gateway), end in zip(story.used, ends, strict=True):
        width = x(end) - x(since)
        yield _box(x(since), top, width - 1, _LANE, "use", _colour(gateway))
        yield _text(x(since) + 8, top + 17, gateway, "on-colour")


def _panel(x: Scale, top: float, title: str, high: float) -> tuple[Scale, list[str]]:
    """Return the vertical scale of a panel, and its title and grid."""
    values = ticks(high, 4)
    y = Scale(0.0, values[-1], top + _PANEL, top)
    return y, [_text(LEFT, top - 9, title, "title"), *_grid(x, y, values)]


def _grid(x: Scale, y: Scale, values: Iterable[float]) -> Iterator[str]:
    for value in values:
        yield _line(x.start, y(value), x.end, y(value), "grid")
        yield _text(x.start - 8, y(value) + 4, f"{value:g}", "label", "end")


def _throughput(story: Story, x: Scale, top: float) -> Iterator[str]:
    amounts = rates(story.progress, story.length)
    y, parts = _panel(x, top, "TCP throughput, verified, Mbit/s", max(amounts, default=1.0))
    yield from parts
    path = f"M{x.start:.1f} {y(0):.1f}" + "".join(
        f"V{y(amount):.1f}H{x(min(story.length, (number + 1) * BIN)):.1f}"
        for number, amount in enumerate(amounts)
    )
    yield f'<path d="{path}V{y(0):.1f}Z" class="area"/>'


def _round_trips(story: Story, x: Scale, top: float) -> Iterator[str]:
    times = sorted(map(_milliseconds, story.replies))
    # A few stragglers must not flatten all others: they are drawn at the upper edge.
    y, parts = _panel(x, top, "Round-trip time of each ping, ms", 2 * times[len(times) * 98 // 100])
    yield from parts
    yield _dots(((x(each.received), max(y.end, y(_milliseconds(each)))) for each in story.replies), "ping")


def _milliseconds(reply: Arrival) -> float:
    return (reply.received - reply.sent) * 1e3


def _time_axis(x: Scale, y: float) -> Iterator[str]:
    for value in ticks(x.high, 14):
        if value <= x.high:
            yield _line(x(value), y, x(value), y + 4, "axis")
            yield _text(x(value), y + 18, f"{value:g} s", "label", "middle")


def _marks(story: Story, x: Scale, bottom: float) -> Iterator[str]:
    for moment in story.moments:
        if moment.mark:
            style = "fault" if moment.sort is Sort.FAULT else "event"
            yield _line(x(moment.at), _HEAD - 8, x(moment.at), bottom, style)
            yield _text(x(moment.at) - 4, 14, moment.mark, f"mark {style}-words")
    for outage in story.outages:
        yield _text(x(outage.at) - 4, 31, f"nothing for {outage.length * 1e3:.0f} ms", "note")


# --- A close-up ----------------------------------------------------------------------------------


def close_up(story: Story, outage: Outage) -> str:
    """Return the chart of every ping around one outage."""
    low, high = outage.at - _BEFORE, outage.at + _AFTER
    x = Scale(low, high, 44.0, _CLOSE_WIDTH - 26.0)
    answered = [reply for reply in story.replies if low < reply.sent < high]
    values = ticks(max((_milliseconds(reply) for reply in answered), default=1.0), 3)
    y = Scale(0.0, values[-1], _CLOSE_HEIGHT - 58.0, 40.0)
    parts = [
        _box(x(outage.begin), y.end, x(outage.end) - x(outage.begin), y.start - y.end, "outage"),
        *_grid(x, y, values),
        _text(x.start, 16, outage.words, "title"),
        _dots(((x(reply.sent), y(_milliseconds(reply))) for reply in answered), "ping"),
        _dots(((x(when), y.start + 14) for when in _lost(story.replies, low, high)), "lost"),
        _text(x.start - 6, y.start + 18, "lost", "label", "end"),
        *_events(story, outage, x, y),
    ]
    for tenth in range(math.ceil(-_BEFORE * 10), int(_AFTER * 10) + 1):
        at, words = x(outage.at + tenth / 10), f"{tenth * 100} ms" if tenth else "fault"
        parts.append(_text(at, _CLOSE_HEIGHT - 8, words, "label", "middle"))
        parts.append(_line(at, y.start + 24, at, y.start + 29, "axis"))
    return _svg(_CLOSE_WIDTH, _CLOSE_HEIGHT, f"Each ping around the fault: {outage.words}", parts)


def _events(story: Story, outage: Outage, x: Scale, y: Scale) -> Iterator[str]:
    """Mark the fault, and when the client went to another gateway."""
    yield _line(x(outage.at), y.end, x(outage.at), y.start + 24, "fault")
    for since, gateway in story.used:
        if outage.at < since < x.high:
            yield _line(x(since), y.end, x(since), y.start + 24, "switch")
            yield _text(x(since) + 4, y.end - 5, f"client uses {gateway}", "note")


def _lost(replies: Sequence[Arrival], low: float, high: float) -> Iterator[float]:
    """Yield when the pings were sent that were not answered, as their neighbours tell."""
    ordered = sorted(replies)
    for before, after in pairwise(ordered):
        missing = after.number - before.number - 1
        for number in range(1, missing + 1):
            sent = before.sent + (after.sent - before.sent) * number / (missing + 1)
            if low < sent < high:
                yield sent
