"""What charts are drawn of: scales, round values for their axes, and elements of SVG as text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


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


def text(x: float, y: float, words: object, style: str = "", anchor: str = "start") -> str:
    """Return words that begin at `x`, or end or have their middle there; `style` is a class."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(str(words))}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def box(x: float, y: float, width: float, height: float, style: str, more: str = "") -> str:
    """Return a rectangle that can be seen even if it has no width."""
    size = f'width="{max(width, 0.8):.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{style}" {more}/>'


def dots(points: Iterable[tuple[float, float]], style: str) -> str:
    """Return many dots as one path: a line of no length has a round cap."""
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path d="{path}" class="{style}"/>'


def svg(width: float, height: float, title: str, parts: Iterable[str], more: str = "") -> str:
    """Return a whole picture; `title` is what it is to those who cannot see it."""
    label = escape(title, quote=True)
    inside = "\n".join(parts)
    size = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {more}{size} role="img" aria-label="{label}">\n{inside}\n</svg>'
