"""Plots, as SVG that takes its colours and sizes from the page's style."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

# Size of a drawing in pixels at its natural size, the width of a telephone.
WIDTH, HEIGHT = 360.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 8.0, 10.0, 38.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through points in the units of the axes."""

    points: Sequence[Point]
    colour: str
    title: str = ""
    style: str = ""


@dataclass(frozen=True)
class Dot:
    """A marker at a point. `spread` is half the length of its error bar, in the units of the y axis."""

    point: Point
    colour: str
    title: str
    style: str = ""
    spread: float | None = None


@dataclass(frozen=True)
class Tick:
    """A tick on an axis: its place in the drawing, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A plot. The ranges of its axes include everything in it.

    y_bounds: the smallest and the largest possible value on the y axis.
    """

    title: str
    x_label: str
    description: str
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()
    x_marks: Sequence[float] = ()
    y_bounds: Point = (-math.inf, math.inf)

    @cached_property
    def ranges(self) -> tuple[Point, Point]:
        """Return the ranges of x and y, with a margin."""
        points = [point for line in self.lines for point in line.points]
        for dot in self.dots:
            points += [(dot.point[0], end) for end in self.bar(dot)]
        xs, ys = zip(*points, strict=True)
        low, high = self.y_bounds
        # An axis of non-negative numbers does not begin below zero.
        return _around(xs, 0.06), _around(ys, 0.08, 0.0 if low < 0 <= min(ys) else low, high)

    def bar(self, dot: Dot) -> Point:
        """Return the ends of its error bar, within the bounds."""
        low, high = self.y_bounds
        spread = dot.spread or 0.0
        return max(low, dot.point[1] - spread), min(high, dot.point[1] + spread)

    def x(self, value: float) -> float:
        low, high = self.ranges[0]
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ranges[1]
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(self, line: Line) -> str:
        """Return a line as the `points` of an SVG polyline."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line.points)

    @property
    def x_ticks(self) -> list[Tick]:
        """Return ticks at as many of the `x_marks` as have room; without these, at round numbers."""
        low, high = self.ranges[0]
        marks: list[float] = []
        for value in self.x_marks or steps(low, high, 6):
            if not marks or self.x(value) - self.x(marks[-1]) > 26:
                marks.append(value)
        return [Tick(self.x(value), f"{value:g}") for value in marks]

    @property
    def y_ticks(self) -> list[Tick]:
        low, high = self.ranges[1]
        return [Tick(self.y(value), f"{value:.12g}") for value in steps(low, high, 6)]

    def svg(self, lines: str) -> str:
        """The plot as an element; `lines` is the class of its lines."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}"'
        parts = [f'<svg {size} role="img" aria-label="{escape(self.description)}">']
        for tick in self.y_ticks:
            parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{right:g}" y1="{tick.at:.1f}" y2="{tick.at:.1f}"/>')
            parts.append(f'<text class="left" x="{LEFT - 6:g}" y="{tick.at + 4:.1f}">{tick.text}</text>')
        for tick in self.x_ticks:
            parts.append(
                f'<line class="grid" x1="{tick.at:.1f}" x2="{tick.at:.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>'
            )
            parts.append(f'<text class="below" x="{tick.at:.1f}" y="{bottom + 17:g}">{tick.text}</text>')
        parts.append(f'<line class="axis" x1="{LEFT:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
        middle = (LEFT + right) / 2
        parts.append(f'<text class="below" x="{middle:g}" y="{HEIGHT - 4:g}">{escape(self.x_label)}</text>')
        for line in self.lines:
            look = f'style="stroke:{line.colour}" stroke-dasharray="{line.style}"'
            title = f"<title>{escape(line.title)}</title>"
            parts.append(f'<polyline class="{lines}" points="{self.path(line)}" {look}>{title}</polyline>')
        parts += map(self._svg_of, self.dots)
        return "\n".join([*parts, "</svg>"])

    def _svg_of(self, dot: Dot) -> str:
        x, y = self.x(dot.point[0]), self.y(dot.point[1])
        title = f"<title>{escape(dot.title)}</title>"
        if dot.style in _OPEN:
            place = ' transform="translate(-8)"' if dot.style == "seed" else ""
            return f'<g class="seed" style="stroke:{dot.colour}"{place}>{title}{marker("circle", x, y, 2.5)}</g>'
        bar = ""
        if dot.spread:
            low, high = (self.y(end) for end in self.bar(dot))
            ends = "".join(f"M{x - 4:.1f},{end:.1f}h8" for end in (high, low))
            bar = f'<path class="bar" d="M{x:.1f},{high:.1f}V{low:.1f}{ends}"/>'
        look = f'style="stroke:{dot.colour};fill:{dot.colour}"'
        return f'<g class="mean" {look}>{title}{bar}{marker(dot.style, x, y, 4)}</g>'


# Small and hollow: many overlap. A seed is left of the mean of its setting.
_OPEN = ("seed", "example")


def marker(name: str, x: float, y: float, size: float) -> str:
    """A circle, square, triangle or diamond around a point."""
    if name == "square":
        return f'<path d="M{x - size:.1f},{y - size:.1f}h{2 * size:g}v{2 * size:g}h{-2 * size:g}z"/>'
    if name == "triangle":
        side = f"l{1.2 * size:g},{2.1 * size:g}h{-2.4 * size:g}z"
        return f'<path d="M{x:.1f},{y - 1.3 * size:.1f}{side}"/>'
    if name == "diamond":
        slope = 1.4 * size
        sides = f"l{1.2 * size:g},{slope:g}l{-1.2 * size:g},{slope:g}l{-1.2 * size:g},{-slope:g}z"
        return f'<path d="M{x:.1f},{y - slope:.1f}{sides}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}"/>'


def style() -> str:
    """CSS of charts, with the colours of the page around them."""
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def steps(low: float, high: float, count: int) -> list[float]:
    """Return at most `count` round numbers from low to high: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10((high - low) / count))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * factor) <= count - 1)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def _around(values: Iterable[float], share: float, least: float = -math.inf, largest: float = math.inf) -> Point:
    """Return the range of the values, never empty, with a margin on both sides that does not cross `least` or
    `largest`."""
    values = list(values)
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    # Values that differ only by rounding count as one.
    room = (high - low if high - low > 1e-9 * size else size) * share or 1.0
    return max(low - room, min(least, low)), min(high + room, max(largest, high))


# Colours of equal lightness, readable on white and on black, in the order of the rainbow.
_RAMP = ((47, 111, 222), (142, 78, 198), (214, 64, 159), (229, 72, 77), (226, 107, 20))


def colour(place: float) -> str:
    """Return a colour for a place from 0 to 1."""
    scaled = place * (len(_RAMP) - 1)
    index = min(int(scaled), len(_RAMP) - 2)
    mixed = (round(a + (b - a) * (scaled - index)) for a, b in zip(_RAMP[index], _RAMP[index + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
