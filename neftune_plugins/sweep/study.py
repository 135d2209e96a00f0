"""The results of a sweep as plain data, from which measurement and report are made."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["complete", "failed", "pruned"]
Direction = Literal["minimize", "maximize"]

AXES = ("type", "length")
"""The parameters that a sweep varies in addition to alpha: names of keys without `neftune_noise_`."""

HELD_OUT_LOSS = "held_out_loss"  # mean cross-entropy per answer token of the held-out rows, without noise


@dataclass(frozen=True, kw_only=True)
class Point:
    """A log entry of a training.

    step: number of the optimiser step, from 1.
    loss: training loss, with noise.
    clean_loss: loss of the same examples without noise, or of the framework's evaluation; None if none was logged.
    """

    step: int
    loss: float | None = None
    clean_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A training run that has ended.

    number: number of the run in the study, from 0.
    alpha: 0 is a run without noise.
    type, length: values of the keys; `none` without noise.
    seed: seed of the run.
    seconds: from the start of the training to the end of the measurement.
    values: measurements of the trained model, by name.
    curve: log entries of the training, in the order of the steps.
    log: path of the file with the output of training and measurement.
    error: end of that output, if the trial failed.
    """

    number: int
    state: State
    alpha: float
    type: str
    length: str
    seed: int
    seconds: float
    values: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Point] = ()
    log: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"curve": [dataclasses.asdict(point) for point in self.curve]}

    @property
    def noise(self) -> tuple[str, ...]:
        """The values on the `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Trial":
        return cls(**{**values, "curve": tuple(Point(**point) for point in values["curve"])})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep.

    config: the configuration file, with its framework.
    objective: the name of the value to minimise or maximise, as `direction` says.
    """

    config: str
    framework: str
    objective: str = HELD_OUT_LOSS
    direction: Direction = "minimize"
    trials: Sequence[Trial] = ()

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"trials": [trial.as_dict() for trial in self.trials]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Study":
        return cls(**{**values, "trials": tuple(map(Trial.from_dict, values["trials"]))})
