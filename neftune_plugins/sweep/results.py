"""The values of a study, by setting of the noise, metric and seed."""

import itertools
import math
import statistics
from dataclasses import dataclass
from functools import cached_property

from neftune_plugins.sweep.statistics import BySeed, Difference, Length, difference, length
from neftune_plugins.sweep.study import AXES, Study, Trial

SETS = {"held_out": "held-out", "trained_on": "trained-on"}
"""The sets of rows that `neftune_plugins.sweep.measure` measures, with their labels."""


@dataclass(frozen=True)
class _Quantity:
    """A kind of value.

    label: its name in the report.
    low, high: the smallest and the largest possible value.
    good: 1 if larger is better, -1 if smaller is better, 0 if that depends.
    """

    label: str
    low: float = 0.0
    high: float = math.inf
    good: int = 0


_MEASURED = {
    "loss": _Quantity("loss", good=-1),
    "length": _Quantity("answer length, tokens"),
    "unfinished": _Quantity("answers cut off, share", high=1),
    "chunked": _Quantity("answers long enough for the next two, share", high=1),
    "two_gram_repetition": _Quantity("2-gram repetition", high=1),
    "log_diversity": _Quantity("log-diversity", high=20),
    "rouge_l": _Quantity("ROUGE-L", high=1),
    "bleu": _Quantity("BLEU", high=100),
}
# The losses of some trainings, such as GRPO, may be negative.
_LOGGED = {
    "train_loss": _Quantity("last loss in training, with the noise", low=-math.inf, good=-1),
    "clean_loss": _Quantity("last loss in training, without noise", low=-math.inf, good=-1),
}
_UNKNOWN = _Quantity("", low=-math.inf)
# Metrics with these endings do not describe the wording of answers, so the length of answers does not explain them.
_NOT_OF_THE_WORDING = ("loss", "length", "unfinished", "chunked")


@dataclass(frozen=True, order=True)
class Setting:
    """The setting of trials that differ only in their seed.

    noise: its value on each of the `AXES`; empty texts without noise.
    """

    alpha: float
    noise: tuple[str, ...]


NO_NOISE = Setting(0.0, ("",) * len(AXES))


def setting_of(trial: Trial) -> Setting:
    """The trial's. Without noise, type and length have no effect."""
    return Setting(trial.alpha, trial.noise) if trial.alpha else NO_NOISE


def finite(value: float | None) -> bool:
    """Whether there is a value that can be averaged."""
    return value is not None and math.isfinite(value)


def label(metric: str) -> str:
    """Return the label of a value; a user's own metric keeps its name."""
    rows, name = _split(metric)
    return f"{SETS[rows]} {_MEASURED[name].label}" if rows and name in _MEASURED else _quantity(metric).label or metric


def bounds(metric: str) -> tuple[float, float]:
    """Return the smallest and the largest possible value of a metric; infinite if unknown, as for a user's own
    metric."""
    quantity = _quantity(metric)
    return quantity.low, quantity.high


def _quantity(metric: str) -> _Quantity:
    rows, name = _split(metric)
    return (_MEASURED if rows else _LOGGED).get(name, _UNKNOWN)


def _split(metric: str) -> tuple[str, str]:
    """Return the rows that a value was measured on, and its kind; a user's own metric has no rows."""
    for rows in SETS:
        if metric.startswith(f"{rows}_"):
            return rows, metric.removeprefix(f"{rows}_")
    return "", metric


@dataclass(frozen=True)
class Results:
    """The measurements of a study."""

    study: Study

    @cached_property
    def complete(self) -> dict[Setting, list[Trial]]:
        """The finished trials by setting, from the smallest alpha."""
        found: dict[Setting, list[Trial]] = {}
        for trial in self.study.trials:
            if trial.state == "complete":
                found.setdefault(setting_of(trial), []).append(trial)
        return dict(sorted(found.items()))

    @cached_property
    def metrics(self) -> list[str]:
        """The names of the metrics: the objective first, the others in the order in which they were measured."""
        names = [name for trials in self.complete.values() for trial in trials for name in trial.values]
        ordered = dict.fromkeys([self.study.objective, *names])
        return [name for name in ordered if any(self.by_seed(setting, name) for setting in self.complete)]

    @cached_property
    def noises(self) -> list[tuple[str, ...]]:
        """The values of the settings with noise on the `AXES`."""
        return sorted({setting_of(trial).noise for trial in self.study.trials} - {NO_NOISE.noise})

    def name(self, setting: Setting) -> str:
        """Return the label of a setting."""
        if setting == NO_NOISE:
            return "no noise"
        return f"alpha {setting.alpha:g} {self.varied(setting.noise)}".rstrip()

    def varied(self, noise: tuple[str, ...]) -> str:
        """The axes on which the settings with noise differ."""
        several = [len(set(values)) > 1 for values in zip(*self.noises, strict=True)]
        return " ".join(itertools.compress(noise, several))

    def by_seed(self, setting: Setting, metric: str) -> BySeed:
        """Return the finite values of a metric by seed; trials with the same seed give their mean."""
        values: dict[int, list[float]] = {}
        for trial in self.complete.get(setting, []):
            value = trial.values.get(metric)
            if value is not None and finite(value):
                values.setdefault(trial.seed, []).append(value)
        return {seed: statistics.fmean(several) for seed, several in sorted(values.items())}

    def differences(self, metric: str) -> dict[Setting, Difference]:
        """Return the difference from the runs without noise for each setting with the metric; empty without such
        runs."""
        none = self.by_seed(NO_NOISE, metric)
        values = {setting: self.by_seed(setting, metric) for setting in self.complete if setting != NO_NOISE}
        values = {setting: own for setting, own in values.items() if own and none}
        return {setting: difference(own, none, len(values)) for setting, own in values.items()}

    def good(self, metric: str) -> int:
        """Return 1 if a larger value of a metric is better, -1 if a smaller one is, 0 if that is unknown."""
        if metric == self.study.objective:
            return 1 if self.study.direction == "maximize" else -1
        return _quantity(metric).good

    def length(self, setting: Setting, metric: str) -> Length | None:
        """Return how far the length of the answers explains a metric's difference from the runs without noise.

        None if the metric does not describe the wording of answers, or if their length was not measured. A user's own
        metric counts as one of the held-out answers.
        """
        if metric.endswith(_NOT_OF_THE_WORDING):
            return None
        lengths_of = f"{_split(metric)[0] or 'held_out'}_length"
        runs = {}
        for one in self.complete:
            lengths, values = self.by_seed(one, lengths_of), self.by_seed(one, metric)
            if shared := lengths.keys() & values.keys():
                runs[one] = [(lengths[seed], values[seed]) for seed in shared]
        if not {setting, NO_NOISE} <= runs.keys():
            return None
        order = list(runs)
        return length(list(runs.values()), order.index(setting), order.index(NO_NOISE))
