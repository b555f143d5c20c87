"""
The benchmark's chart: a panel of bars for each metric, one bar for each tunnel, as an SVG file of its own.

    `rvpn.lab.figures.summary` -> `chart`

Each panel has its own scale. No tunnel, whose bars would dwarf all others, is left to the table.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rvpn.lab.figures import NONE, RVPN, Metric, shown
from rvpn.lab.svg import Scale, box, svg, text

_WIDTH, _COLUMNS, _GAP = 960.0, 2, 36.0
_HEAD, _BAR, _SPACE = 26.0, 18.0, 6.0
#: For the names on the left of the bars, and the numbers on their right.
_NAMES, _NUMBERS = 92.0, 84.0

#: What a picture in a file of its own must say, and one within a page need not.
_ALONE = 'xmlns="http://www.w3.org/2000/svg" '
_STYLE = """<style>
svg { font: 12px system-ui, sans-serif; background: #ffffff; }
text { fill: #16202c; }
.title { font-weight: 600; }
.label { fill: #5b6878; }
.ours { fill: #2d5fa8; }
.other { fill: #b9c3cf; }
@media (prefers-color-scheme: dark) {
  svg { background: #10161e; } text { fill: #e6ebf1; } .label { fill: #97a4b4; }
  .ours { fill: #7db0f5; } .other { fill: #4a5766; }
}
</style>"""


def chart(result: Mapping[str, Any]) -> str:
    """Return the chart of a summary."""
    peers = {name: figures for name, figures in result["peers"].items() if name != NONE}
    metrics = shown({"peers": peers})
    height = _HEAD + len(peers) * (_BAR + _SPACE) + _SPACE
    width = (_WIDTH - (_COLUMNS - 1) * _GAP) / _COLUMNS
    parts = [_STYLE]
    for number, metric in enumerate(metrics):
        row, column = divmod(number, _COLUMNS)
        parts += _panel(metric, peers, column * (width + _GAP), row * (height + _SPACE), width)
    total = -(-len(metrics) // _COLUMNS) * (height + _SPACE)
    return svg(_WIDTH, total, "rvpn and other tunnels, measured in turn", parts, _ALONE) + "\n"


def _panel(metric: Metric, peers: Mapping[str, Any], left: float, top: float, width: float) -> Iterator[str]:
    values = {name: metric.of(figures) for name, figures in peers.items()}
    highest = max((value for value in values.values() if value is not None), default=0.0)
    x = Scale(0.0, max(highest, 1e-9), left + _NAMES, left + width - _NUMBERS)
    better = "more is better" if metric.more_is_better else "less is better"
    yield text(left, top + 15, metric.title, "title")
    yield text(left + width, top + 15, better, "label", "end")
    for number, (name, value) in enumerate(values.items()):
        y = top + _HEAD + number * (_BAR + _SPACE)
        shown_at = max(0.0, value or 0.0)
        yield text(left + _NAMES - 8, y + 13, name, "label", "end")
        yield box(x.start, y, x(shown_at) - x.start, _BAR, "ours" if name == RVPN else "other")
        yield text(x(shown_at) + 6, y + 13, metric.text(value))
