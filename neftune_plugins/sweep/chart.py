"""Computes the shapes and coordinates of plots; `page.html.jinja` writes them as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

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
