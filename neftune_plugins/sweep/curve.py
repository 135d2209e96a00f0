"""Reads the loss curve of a training that `neftune_plugins.curve` has written so far."""

import json
from contextlib import suppress
from pathlib import Path

from neftune_plugins.sweep.study import Point

LONGEST = 500  # points kept of a run: a text in a database may have at most 64 KiB

# Names of the loss without noise: that of the framework's evaluation if there is one, else ours.
CLEAN = ("eval_loss", "neftune/clean_loss")


def read(file: Path, *, noisy: bool) -> list[Point]:
    """Return the curve so far. In a run without noise, each loss is a clean one.

    The last line may be half written, and a step may have several.
    """
    if not file.exists():
        return []
    steps: dict[int, dict[str, float]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        with suppress(ValueError, RecursionError):  # two processes may have written into the same line
            logs = json.loads(line)
            if isinstance(logs, dict) and isinstance(step := logs.pop("step", None), int):
                numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
                steps.setdefault(step, {}).update(numbers)
    clean = next((name for name in CLEAN if any(name in logs for logs in steps.values())), CLEAN[0])
    points = []
    for step, logs in sorted(steps.items()):
        loss = logs.get("loss")
        clean_loss = logs.get(clean, None if noisy else loss)
        if loss is not None or clean_loss is not None:
            points.append(Point(step=step, loss=loss, clean_loss=clean_loss))
    return points


def thinned(points: list[Point]) -> list[Point]:
    """Return at most LONGEST points, evenly spaced, including the last."""
    every = -(-len(points) // LONGEST)
    return points[::-1][:: max(every, 1)][::-1]
