"""Runs `neftune probe` on a command, and reads what it wrote."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.commands import ENVIRONMENT, neftune

ROOT = Path(__file__).parents[2]


def probed(
    command: Sequence[str | Path], folder: Path, *options: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The ended `neftune probe`, and its JSON. The command finds the package `tests`."""
    result = folder / "probe.json"
    # transformers 4 leaves torch_compile=True of an earlier test in this process's environment.
    eager = {"ACCELERATE_DYNAMO_BACKEND": "no"}
    variables = {**ENVIRONMENT, **eager, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment}
    ended = neftune("probe", "--json", result, *options, "--", *command, cwd=folder, **variables)
    assert result.exists(), ended.stdout + ended.stderr
    return ended, json.loads(result.read_text())


def assert_is_the_papers(ended: subprocess.CompletedProcess[str], found: dict[str, Any], *, steps: int = 3) -> None:
    """The verdict of a run with this package's noise."""
    assert found["verdict"].startswith("right: all "), ended.stdout + ended.stderr
    assert (ended.returncode, found["status"], found["steps"]) == (0, 0, steps)
    [trained] = [kind for kind in found["kinds"] if kind["caller"] == "trainer" and kind["grad"]]
    assert all(0.9 < example["ratio"] < 1.1 for example in trained["examples"])
    assert trained["padding"] == 0


def assert_is_the_native_hooks(ended: subprocess.CompletedProcess[str], found: dict[str, Any]) -> None:
    """The verdict of a run with padded rows, whose noise is that of the row's width for each example."""
    assert found["verdict"].startswith("wrong: "), ended.stdout + ended.stderr
    assert (ended.returncode, found["status"]) == (1, 1)
    [trained] = [kind for kind in found["kinds"] if kind["caller"] == "trainer" and kind["grad"]]
    by_length = sorted((example["length"], example["ratio"]) for example in trained["examples"])
    assert by_length[0][1] < 0.8 < 0.9 < by_length[-1][1] < 1.1
    assert trained["padding"] > 0.9
