"""What a study says, in words: only what the spread over its seeds supports."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from neftune_sweep.statistics import BySeed, Difference, Length, difference, length, summary
from neftune_sweep.study import Study, Trial

SETS = {"held_out": "held-out", "train": "train"}
"""The rows that `neftune_sweep.measure` names its values after, and how they are called."""

_LABELS = {
    "loss": "loss",
    "length": "answer length, tokens",
    "unfinished": "answers cut off, share",
    "chunked": "answers long enough to look for repetition, share",
    "two_gram_repetition": "2-gram repetition",
    "log_diversity": "log-diversity",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
}
# What cannot be longer answers' doing, or is their length itself.
_NOT_OF_THE_ANSWERS = ("loss", "length", "unfinished", "chunked")
_CUT_OFF = 0.1


@dataclass(frozen=True, order=True)
class Setting:
    """What trials have in common that differ in their seed alone. `type` is empty without noise."""

    alpha: float
    type: str


NO_NOISE = Setting(0.0, "")


def label(metric: str) -> str:
    """How a value is called; a user's own goes by its name."""
    for prefix, shown in SETS.items():
        if metric.removeprefix(f"{prefix}_") in _LABELS and metric.startswith(prefix):
            return f"{shown} {_LABELS[metric.removeprefix(f'{prefix}_')]}"
    return metric


def number(value: float, precision: float | None = None) -> str:
    """A value with as many decimals as two digits of its precision have, or with four digits in all."""
    if not precision:
        return f"{value:.4g}"
    return f"{value:.{min(8, max(0, 1 - math.floor(math.log10(precision))))}f}"


@dataclass(frozen=True)
class Findings:
    """What can be said of a study."""

    study: Study

    @cached_property
    def complete(self) -> dict[Setting, list[Trial]]:
        """The trials that finished, by setting, from the smallest alpha."""
        found: dict[Setting, list[Trial]] = {}
        for trial in self.study.trials:
            if trial.state == "complete":
                found.setdefault(setting_of(trial), []).append(trial)
        return dict(sorted(found.items()))

    @cached_property
    def metrics(self) -> list[str]:
        """The objective, then all others in the order in which they were measured."""
        names = [name for trials in self.complete.values() for trial in trials for name in trial.values]
        return list(dict.fromkeys([self.study.objective, *names]))

    @cached_property
    def types(self) -> set[str]:
        """Of the noise."""
        return {setting.type for setting in map(setting_of, self.study.trials)} - {""}

    def name(self, setting: Setting) -> str:
        """How a setting is called."""
        if setting == NO_NOISE:
            return "no noise"
        return f"alpha {setting.alpha:g}" + (f" {setting.type}" if len(self.types) > 1 else "")

    def by_seed(self, setting: Setting, metric: str) -> BySeed:
        """The finite values of a metric; of trials that are alike to the seed the mean."""
        values: dict[int, list[float]] = {}
        for trial in self.complete.get(setting, []):
            if finite(value := trial.values.get(metric)):
                values.setdefault(trial.seed, []).append(value)
        return {seed: statistics.fmean(several) for seed, several in sorted(values.items())}

    def differences(self, metric: str) -> dict[Setting, Difference]:
        """From the runs without noise, of each setting that has the metric; empty without such runs."""
        none = self.by_seed(NO_NOISE, metric)
        values = {setting: self.by_seed(setting, metric) for setting in self.complete if setting != NO_NOISE}
        values = {setting: own for setting, own in values.items() if own and none}
        return {setting: difference(own, none, len(values)) for setting, own in values.items()}

    def length(self, setting: Setting, metric: str) -> Length | None:
        """What the answers' length has to do with a metric's difference from the runs without noise; None where the
        metric is none of the answers, or their length was not measured."""
        rows = next((name for name in SETS if metric.startswith(f"{name}_")), "held_out")
        if metric.removeprefix(f"{rows}_") in _NOT_OF_THE_ANSWERS:
            return None
        runs = {}
        for one in self.complete:
            lengths, values = self.by_seed(one, f"{rows}_length"), self.by_seed(one, metric)
            if shared := lengths.keys() & values.keys():
                runs[one] = [(lengths[seed], values[seed]) for seed in shared]
        if not {setting, NO_NOISE} <= runs.keys():
            return None
        order = list(runs)
        return length(list(runs.values()), order.index(setting), order.index(NO_NOISE))

    @property
    def sentence(self) -> str:
        """What was found of the objective. It names no alpha that the spread does not."""
        objective = label(self.study.objective)
        if not self.complete:
            return "No trial has finished, so nothing can be compared."
        if not any(self.by_seed(setting, self.study.objective) for setting in self.complete):
            return f"No trial that finished has a value of {objective}, so nothing can be compared."
        if not self.by_seed(NO_NOISE, self.study.objective):
            return "No trial without noise (alpha 0) has finished, so this sweep cannot say whether noise helps."
        found = self.differences(self.study.objective)
        if not found:
            return "Only trials without noise (alpha 0) have finished, so this sweep cannot say whether noise helps."
        if all(one.how == "few" for one in found.values()):
            return (
                f"Nothing can be said of {objective}: the seeds are too few to tell what noise does from what another "
                "seed does."
            )
        down = self.study.direction == "minimize"
        supported = {setting: one for setting, one in found.items() if one.supported}
        better = {setting: one for setting, one in supported.items() if (one.difference < 0) == down}
        worse = {setting: one for setting, one in supported.items() if setting not in better}
        seeds = _range([count for one in found.values() for count in one.seeds])
        if not better:
            sentence = f"No alpha is better than none on {objective} beyond the spread of {seeds}"
            return sentence + (f"; worse than none: {_and(self._amounts(worse))}." if worse else ".")
        [first, *others] = self._amounts(better)
        name, amount = first.split(" by ")
        sentence = f"{name} {'lowers' if down else 'raises'} {objective} by {amount}"
        sentence = f"{_and([sentence, *others])} against no noise, over {seeds}."
        if len(better) > 1:
            sentence += " " + self._first(better)
        if worse:
            sentence += f" Worse than none: {_and(self._amounts(worse))}."
        return sentence[0].upper() + sentence[1:]

    def _first(self, better: Mapping[Setting, Difference]) -> str:
        """Whether one of the settings is better than each of the others that are better than none."""
        sign = 1 if self.study.direction == "minimize" else -1
        best, *others = sorted(better, key=lambda setting: sign * better[setting].difference)
        values = {setting: self.by_seed(setting, self.study.objective) for setting in better}
        pairs = len(better) * (len(better) - 1) // 2
        against = [difference(values[best], values[other], pairs) for other in others]
        if all(one.supported and sign * one.difference < 0 for one in against):
            return f"Among them {self.name(best)} is the best, beyond the spread too."
        return "Which of them is the best, the spread does not say."

    def _amounts(self, found: Mapping[Setting, Difference]) -> list[str]:
        return [
            f"{self.name(setting)} by {number(abs(one.difference), one.margin)} ± {number(one.margin or 0, one.margin)}"
            for setting, one in found.items()
        ]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the numbers."""
        return [*self._lengths(), *self._missing(), *self._seeds(), *self._answers()]

    def _lengths(self) -> Iterable[str]:
        for metric in self.metrics:
            for setting, one in self.differences(metric).items():
                found = self.length(setting, metric) if one.supported else None
                if found is None or not found.alone:
                    continue
                longer = f"{number(abs(found.longer), 10)} tokens {'longer' if found.longer > 0 else 'shorter'}"
                verb = "raises" if one.difference > 0 else "lowers"
                amount = number(abs(one.difference), one.margin)
                told = (
                    "the runs do not tell how much of that comes with the length"
                    if found.low is None or found.high is None
                    else f"among runs of the same alpha, that length goes with {number(found.low, one.margin)} to "
                    f"{number(found.high, one.margin)}"
                )
                yield (
                    f"Length alone may explain it: {self.name(setting)} {verb} {label(metric)} by {amount}, but its "
                    f"answers are {longer}, and {told}."
                )

    def _missing(self) -> Iterable[str]:
        trials = self.study.trials
        for state, told in (
            ("failed", "failed and are in no mean"),
            (
                "pruned",
                "were stopped early for their poor values and are in no mean: what is left looks the better for it",
            ),
        ):
            if found := [trial for trial in trials if trial.state == state]:
                which = "; ".join(f"{self.name(setting_of(trial))}, seed {trial.seed}" for trial in found)
                yield f"{len(found)} of {len(trials)} trials {told}: {which}."
        for metric in self.metrics:
            of = [trial for own in self.complete.values() for trial in own]
            bad = [trial for trial in of if metric in trial.values and not finite(trial.values[metric])]
            if bad:
                which = "; ".join(f"{self.name(setting_of(trial))}, seed {trial.seed}" for trial in bad)
                yield f"{label(metric)} is not a finite number, and left out, in: {which}."

    def _seeds(self) -> Iterable[str]:
        seeds = {
            setting: own.keys() for setting in self.complete if (own := self.by_seed(setting, self.study.objective))
        }
        if single := [self.name(setting) for setting, own in seeds.items() if len(own) == 1]:
            yield f"One seed has no spread: {_and(single)}."
        if seeds and max(map(len, seeds.values())) == 2:
            yield "With two seeds intervals are wide: only a large difference stands out. Add seeds rather than alphas."
        if len({frozenset(own) for own in seeds.values()}) > 1:
            which = "; ".join(f"{self.name(setting)}: {', '.join(map(str, own))}" for setting, own in seeds.items())
            yield f"The settings have different seeds ({which})."
        constant = [setting for setting, one in self.differences(self.study.objective).items() if one.how == "constant"]
        if constant:
            which = _and([self.name(setting) for setting in constant])
            yield f"The seeds change nothing in the difference of {which} from no noise: they tell no spread."

    def _answers(self) -> Iterable[str]:
        for prefix, shown in SETS.items():
            for name, is_bad, told in (
                ("unfinished", lambda share: share > _CUT_OFF, "were cut off at the greatest length: their mean length "
                 "says little. Allow more new tokens"),
                ("chunked", lambda share: share < 0.5, "are long enough to look for repetition in them: the paper "
                 "takes a number of words that half of them have. Take fewer"),
            ):  # fmt: skip
                shares = {setting: self.by_seed(setting, f"{prefix}_{name}") for setting in self.complete}
                bad = {setting: mean for setting, own in shares.items() if own and is_bad(mean := summary(own).mean)}
                if bad:
                    which = _and([f"{share:.0%} ({self.name(setting)})" for setting, share in bad.items()])
                    yield f"Of the {shown} answers {which} {told}."


def setting_of(trial: Trial) -> Setting:
    """What a trial has in common with others. Without noise its type says nothing."""
    return Setting(trial.alpha, trial.type) if trial.alpha else NO_NOISE


def finite(value: float | None) -> bool:
    """Whether there is a value that can be averaged."""
    return value is not None and math.isfinite(value)


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} seeds" if low == high else f"{low} to {high} seeds"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
