"""Alpha over a run. `docs/noise.md` is the specification."""

import math


def alpha_at(alpha: float, schedule: str, step: int, steps: int | None) -> float:
    """Alpha at the optimisation step `step`, counted from 0, of a run of `steps`; from `steps` on what it is there.

    schedule: constant, linear or cosine. Raises ValueError if it needs `steps` and they are None or negative.
    """
    if schedule == "constant":
        return float(alpha)
    if steps is None or steps < 0:
        raise ValueError(f"the schedule {schedule!r} needs the number of optimisation steps")
    progress = step / steps if step < steps else 1.0
    factor = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return alpha * factor
