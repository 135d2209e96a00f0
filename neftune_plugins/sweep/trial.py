"""Runs one trial: the training, the measurement of the trained model, and the record."""

import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neftune_plugins.curve import VARIABLE as CURVE_VARIABLE
from neftune_plugins.sweep import curve, failures, process
from neftune_plugins.sweep.attempts import Attempt
from neftune_plugins.sweep.runs import Source
from neftune_plugins.sweep.study import Point, State, Trial

LOSS, CLEAN_LOSS = "train_loss", "clean_loss"  # the last values of the curve


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done with each trial.

    objective: name of the value that is reported to Optuna.
    varied: those of the `AXES` that the trial's configuration has to say, as the sweep varies them.
    held_out: rows for the measurement, which gets the options `measure`.
    metrics: commands by the names of the numbers that they print; `{model}` stands for the trained model's folder.
    discard: delete the trained model when it has been measured.
    """

    objective: str
    varied: Sequence[str] = ()
    held_out: Path | None = None
    measure: Sequence[str] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    discard: bool = False


class _FailedError(Exception):
    pass


class _PrunedError(Exception):
    pass


def run(attempt: Attempt, source: Source, options: Options, lock: int) -> Trial:
    """Run a trial to its end or failure, and record it. Its output is in the attempt's folder."""
    with attempt.running():
        attempt.folder.mkdir(parents=True)
        begin = time.monotonic()
        state: State = "complete"
        error = ""
        work = _Work(attempt, source, options, lock)
        try:
            work.train()
            work.measure()
            work.check()
        except _PrunedError:
            state = "pruned"
        except _FailedError as failure:
            state, error = "failed", f"{failure}\n{process.tail(work.log)}"
        if options.discard:
            shutil.rmtree(attempt.folder / "output", ignore_errors=True)
        record = Trial(
            number=attempt.number,
            state=state,
            alpha=attempt.alpha,
            **attempt.noise,
            seed=attempt.seed,
            seconds=round(time.monotonic() - begin, 1),
            values=work.values,
            curve=curve.thinned(work.curve()),
            log=str(work.log),
            error=error,
        )
        attempt.end(record, work.values[options.objective] if state == "complete" else None)
        return record


class _Work:
    def __init__(self, attempt: Attempt, source: Source, options: Options, lock: int) -> None:
        self.attempt, self.options, self.lock = attempt, options, lock
        self.log = attempt.folder / "log.txt"
        self.values: dict[str, float] = {}
        self._curve = attempt.folder / "curve.jsonl"
        keys: dict[str, Any] = {"neftune_noise_alpha": attempt.alpha or None}
        keys |= {f"neftune_noise_{axis}": attempt.noise[axis] for axis in options.varied}
        self.planned = source.run(keys, attempt.seed, attempt.folder)

    def curve(self) -> list[Point]:
        return curve.read(self._curve, noisy=self.attempt.alpha != 0)

    def train(self) -> None:
        environment = os.environ | {CURVE_VARIABLE: str(self._curve)}
        self._run("the training", self.planned.command, environment, self._prune)
        for point in self.curve():
            last = {LOSS: point.loss, CLEAN_LOSS: point.clean_loss}
            self.values |= {name: loss for name, loss in last.items() if loss is not None}

    def _prune(self) -> None:
        for point in self.curve():
            if point.clean_loss is not None and self.attempt.prune(point.step, point.clean_loss):
                raise _PrunedError

    def measure(self) -> None:
        if self.options.held_out is not None:
            result = self.attempt.folder / "measured.json"
            rows = [str(self.planned.model), str(self.options.held_out), str(result), *self.options.measure]
            self._run("the measurement", [sys.executable, "-P", "-m", "neftune_plugins.sweep.measure", *rows])
            self.values |= _measured(result)
        for name, command in self.options.metrics.items():
            words = [word.replace("{model}", str(self.planned.model)) for word in shlex.split(command)]
            self._run(f"--metric {name}", words)
            last = process.tail(self.log).splitlines()[-1]
            try:
                self.values[name] = float(last)
            except ValueError:
                raise _FailedError(f"--metric {name}: the last line that it printed is not a number: {last}") from None

    def check(self) -> None:
        """Whether the objective can be reported to Optuna."""
        name = self.options.objective
        if name not in self.values:
            found = ", ".join(self.values) or "nothing"
            raise _FailedError(f"--objective {name} has not been measured; there is: {found}")
        if not math.isfinite(self.values[name]):
            raise _FailedError(f"{name} is {self.values[name]}")

    def _run(
        self,
        what: str,
        command: Sequence[str],
        environment: Mapping[str, str] = os.environ,
        look: process.Look = process.nothing,
    ) -> None:
        status = process.run(command, self.log, environment=environment, lock=self.lock, look=look)
        if status:
            reason = failures.cause(process.tail(self.log)) or "it printed nothing"
            raise _FailedError(f"{what} ended with {failures.ending(status)}: {reason}")


def _measured(result: Path) -> dict[str, float]:
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        return {name: value for name, value in found.items() if isinstance(value, int | float)}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise _FailedError(f"the measurement left no result that can be read: {error}") from None
