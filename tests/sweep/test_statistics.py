"""Statistics of a few seeds: known cases, and how often they are wrong."""

import math
import random

import pytest
from scipy.stats import ttest_ind, ttest_rel

from neftune_plugins.sweep.statistics import difference, length, summary

SWEEPS = 2000


def by_seed(*values, first=0):
    return dict(enumerate(values, first))


def test_mean_and_spread():
    one = summary(by_seed(1.0, 2.0, 6.0))
    assert (one.mean, one.spread, one.seeds) == (3.0, pytest.approx(math.sqrt(7)), 3)
    assert summary({5: 1.5}).spread is None
    assert summary(by_seed(0.3, 0.1 + 0.2)).spread == 0  # the same but for rounding


def test_paired_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), Student's t of 2 degrees of freedom 4.3027."""
    found = difference(by_seed(11.0, 22.0, 33.0), by_seed(10.0, 20.0, 30.0))
    assert (found.difference, found.how, found.seeds) == (2.0, "paired", (3, 3))
    assert found.margin == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert not found.supported


def test_paired_takes_the_shared_seeds():
    found = difference(by_seed(11.0, 22.0), by_seed(10.0, 20.0, 99.0))
    assert (found.difference, found.how, found.seeds) == (1.5, "paired", (2, 2))
    # t of one degree of freedom: 12.706
    assert found.margin == pytest.approx(12.706 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_intervals_are_those_of_scipy(first):
    values, others = by_seed(1.2, 0.9, 1.4), by_seed(0.5, 0.9, 0.2, first=first)
    found = difference(values, others, 4)
    assert found.how == ("unpaired" if first else "paired")
    test = ttest_ind(list(values.values()), list(others.values()), equal_var=False)
    test = test if first else ttest_rel(list(values.values()), list(others.values()))
    low, high = test.confidence_interval(1 - 0.05 / 4)
    assert (found.difference - found.margin, found.difference + found.margin) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    for values, others in ((by_seed(1.0), by_seed(2.0, 3.0)), (by_seed(1.0), by_seed(2.0))):
        found = difference(values, others)
        assert (found.margin, found.how, found.supported) == (None, "few", False)


@pytest.mark.parametrize("first", [0, 3])
def test_seeds_that_change_nothing_support_nothing(first):
    values, others = (by_seed(2.1, 2.2), by_seed(2.0, 2.1)) if first == 0 else (by_seed(2.1, 2.1), {3: 2.0, 4: 2.0})
    found = difference(values, others)
    assert found.difference == pytest.approx(0.1)
    assert (found.margin, found.how, found.supported) == (None, "constant", False)


def test_two_seeds_support_a_very_large_difference_alone():
    none = by_seed(2.00, 2.10)
    assert not difference(by_seed(1.80, 1.95), none).supported
    assert difference(by_seed(1.00, 1.11), none).supported


@pytest.mark.parametrize(("seeds", "alphas", "times"), [(2, 1, 9), (2, 3, 27), (3, 1, 2.5), (3, 3, 4.4)])
def test_the_documented_widths(seeds, alphas, times):
    none = by_seed(*range(seeds))
    found = difference({seed: value + seed**2 for seed, value in none.items()}, none, alphas)
    assert found.margin / summary({seed: seed**2 for seed in none}).spread == pytest.approx(times, rel=0.01)


@pytest.mark.parametrize(("seeds", "paired"), [(2, True), (3, True), (5, True), (3, False), (5, False)])
def test_noise_that_does_nothing_is_found_to_do_something_in_5_of_100_sweeps(seeds, paired):
    """At most: three alphas against none, each with Bonferroni's share. What the seed does to all is large."""
    rng = random.Random(seeds)
    found = 0
    for _ in range(SWEEPS):
        of_seed = [rng.gauss(0, 3) if paired else 0 for _ in range(seeds)]
        none, *alphas = (
            {seed + group * 10 * (not paired): of_seed[seed] + rng.gauss(0, 1) for seed in range(seeds)}
            for group in range(4)
        )
        found += any(difference(own, none, 3).supported for own in alphas)
    # Four standard deviations of the share that so many sweeps have. The tests share the runs without noise, so that
    # they are wrong together, and in fewer sweeps.
    assert found / SWEEPS < 0.05 + 4 * math.sqrt(0.05 * 0.95 / SWEEPS)
    assert found / SWEEPS > 0.02


@pytest.mark.parametrize("paired", [True, False])
def test_one_comparison_is_wrong_in_5_of_100_sweeps(paired):
    rng = random.Random(7)
    wrong = sum(
        difference(
            by_seed(*(rng.gauss(0, 1) for _ in range(4))),
            by_seed(*(rng.gauss(0, 1) for _ in range(4)), first=0 if paired else 4),
        ).supported
        for _ in range(SWEEPS)
    )
    # Welch's interval for as few is a little wide.
    assert wrong / SWEEPS == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / SWEEPS) + (0 if paired else 0.01))


def test_a_difference_of_five_standard_errors_is_found():
    rng = random.Random(1)
    found = sum(
        difference(
            by_seed(*(rng.gauss(5 * math.sqrt(2 / 8), 1) for _ in range(8))),
            by_seed(*(rng.gauss(0, 1) for _ in range(8)), first=8),
        ).supported
        for _ in range(500)
    )
    assert found > 480


# Length


def runs(rng, *, slope, gains, longer, seeds=3, error=0.1):
    """Of settings whose answers are so much longer than 100 tokens: (length, metric) of each run."""
    found = []
    for gain, more in zip(gains, longer, strict=True):
        lengths = [100 + more + rng.gauss(0, 10) for _ in range(seeds)]
        found.append([(own, slope * (own - 100) + gain + rng.gauss(0, error)) for own in lengths])
    return found


def test_the_slope_by_hand():
    """Within both settings the metric rises by 0.5 for each token: 10 more give 5."""
    pairs = [[(100, 1.0), (102, 2.1), (104, 2.9)], [(110, 7.0), (112, 8.0), (114, 9.0)]]
    found = length(pairs, 1, 0)
    assert found.longer == 10
    slope = (-2 * -1.0 + 2 * 0.9 + 4) / (8 + 8)  # least squares around the two means, 2.0 and 8.0
    assert (found.low + found.high) / 2 == pytest.approx(10 * slope)
    rest = sum((y - slope * x) ** 2 for x, y in [(-2, -1.0), (0, 0.1), (2, 0.9), (-2, -1.0), (0, 0.0), (2, 1.0)])
    # t of 6 runs less 2 means less 1 slope: 3 degrees of freedom
    assert found.high - found.low == pytest.approx(2 * 3.1824 * 10 * math.sqrt(rest / 3 / 16), rel=1e-4)
    assert not found.alone


def test_a_gain_that_is_lengths_doing_is_told():
    """In no fewer than 95 of 100 sweeps, with the deviation of so many: the interval errs towards the warning."""
    rng = random.Random(2)
    alone = sum(
        length(runs(rng, slope=0.05, gains=(0, 0, 0, 0), longer=(0, 20, 40, 60)), 3, 0).alone for _ in range(1000)
    )
    assert alone / 1000 > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_loss_that_is_lengths_doing_is_told():
    rng = random.Random(2)
    pairs = runs(rng, slope=-0.05, gains=(0, 0, 0, 0), longer=(0, 20, 40, 60))
    assert length(pairs, 3, 0).alone
    assert length(pairs, 0, 3).alone


@pytest.mark.parametrize(("slope", "longer"), [(0.0, (0, 20, 40, 60)), (0.05, (0, 0, 0, 0)), (-0.02, (0, 20, 40, 60))])
def test_a_gain_that_is_not_lengths_doing_is_left_alone(slope, longer):
    rng = random.Random(3)
    alone = sum(
        length(runs(rng, slope=slope, gains=(0, 3, 3, 3), longer=longer, error=0.1), 3, 0).alone for _ in range(500)
    )
    assert alone / 500 < 0.05


@pytest.mark.parametrize(
    ("pairs", "alone"),
    [
        ([[(100, 1.0)], [(120, 2.0)]], True),  # too few runs
        ([[(100, 1.0), (100, 1.1)], [(120, 2.0), (120, 2.1)]], True),  # lengths that never differ at the same alpha
        ([[(64, 1.0), (64, 1.1)], [(64, 2.0), (64, 2.1)]], False),  # all cut off
    ],
)
def test_where_no_slope_can_be_fitted(pairs, alone):
    found = length(pairs, 1, 0)
    assert (found.low, found.high, found.alone) == (None, None, alone)
