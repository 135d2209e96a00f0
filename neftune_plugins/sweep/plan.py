"""Which trainings a sweep consists of."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.sweep.study import AXES

_WITHOUT = dict.fromkeys(AXES, "none")  # that of alpha 0

Point = Mapping[str, Any]
"""An `alpha`, and one choice of each of the `AXES`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Points, each trained with each seed. A cell is one of these trainings; cells are numbered, point by point.

    alphas: each of them with each combination of the choices is a point; alpha 0 has none, and is one.
    choices: for each of the `AXES`.
    drawn_from: least and largest alpha of the points that Optuna's sampler draws.
    draws: how many of them.
    seeds: of the runs.
    """

    alphas: Sequence[float]
    choices: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    drawn_from: tuple[float, float] | None = None
    draws: int = 0

    def __post_init__(self) -> None:
        """Raises NoiseConfigError for an alpha or a choice that cannot be used."""
        for alpha in filter(None, (*self.alphas, *(self.drawn_from or ()))):
            for noise in self._noises:
                NoiseConfig(alpha=alpha, **noise)
        if (self.drawn_from is None) != (self.draws == 0):
            raise NEFTuneError("--alpha LOW..HIGH and --trials N go together: how many are drawn from which range")

    @property
    def given(self) -> list[Point]:
        """The points that are not drawn."""
        return [{"alpha": alpha, **noise} for alpha in self.alphas for noise in (self._noises if alpha else [_WITHOUT])]

    @property
    def _noises(self) -> list[dict[str, Any]]:
        combinations = itertools.product(*(self.choices[axis] for axis in AXES))
        return [dict(zip(AXES, values, strict=True)) for values in combinations]

    @property
    def cells(self) -> int:
        return (len(self.given) + self.draws) * len(self.seeds)

    def place(self, cell: int) -> tuple[int, int]:
        """The number of a cell's point, and its seed."""
        point, seed = divmod(cell, len(self.seeds))
        return point, self.seeds[seed]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna knows of the parameters."""
        if self.drawn_from is None:
            return {
                name: CategoricalDistribution(tuple(dict.fromkeys(point[name] for point in self.given)))
                for name in ("alpha", *AXES)
            }
        noise = {axis: CategoricalDistribution(tuple(self.choices[axis])) for axis in AXES}
        return {"alpha": FloatDistribution(*self.drawn_from), **noise}

    def known_to_optuna(self, point: Point) -> bool:
        """Whether it could have been drawn: a point outside of the range is nothing for a sampler to learn from."""
        if self.drawn_from is None:
            return True
        low, high = self.drawn_from
        return low <= point["alpha"] <= high and all(point[axis] in self.choices[axis] for axis in AXES)

    def as_dict(self) -> dict[str, Any]:
        return {
            "--alpha": [*self.alphas, *(["..".join(map(str, self.drawn_from))] if self.drawn_from else [])],
            **{f"--{axis}": list(self.choices[axis]) for axis in AXES},
            "--trials": self.draws,
            "--seeds": len(self.seeds),
        }
