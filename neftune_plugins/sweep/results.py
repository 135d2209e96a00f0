"""The numbers of a study: by setting of the noise, metric and seed."""

import itertools
import math
import statistics
from dataclasses import dataclass
from functools import cached_property

from neftune_plugins.sweep.statistics import BySeed, Difference, Length, difference, length
from neftune_plugins.sweep.study import AXES, Study, Trial

SETS = {"held_out": "held-out", "trained_on": "trained-on"}
"""The rows that `neftune_plugins.sweep.measure` names its values after, and how they are called."""


@dataclass(frozen=True)
class _Quantity:
    """What a value is of.

    label: how it is called.
    low, high: between which all its values are.
    good: 1 if more of it is better, -1 if less is, 0 where that depends.
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
# Those of some trainings, such as GRPO, may be negative.
_LOGGED = {
    "train_loss": _Quantity("last loss in training, with the noise", low=-math.inf, good=-1),
    "clean_loss": _Quantity("last loss in training, without noise", low=-math.inf, good=-1),
}
_UNKNOWN = _Quantity("", low=-math.inf)
# What ends so is not of the wording of an answer, so that its length could be what changes it.
_NOT_OF_THE_WORDING = ("loss", "length", "unfinished", "chunked")


@dataclass(frozen=True, order=True)
class Setting:
    """What trials have in common that differ in their seed alone.

    noise: what it has of each of the `AXES`; empty texts without noise.
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
    """How a value is called; a user's own goes by its name."""
    rows, name = _split(metric)
    return f"{SETS[rows]} {_MEASURED[name].label}" if rows and name in _MEASURED else _quantity(metric).label or metric


def bounds(metric: str) -> tuple[float, float]:
    """Between which all values of a metric are; infinite where there is no such bound, or it is a user's own."""
    quantity = _quantity(metric)
    return quantity.low, quantity.high


def _quantity(metric: str) -> _Quantity:
    rows, name = _split(metric)
    return (_MEASURED if rows else _LOGGED).get(name, _UNKNOWN)


def _split(metric: str) -> tuple[str, str]:
    """Which rows a value is of, and what it is; another is of no rows."""
    for rows in SETS:
        if metric.startswith(f"{rows}_"):
            return rows, metric.removeprefix(f"{rows}_")
    return "", metric


@dataclass(frozen=True)
class Results:
    """What a study has measured."""

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
        """What has been measured: the objective first, then in the order in which it was."""
        names = [name for trials in self.complete.values() for trial in trials for name in trial.values]
        ordered = dict.fromkeys([self.study.objective, *names])
        return [name for name in ordered if any(self.by_seed(setting, name) for setting in self.complete)]

    @cached_property
    def noises(self) -> list[tuple[str, ...]]:
        """What the settings with noise have of the `AXES`."""
        return sorted({setting_of(trial).noise for trial in self.study.trials} - {NO_NOISE.noise})

    def name(self, setting: Setting) -> str:
        """How a setting is called."""
        if setting == NO_NOISE:
            return "no noise"
        return f"alpha {setting.alpha:g} {self.varied(setting.noise)}".rstrip()

    def varied(self, noise: tuple[str, ...]) -> str:
        """What is not the same in all settings with noise."""
        several = [len(set(values)) > 1 for values in zip(*self.noises, strict=True)]
        return " ".join(itertools.compress(noise, several))

    def by_seed(self, setting: Setting, metric: str) -> BySeed:
        """The finite values of a metric; of trials that have the same seed their mean."""
        values: dict[int, list[float]] = {}
        for trial in self.complete.get(setting, []):
            value = trial.values.get(metric)
            if value is not None and finite(value):
                values.setdefault(trial.seed, []).append(value)
        return {seed: statistics.fmean(several) for seed, several in sorted(values.items())}

    def differences(self, metric: str) -> dict[Setting, Difference]:
        """From the runs without noise, of each setting that has the metric; empty without such runs."""
        none = self.by_seed(NO_NOISE, metric)
        values = {setting: self.by_seed(setting, metric) for setting in self.complete if setting != NO_NOISE}
        values = {setting: own for setting, own in values.items() if own and none}
        return {setting: difference(own, none, len(values)) for setting, own in values.items()}

    def good(self, metric: str) -> int:
        """1 if more of a metric is better, -1 if less is, 0 where that is not known."""
        if metric == self.study.objective:
            return 1 if self.study.direction == "maximize" else -1
        return _quantity(metric).good

    def length(self, setting: Setting, metric: str) -> Length | None:
        """What the length of the answers has to do with a metric's difference from the runs without noise. None where
        the metric is not of the wording of answers, or their length was not measured. A metric of the user's is taken
        as one of the held-out answers."""
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
