"""Writes what a training run logs to a file, for `neftune sweep`.

With the environment variable NEFTUNE_CURVE=FILE, a training run adds a line of JSON to FILE for each line that its
framework logs. Standard library only: adapters import this module while torch is being imported.
"""

import json
import numbers
import os
from collections.abc import Mapping
from typing import Any

VARIABLE = "NEFTUNE_CURVE"


def wanted() -> bool:
    """Whether this process writes the curve: the first of a distributed run, and only if asked for it."""
    return bool(os.environ.get(VARIABLE)) and os.environ.get("RANK", "0") == "0"


def record(step: int, logs: Mapping[str, Any]) -> None:
    """Add what was logged at a step."""
    found = {name: float(value) for name, value in logs.items() if isinstance(value, numbers.Real)}
    with open(os.environ[VARIABLE], "a") as file:
        file.write(json.dumps({**found, "step": step}) + "\n")
