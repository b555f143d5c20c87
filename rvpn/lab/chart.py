"""
Charts as inline SVG: an overview of a story, and a close-up of each outage.

    Story -> `overview`: which gateway was in use, throughput, round-trip times, faults marked
          -> `close_up`: every single ping around one fault

Colours and fonts are those of the page (`rvpn.lab.page`), by CSS classes and, for gateways, variables.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from rvpn.lab.records import Arrival, Progress
from rvpn.lab.story import Outage, Sort, Story
from rvpn.lab.svg import Scale, box, dots, line, svg, text, ticks

WIDTH, LEFT, RIGHT = 960.0, 62.0, 16.0
#: Seconds that one point of the throughput covers.
BIN = 0.1
_PANEL, _LANE, _GAP, _HEAD, _FOOT = 150.0, 26.0, 34.0, 46.0, 30.0
#: Seconds before and after a fault in a close-up, and the size of one.
_BEFORE, _AFTER, _CLOSE_WIDTH, _CLOSE_HEIGHT = 0.1, 0.4, 470.0, 190.0


def rates(progress: Sequence[Progress], length: float) -> list[float]:
    """Return the megabits per second that were verified in each `BIN`."""
    amounts = [0.0] * math.ceil(length / BIN)
    before = None
    for each in progress:
        if before is not None and 0 <= each.when < length:
            amounts[int(each.when / BIN)] += each.verified - before.verified
        before = each
    return [amount * 8e-6 / BIN for amount in amounts]


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
    return svg(WIDTH, bottom + _FOOT, "Throughput and round-trip time while gateways fail", parts)


def _outages(story: Story, x: Scale, top: float, bottom: float) -> Iterator[str]:
    for outage in story.outages:
        yield box(x(outage.begin), top, x(outage.end) - x(outage.begin), bottom - top, "outage")


def _lane(story: Story, x: Scale, top: float) -> Iterator[str]:
    """Draw which gateway was in use when."""
    yield text(LEFT - 8, top + 17, "in use", "label", "end")
    ends = [*(since for since, _ in story.used[1:]), story.length]
    for (since, gateway), end in zip(story.used, ends, strict=True):
        width = x(end) - x(since)
        yield box(x(since), top, width - 1, _LANE, "use", _colour(gateway))
        yield text(x(since) + 8, top + 17, gateway, "on-colour")


def _panel(x: Scale, top: float, title: str, high: float) -> tuple[Scale, list[str]]:
    """Return the vertical scale of a panel, and its title and grid."""
    values = ticks(high, 4)
    y = Scale(0.0, values[-1], top + _PANEL, top)
    return y, [text(LEFT, top - 9, title, "title"), *_grid(x, y, values)]


def _grid(x: Scale, y: Scale, values: Iterable[float]) -> Iterator[str]:
    for value in values:
        yield line(x.start, y(value), x.end, y(value), "grid")
        yield text(x.start - 8, y(value) + 4, f"{value:g}", "label", "end")


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
    yield dots(((x(each.received), max(y.end, y(_milliseconds(each)))) for each in story.replies), "ping")


def _milliseconds(reply: Arrival) -> float:
    return (reply.received - reply.sent) * 1e3


def _time_axis(x: Scale, y: float) -> Iterator[str]:
    for value in ticks(x.high, 14):
        if value <= x.high:
            yield line(x(value), y, x(value), y + 4, "axis")
            yield text(x(value), y + 18, f"{value:g} s", "label", "middle")


def _marks(story: Story, x: Scale, bottom: float) -> Iterator[str]:
    for moment in story.moments:
        if moment.mark:
            style = "fault" if moment.sort is Sort.FAULT else "event"
            yield line(x(moment.at), _HEAD - 8, x(moment.at), bottom, style)
            yield text(x(moment.at) - 4, 14, moment.mark, f"mark {style}-words")
    for outage in story.outages:
        yield text(x(outage.at) - 4, 31, f"nothing for {outage.length * 1e3:.0f} ms", "note")


# --- A close-up ----------------------------------------------------------------------------------


def close_up(story: Story, outage: Outage) -> str:
    """Return the chart of every ping around one outage."""
    low, high = outage.at - _BEFORE, outage.at + _AFTER
    x = Scale(low, high, 44.0, _CLOSE_WIDTH - 26.0)
    answered = [reply for reply in story.replies if low < reply.sent < high]
    values = ticks(max((_milliseconds(reply) for reply in answered), default=1.0), 3)
    y = Scale(0.0, values[-1], _CLOSE_HEIGHT - 58.0, 40.0)
    parts = [
        box(x(outage.begin), y.end, x(outage.end) - x(outage.begin), y.start - y.end, "outage"),
        *_grid(x, y, values),
        text(x.start, 16, outage.words, "title"),
        dots(((x(reply.sent), y(_milliseconds(reply))) for reply in answered), "ping"),
        dots(((x(when), y.start + 14) for when in _lost(story.replies, low, high)), "lost"),
        text(x.start - 6, y.start + 18, "lost", "label", "end"),
        *_events(story, outage, x, y),
    ]
    for tenth in range(math.ceil(-_BEFORE * 10), int(_AFTER * 10) + 1):
        at, words = x(outage.at + tenth / 10), f"{tenth * 100} ms" if tenth else "fault"
        parts.append(text(at, _CLOSE_HEIGHT - 8, words, "label", "middle"))
        parts.append(line(at, y.start + 24, at, y.start + 29, "axis"))
    return svg(_CLOSE_WIDTH, _CLOSE_HEIGHT, f"Each ping around the fault: {outage.words}", parts)


def _events(story: Story, outage: Outage, x: Scale, y: Scale) -> Iterator[str]:
    """Mark the fault, and when the client went to another gateway."""
    yield line(x(outage.at), y.end, x(outage.at), y.start + 24, "fault")
    for since, gateway in story.used:
        if outage.at < since < x.high:
            yield line(x(since), y.end, x(since), y.start + 24, "switch")
            yield text(x(since) + 4, y.end - 5, f"client uses {gateway}", "note")


def _lost(replies: Sequence[Arrival], low: float, high: float) -> Iterator[float]:
    """Yield when the pings were sent that were not answered, as their neighbours tell."""
    ordered = sorted(replies)
    for before, after in pairwise(ordered):
        missing = after.number - before.number - 1
        for number in range(1, missing + 1):
            sent = before.sent + (after.sent - before.sent) * number / (missing + 1)
            if low < sent < high:
                yield sent
