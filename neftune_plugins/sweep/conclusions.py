"""The findings and warnings of a study as sentences. Only significant differences are named."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from neftune_plugins.sweep.results import NO_NOISE, SETS, Results, Setting, finite, label, setting_of
from neftune_plugins.sweep.statistics import Difference, difference, summary
from neftune_plugins.sweep.study import Trial

CUT_OFF = 0.1  # warn if a larger share of the answers was cut off: their mean length is too small then
LONG_ENOUGH = 0.5  # warn if a smaller share of the answers is long enough for the repetition metrics


def decimals(precision: float | None) -> int:
    """Decimals that show two digits of the precision; 4 if the precision is not known."""
    return min(8, max(0, 1 - math.floor(math.log10(precision)))) if precision else 4


def shown(value: float, precision: float | None = None, sign: str = "") -> str:
    """A number as text, with two digits of its precision.

    Without a precision (a single value, or the same value in each seed) it has up to six significant digits.
    """
    return f"{value:{sign}.{decimals(precision)}f}" if precision else f"{value:{sign}.6g}"


def sentence(results: Results) -> str:
    """The finding about the objective. It names an alpha only if its difference from no noise is significant."""
    objective = results.study.objective
    if not results.complete:
        return "No trial has finished, so nothing can be compared."
    if objective not in results.metrics:
        return f"No trial that finished has a value of {label(objective)}, so nothing can be compared."
    if not results.by_seed(NO_NOISE, objective):
        return "No trial without noise (alpha 0) has finished, so this sweep cannot say whether noise helps."
    found = results.differences(objective)
    if not found:
        return "Only trials without noise (alpha 0) have finished, so this sweep cannot say whether noise helps."
    if all(one.how == "few" for one in found.values()):
        return (
            f"There are too few seeds to compare {label(objective)} with and without noise, because one seed does not "
            "show how much the value varies between seeds."
        )
    sign = _sign(results)
    better = {setting: one for setting, one in found.items() if one.supported and sign * one.difference > 0}
    worse = {setting: one for setting, one in found.items() if one.supported and sign * one.difference < 0}
    counts = sorted(count for one in found.values() for count in one.seeds)
    seeds = f"With {' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} seeds"
    if better:
        said = (
            f"{seeds}, {label(objective)} is significantly {'lower' if sign < 0 else 'higher'} than without noise at "
            f"{_joined(_amounts(results, better))}.{_among(results, list(better))}"
        )
    else:
        said = f"{seeds}, no alpha gives a significantly better {label(objective)} than no noise."
    if worse:
        said += f" It is significantly worse than without noise at {_joined(_amounts(results, worse))}."
    return said


def _among(results: Results, better: Sequence[Setting]) -> str:
    """A sentence that says whether one of several settings is significantly better than each of the others."""
    if len(better) == 1:
        return ""
    values = {setting: results.by_seed(setting, results.study.objective) for setting in better}
    sign = _sign(results)
    best, *others = sorted(better, key=lambda setting: -sign * summary(values[setting]).mean)
    pairs = len(better) * (len(better) - 1) // 2
    against = [difference(values[best], values[other], pairs) for other in others]
    if all(one.supported and sign * one.difference > 0 for one in against):
        return f" Of these, {results.name(best)} is significantly better than each of the others."
    return " None of these is significantly better than all the others."


def _amounts(results: Results, found: Mapping[Setting, Difference]) -> list[str]:
    return [
        f"{results.name(setting)} (by {abs(one.difference):.{places}f} ± {one.margin:.{places}f})"
        for setting, one in found.items()
        for places in [decimals(one.margin)]
    ]


def _sign(results: Results) -> int:
    """The sign of an improvement: -1 if a smaller objective is better, 1 if a larger one is."""
    return -1 if results.study.direction == "minimize" else 1


def warnings(results: Results) -> list[str]:
    """Reasons to doubt the numbers, one sentence each."""
    return [*_lengths(results), *_missing(results), *_seeds(results), *_answers(results)]


def _lengths(results: Results) -> Iterator[str]:
    for metric in results.metrics:
        told = []
        for setting, one in results.differences(metric).items():
            found = results.length(setting, metric) if one.supported else None
            if found is None or not found.alone:
                continue
            places = decimals(one.margin)
            text = (
                f"{results.name(setting)} {'raises' if one.difference > 0 else 'lowers'} it by "
                f"{abs(one.difference):.{places}f}, with answers that are {abs(found.longer):.1f} tokens "
                f"{'longer' if found.longer > 0 else 'shorter'}"
            )
            if found.low is not None:
                text += f"; that length alone changes it by {found.low:+.{places}f} to {found.high:+.{places}f}"
            told.append(text)
        if told:
            yield f"The length of the answers alone may explain the effect on {label(metric)}: {', and '.join(told)}."


def _missing(results: Results) -> Iterator[str]:
    trials = results.study.trials
    for state, told, remedy in (
        (
            "failed",
            "failed and are excluded from the means",
            " To train them again, run the same command with --retry-failed.",
        ),
        ("pruned", "were pruned for poor values and are excluded from the means, which look better than they are", ""),
    ):
        if found := [trial for trial in trials if trial.state == state]:
            yield f"{len(found)} of {len(trials)} trials {told}: {_which(results, found)}.{remedy}"
    complete = [trial for own in results.complete.values() for trial in own]
    for metric in dict.fromkeys(name for trial in complete for name in trial.values):
        if found := [trial for trial in complete if not finite(trial.values.get(metric, 0.0))]:
            yield f"{label(metric)} is not a finite number and is excluded from the means: {_which(results, found)}."


def _seeds(results: Results) -> Iterator[str]:
    objective = results.study.objective
    seeds = {setting: list(own) for setting in results.complete if (own := results.by_seed(setting, objective))}
    if single := [results.name(setting) for setting, own in seeds.items() if len(own) == 1]:
        yield f"Only one seed, so the spread over the seeds is unknown: {_joined(single)}."
    if max(map(len, seeds.values()), default=0) == 2:
        yield "With two seeds, only a large difference is significant. Add a seed before another alpha."
    if len(set(map(tuple, seeds.values()))) > 1:
        which = "; ".join(f"{results.name(setting)}: {', '.join(map(str, own))}" for setting, own in seeds.items())
        yield f"The settings were not trained with the same seeds ({which})."
    constant = [name for name, one in results.differences(objective).items() if one.how == "constant"]
    if constant:
        which = _joined([results.name(setting) for setting in constant])
        yield (
            f"{label(objective)} at {which} differs from the value without noise by the same amount in each seed, so "
            "there is no confidence interval."
        )


def _answers(results: Results) -> Iterator[str]:
    for rows, name in SETS.items():
        means = {
            metric: {
                setting: summary(own).mean
                for setting in results.complete
                if (own := results.by_seed(setting, f"{rows}_{metric}"))
            }
            for metric in ("unfinished", "chunked")
        }
        if cut_off := {setting: share for setting, share in means["unfinished"].items() if share > CUT_OFF}:
            yield (
                f"Many {name} answers were cut off at the maximum length, so their mean length is too small; "
                f"raise --max-new-tokens: {_shares(results, cut_off)}."
            )
        if short := {setting: share for setting, share in means["chunked"].items() if share < LONG_ENOUGH}:
            yield (
                f"Few {name} answers have enough words to measure repetition; lower --chunk: {_shares(results, short)}."
            )


def _which(results: Results, trials: Iterable[Trial]) -> str:
    return "; ".join(f"{results.name(setting_of(trial))}, seed {trial.seed}" for trial in trials)


def _shares(results: Results, shares: Mapping[Setting, float]) -> str:
    return ", ".join(f"{share:.0%} ({results.name(setting)})" for setting, share in shares.items())


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
