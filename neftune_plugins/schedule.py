"""Alpha over a run. `docs/noise.md` is the specification."""

import math

from neftune_plugins.config import NoiseConfig, key
from neftune_plugins.errors import NoiseConfigError


def alpha_at(config: NoiseConfig, step: int, steps: int | None) -> float:
    """Alpha at the optimisation step `step`, counted from 0, of a run of `steps`; from `steps` on what it is there.

    Raises NoiseConfigError for a schedule that needs `steps` where they are not known.
    """
    if config.schedule == "constant":
        return float(config.alpha)
    if steps is None or steps < 0:
        raise steps_unknown(config)
    progress = step / steps if step < steps else 1.0
    factor = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.alpha * factor


def steps_unknown(config: NoiseConfig) -> NoiseConfigError:
    """The error of a schedule that cannot be followed."""
    name = key(NoiseConfig.__dataclass_fields__["schedule"])
    return NoiseConfigError(
        f"{name}: {config.schedule!r} follows the optimisation steps of the run, which are not known here: give their "
        f"number to install(..., steps=N) and set `step` of what it returns before each, or use {name}: constant"
    )
