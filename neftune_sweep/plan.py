"""Which trainings a sweep consists of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from neftune_plugins import NEFTuneError, NoiseConfig

NO_TYPE = "none"  # that of alpha 0

Point = Mapping[str, Any]
"""An `alpha` and a `type`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Points, each trained with each seed. A cell is one of these trainings; cells are numbered, point by point.

    alphas, types: each alpha with each type is a point; alpha 0 has no type, and is one.
    drawn_from: least and largest alpha of the points that Optuna's sampler draws.
    draws: how many of them.
    seeds: of the runs.
    """

    alphas: Sequence[float]
    types: Sequence[str]
    seeds: Sequence[int]
    drawn_from: tuple[float, float] | None = None
    draws: int = 0

    def __post_init__(self) -> None:
        """Raises NoiseConfigError for an alpha or a type that cannot be used."""
        for alpha in (*self.alphas, *(self.drawn_from or ())):
            for type in self.types:
                if alpha != 0:
                    NoiseConfig(alpha=alpha, type=type)
        if (self.drawn_from is None) != (self.draws == 0):
            raise NEFTuneError("--alpha LOW..HIGH and --trials N go together: how many are drawn from which range")

    @property
    def given(self) -> list[Point]:
        """The points that are not drawn."""
        return [
            {"alpha": alpha, "type": type} for alpha in self.alphas for type in (self.types if alpha else (NO_TYPE,))
        ]

    @property
    def cells(self) -> int:
        return (len(self.given) + self.draws) * len(self.seeds)

    def place(self, cell: int) -> tuple[int, int]:
        """The number of a cell's point, and its seed."""
        point, seed = divmod(cell, len(self.seeds))
        return point, self.seeds[seed]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna knows of the two parameters."""
        if self.drawn_from is None:
            types = dict.fromkeys(point["type"] for point in self.given)
            return {
                "alpha": CategoricalDistribution(tuple(self.alphas)),
                "type": CategoricalDistribution(tuple(types)),
            }
        return {"alpha": FloatDistribution(*self.drawn_from), "type": CategoricalDistribution(tuple(self.types))}

    def known_to_optuna(self, point: Point) -> bool:
        """Whether it could have been drawn: a point outside of the range is nothing for a sampler to learn from."""
        if self.drawn_from is None:
            return True
        low, high = self.drawn_from
        return low <= point["alpha"] <= high and point["type"] in self.types

    def as_dict(self) -> dict[str, Any]:
        return {
            "--alpha": [*self.alphas, *(["..".join(map(str, self.drawn_from))] if self.drawn_from else [])],
            "--type": list(self.types),
            "--trials": self.draws,
            "--seeds": len(self.seeds),
        }
