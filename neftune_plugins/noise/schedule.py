"""How alpha changes over a run. `docs/noise.md` is the specification."""

import math


def alpha_at(alpha: float, schedule: str, step: int, steps: int | None) -> float:
    """Compute alpha at the optimiser step `step`, counted from 0, of a run with `steps` steps. From `steps` on, alpha
    no longer changes.

    schedule: constant, linear or cosine.
    Raises ValueError if the schedule needs `steps` and it is None or negative.
    """
    if schedule == "constant":
        return float(alpha)
    if steps is None or steps < 0:
        raise ValueError(f"the schedule {schedule!r} needs the number of optimiser steps")
    progress = step / steps if step < steps else 1.0
    factor = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return alpha * factor
