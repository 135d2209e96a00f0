"""Shows the progress of a sweep, on a terminal and in a pipe."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

from neftune_plugins.commands.terminal import coloured, table, waiting
from neftune_plugins.sweep import conclusions, failures, statistics
from neftune_plugins.sweep.results import Results, setting_of
from neftune_plugins.sweep.study import AXES, Trial

WIDTH = 24  # characters of the bar
_COLOURS = {"complete": "green", "failed": "red", "pruned": "dim"}


@contextmanager
def shown(what: str, cells: int, ended: Sequence[Trial], workers: int) -> Iterator[None]:
    """Show the bar and the current action on standard error, if that is a terminal."""
    filled = WIDTH * len(ended) // cells
    bar = f"[{'#' * filled}{'-' * (WIDTH - filled)}] {len(ended)}/{cells}{estimate(cells, ended, workers)}, {what}"
    with waiting(bar):
        yield


def estimate(cells: int, ended: Sequence[Trial], workers: int) -> str:
    """How long the rest will take at this rate; empty where nothing is known, or
    left.

    workers: how many trials are run at a time.
    """
    times = [trial.seconds for trial in ended if trial.state == "complete"]
    if not times or len(ended) >= cells:
        return ""
    return f", about {duration(fmean(times) * (cells - len(ended)) / max(workers, 1))} left"


def line(trial: Trial, objective: str) -> str:
    """Return the result of a trial in one line."""
    value = f", {objective} {conclusions.shown(trial.values[objective])}" if objective in trial.values else ""
    problem = f": {failures.first_line(trial)}, {trial.log}" if trial.error else ""
    state = coloured(trial.state, _COLOURS[trial.state])
    return (
        f"trial {trial.number}  {setting(trial.alpha, trial.noise, trial.seed)}  {state} in "
        f"{duration(trial.seconds)}{value}{problem}"
    )


def setting(alpha: float, noise: Iterable[str], seed: int) -> str:
    return ", ".join([f"alpha {alpha:g}", *(noise if alpha else ()), f"seed {seed}"])


def summary(results: Results) -> str:
    """Return mean and spread of the objective over the seeds of each setting, and the conclusion."""
    trials, objective = results.study.trials, results.study.objective
    rows: list[tuple[str, ...]] = [("alpha", *AXES, objective, "spread", "seeds", "failed", "pruned")]
    for setting in sorted(set(map(setting_of, trials))):
        values = results.by_seed(setting, objective)
        own = statistics.summary(values) if values else None
        mean = conclusions.shown(own.mean, own.spread) if own else "-"
        spread = "-" if own is None or own.spread is None else conclusions.shown(own.spread, own.spread)
        states = [trial.state for trial in trials if setting_of(trial) == setting]
        counts = map(str, (len(values), states.count("failed"), states.count("pruned")))
        noise = (value or "-" for value in setting.noise)
        rows.append((f"{setting.alpha:g}", *noise, mean, spread, *counts))
    said = f"{table(rows, right=(0, *range(len(AXES) + 1, len(rows[0]))))}\n\n{conclusions.sentence(results)}"
    failed = sum(trial.state == "failed" for trial in trials)
    return said + (f"\n\n{failed} of {len(trials)} trials failed; {RETRY}" if failed else "")


RETRY = "to train them again, run the same command with --retry-failed."


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
