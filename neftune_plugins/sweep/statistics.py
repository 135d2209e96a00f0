"""Compare settings of the noise over a few seeds, with confidence intervals.

`BySeed` maps the seed of a run to its value.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student

CONFIDENCE = 0.95

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Summary:
    """Mean of a setting.

    spread: standard deviation over the seeds; None for one seed.
    """

    mean: float
    spread: float | None
    seeds: int


def summary(values: BySeed) -> Summary:
    """Return mean and spread of at least one value."""
    spread = _rounded(statistics.stdev(values.values()), values.values()) if len(values) > 1 else None
    return Summary(statistics.fmean(values.values()), spread, len(values))


@dataclass(frozen=True)
class Difference:
    """The difference between the means of two settings.

    margin: half the width of the confidence interval; None if there is no interval.
    seeds: number of compared seeds of each setting.
    how: `paired` by seed, or `unpaired`; without a margin the reason: `few` seeds, or `constant` values.
    """

    difference: float
    margin: float | None
    seeds: tuple[int, int]
    how: Literal["paired", "unpaired", "few", "constant"]

    @property
    def supported(self) -> bool:
        """Whether the difference is significant: its confidence interval excludes 0."""
        return self.margin is not None and abs(self.difference) > self.margin


def difference(values: BySeed, others: BySeed, comparisons: int = 1) -> Difference:
    """How far `values` lie above `others`, with an interval for 95 % by Student's t.

    Paired by seed where one of the two has all seeds of the other, and these are two or more: what a seed does to both,
    through the order of the data for one, is no part of the spread then. Else Welch's interval. With several
    comparisons each has Bonferroni's share of the 5 %: all intervals together are right in 95 of 100 sweeps.

    If the seeds change nothing, the margin is None: an interval of width 0 would not hold for another seed.
    """
    shared = sorted(values.keys() & others.keys())
    if len(shared) >= 2 and len(shared) == min(len(values), len(others)):
        pairs = [values[seed] - others[seed] for seed in shared]
        mean, seeds = statistics.fmean(pairs), (len(pairs), len(pairs))
        error, freedom = statistics.stdev(pairs) / len(pairs) ** 0.5, len(pairs) - 1.0
    else:
        mean, seeds = statistics.fmean(values.values()) - statistics.fmean(others.values()), (len(values), len(others))
        if min(seeds) < 2:
            return Difference(mean, None, seeds, "few")
        parts = [statistics.variance(group.values()) / len(group) for group in (values, others)]
        error = math.sqrt(sum(parts))
        squares = sum(part**2 / (count - 1) for part, count in zip(parts, seeds, strict=True))
        freedom = sum(parts) ** 2 / squares if squares else 1.0
        shared = []
    if not _rounded(error, (*values.values(), *others.values())):
        return Difference(mean, None, seeds, "constant")
    return Difference(mean, _quantile(freedom, comparisons) * error, seeds, "paired" if shared else "unpaired")


@dataclass(frozen=True)
class Length:
    """What the length of the answers has to do with a difference of a metric.

    longer: by how many tokens the answers are.
    low, high: 95 % interval for the change of the metric that goes with it; None if there are too few runs to fit it.
    alone: whether length alone may explain the difference.
    """

    longer: float
    low: float | None
    high: float | None
    alone: bool


def length(runs: Sequence[Sequence[tuple[float, float]]], setting: int, other: int) -> Length:
    """Return whether the length of the answers alone may explain the difference of a metric between two settings.

    runs: for each setting, mean length and metric of each run; `setting` and `other` are indices of two settings.

    The runs of one setting have the same noise, so the noise does not explain how the metric varies with the length
    among them. This slope, fitted to all settings together by least squares, times the difference of the lengths is
    the effect of the length alone. It may explain the whole difference of the metric if the difference is no further
    from zero than the end of the interval, or, if no slope can be fitted, if the lengths differ at all.
    """
    points = []
    for pairs in runs:
        x_mean, y_mean = (statistics.fmean(column) for column in zip(*pairs, strict=True))
        points += [(x - x_mean, y - y_mean) for x, y in pairs]
    (x_setting, y_setting), (x_other, y_other) = (
        map(statistics.fmean, zip(*runs[number], strict=True)) for number in (setting, other)
    )
    longer, change = x_setting - x_other, y_setting - y_other
    squares = math.fsum(x * x for x, _ in points)
    freedom = len(points) - len(runs) - 1
    if freedom < 1 or squares <= 1e-18 * x_other**2:
        return Length(longer, None, None, alone=longer != 0)
    slope = math.fsum(x * y for x, y in points) / squares
    rest = math.fsum((y - slope * x) ** 2 for x, y in points)
    margin = _quantile(freedom) * math.sqrt(rest / freedom / squares)
    low, high = sorted(((slope - margin) * longer, (slope + margin) * longer))
    return Length(longer, low, high, alone=high >= change if change > 0 else low <= change)


def _rounded(spread: float, values: Iterable[float]) -> float:
    """Return the spread; 0 if it is not larger than the rounding of the values and of their differences."""
    return spread if spread > 1e-9 * max(map(abs, values)) else 0.0


def _quantile(freedom: float, comparisons: int = 1) -> float:
    """Return the quantile of Student's t for a two-sided interval."""
    return float(student.ppf(1 - (1 - CONFIDENCE) / 2 / comparisons, freedom))
