"""How far a sweep is, on a terminal and in a pipe."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from neftune_plugins.terminal import coloured, waiting
from neftune_sweep.study import Trial

WIDTH = 24  # characters of the bar
_COLOURS = {"complete": "green", "failed": "red", "pruned": "dim"}


@contextmanager
def shown(what: str, cells: int, ended: Sequence[Trial], workers: int) -> Iterator[None]:
    """Show the bar with what is being done, on standard error if that is a terminal."""
    filled = WIDTH * len(ended) // cells
    bar = f"[{'#' * filled}{'-' * (WIDTH - filled)}] {len(ended)}/{cells}{estimate(cells, ended, workers)}, {what}"
    with waiting(bar):
        yield


def estimate(cells: int, ended: Sequence[Trial], workers: int) -> str:
    """How long the rest will take if it goes on like this; empty where nothing is known.

    workers: how many trials are run at a time.
    """
    times = [trial.seconds for trial in ended if trial.state == "complete"]
    if not times:
        return ""
    return f", about {_duration(statistics.mean(times) * (cells - len(ended)) / max(workers, 1))} left"


def line(trial: Trial, objective: str) -> str:
    """What came out of a trial."""
    value = f", {objective} {trial.values[objective]:.4f}" if objective in trial.values else ""
    problem = f": {trial.error.splitlines()[0]}, {trial.log}" if trial.error else ""
    state = coloured(trial.state, _COLOURS[trial.state])
    return (
        f"trial {trial.number}  {setting(trial.alpha, trial.type, trial.seed)}  {state} in "
        f"{_duration(trial.seconds)}{value}{problem}"
    )


def setting(alpha: float, type: str, seed: int) -> str:
    return f"alpha {alpha:g}, seed {seed}" if alpha == 0 else f"alpha {alpha:g}, {type}, seed {seed}"


def summary(trials: Sequence[Trial], objective: str) -> list[tuple[str, ...]]:
    """Rows of a table: mean and spread of the objective over the seeds of each point."""
    points: dict[tuple[float, str], list[Trial]] = {}
    for trial in trials:
        points.setdefault((trial.alpha, trial.type), []).append(trial)
    rows: list[tuple[str, ...]] = [("alpha", "type", objective, "std", "seeds", "failed", "pruned")]
    for (alpha, type), mine in sorted(points.items()):
        values = [trial.values[objective] for trial in mine if trial.state == "complete"]
        mean = f"{statistics.mean(values):.4f}" if values else "-"
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        others = (str(sum(trial.state == state for trial in mine)) for state in ("failed", "pruned"))
        rows.append((f"{alpha:g}", type, mean, spread, str(len(values)), *others))
    return rows


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
