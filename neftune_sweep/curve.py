"""What a training logs, step by step, as it goes.

A training with the environment variable NEFTUNE_CURVE=FILE adds a line of JSON to FILE for each line that its framework
logs: the adapters call `record`, which imports the standard library alone.
"""

import json
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftune_sweep.study import Point

VARIABLE = "NEFTUNE_CURVE"
LONGEST = 500  # points kept of a run: a database's text may hold no more than 64 KiB

# The names of the loss without noise: that of the framework's evaluation where there is one, and else ours.
CLEAN = ("eval_loss", "neftune/clean_loss")


def wanted() -> bool:
    """Whether this process is to write the curve: the first of a distributed run, and asked for it."""
    return bool(os.environ.get(VARIABLE)) and os.environ.get("RANK", "0") == "0"


def record(step: int, logs: Mapping[str, Any]) -> None:
    """Add what was logged at a step."""
    found = {name: float(value) for name, value in logs.items() if isinstance(value, numbers.Real)}
    with open(os.environ[VARIABLE], "a") as file:
        file.write(json.dumps({**found, "step": step}) + "\n")


def read(file: Path, *, noisy: bool) -> list[Point]:
    """The curve so far; without noise, each loss is a clean one.

    The last line may be half written, and a step may have several.
    """
    if not file.exists():
        return []
    steps: dict[int, dict[str, float]] = {}
    for line in file.read_text().split("\n")[:-1]:
        logs = json.loads(line)
        steps.setdefault(logs.pop("step"), {}).update(logs)
    clean = next((name for name in CLEAN if any(name in logs for logs in steps.values())), CLEAN[0])
    points = []
    for step, logs in sorted(steps.items()):
        loss = logs.get("loss")
        clean_loss = logs.get(clean, None if noisy else loss)
        if loss is not None or clean_loss is not None:
            points.append(Point(step=step, loss=loss, clean_loss=clean_loss))
    return points


def thinned(points: list[Point]) -> list[Point]:
    """At most LONGEST of them, evenly, the last included."""
    every = -(-len(points) // LONGEST)
    return points[::-1][:: max(every, 1)][::-1]
