"""Which trainings a sweep consists of."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.plugins import check_type
from neftune_plugins.sweep.study import AXES

MOST = 100_000  # trainings of one sweep

_WITHOUT = dict.fromkeys(AXES, "none")  # that of alpha 0

Point = Mapping[str, Any]
"""An `alpha`, and one choice of each of the `AXES`."""

Cell = tuple[str, int]
"""One training: the name of its point, and its seed. Alphas and seeds that are added later leave it as it is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Points, each trained with each seed.

    alphas: each of them with each combination of the choices is a point; alpha 0 has none, and is one.
    choices: for each of the `AXES`.
    drawn_from: least and largest alpha of the points that Optuna's sampler draws.
    draws: how many of them.
    seeds: of the runs, from 0.
    """

    alphas: Sequence[float]
    choices: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    drawn_from: tuple[float, float] | None = None
    draws: int = 0

    def __post_init__(self) -> None:
        """Raises NoiseConfigError for an alpha or a choice that cannot be used, NEFTuneError for too many trainings."""
        for alpha in filter(None, (*self.alphas, *(self.drawn_from or ()))):
            for noise in self._noises:
                check_type(NoiseConfig(alpha=alpha, **noise))
        if (self.drawn_from is None) != (self.draws == 0):
            raise NEFTuneError("--alpha LOW..HIGH and --trials N go together: how many are drawn from which range")
        trainings = (len(self._given) + self.draws) * len(self.seeds)
        if trainings > MOST:
            raise NEFTuneError(
                f"--alpha, --trials and --seeds ask for {trainings} trainings, but a sweep has at most {MOST}; ask for "
                "fewer, and add others to the study later"
            )

    @cached_property
    def points(self) -> dict[str, Point | None]:
        """The points by their names; None for one whose alpha is drawn."""
        given = {" ".join([f"alpha {point['alpha']}", *(point[axis] for axis in AXES)]): point for point in self._given}
        return given | {f"draw {number}": None for number in range(self.draws)}

    @cached_property
    def cells(self) -> list[Cell]:
        """The trainings, point by point."""
        return list(itertools.product(self.points, self.seeds))

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna knows of the parameters. It refuses other choices of a categorical parameter later on, so that
        there are some only where points are drawn."""
        if self.drawn_from is None:
            return {"alpha": FloatDistribution(min(self.alphas), max(self.alphas))}
        noise = {axis: CategoricalDistribution(tuple(self.choices[axis])) for axis in AXES}
        return {"alpha": FloatDistribution(*self.drawn_from), **noise}

    def known_to_optuna(self, point: Point) -> bool:
        """Whether it could have been drawn: a point outside of the range is nothing for a sampler to learn from."""
        if self.drawn_from is None:
            return True
        low, high = self.drawn_from
        return low <= point["alpha"] <= high and all(point[axis] in self.choices[axis] for axis in AXES)

    @property
    def _given(self) -> list[Point]:
        """The points that are not drawn."""
        return [{"alpha": alpha, **noise} for alpha in self.alphas for noise in (self._noises if alpha else [_WITHOUT])]

    @property
    def _noises(self) -> list[dict[str, Any]]:
        combinations = itertools.product(*(self.choices[axis] for axis in AXES))
        return [dict(zip(AXES, values, strict=True)) for values in combinations]
