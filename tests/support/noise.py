"""What tests of trainers of transformers say about a run's noise."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from tests.support import specification
from tests.support.probe import Call, padding_noise, per_example, ratio
from tests.support.recorder import Run, neftune_hooks

OURS = ["neftune_plugins.model.hooks.EmbeddingHook"]


def noisy_per_step(run: Run) -> float:
    """How many forward passes of a step have noise."""
    return sum(bool(call.noise is not None and call.noise.any()) for call in run.calls) / len(run.steps)


def assert_specified_noise(
    run: Run, driver: Any, *, num_steps: int = 5, kind: str = "uniform", schedule: str = "constant"
) -> set[tuple[int, ...]]:
    """Every example of the run has the noise of docs/noise.md, and no hook but ours was there; gives the examples."""
    assert neftune_hooks(run.steps[0]["hooks"]) == OURS
    assert len(run.steps) == num_steps
    seen = set()
    for call in run.calls:
        alpha = specification.alpha_at(schedule, 5, call.global_step, num_steps)
        for example in per_example(call, driver.pad_id):
            ids = example.ids.tolist()
            seen.add(tuple(ids))
            want = specification.noise(
                ids, example.noise.shape[1], alpha=alpha, seed=driver.seed, step=call.global_step, kind=kind
            )
            # Both are differences of float32 sums; their terms are below 1.
            torch.testing.assert_close(example.noise, torch.tensor(want), rtol=0, atol=2e-7)
    assert seen
    return seen


def assert_papers_noise(calls: list[Call], pad_id: int, alpha: float = 5) -> None:
    """Each example has the paper's noise, and padding has none."""
    assert calls
    for call in calls:
        for example in per_example(call, pad_id):
            # Standard error of the root mean square of n uniform draws: sqrt(E x^4 / (E x^2)^2 - 1) / (2 sqrt n).
            error = math.sqrt(9 / 5 - 1) / (2 * math.sqrt(example.noise.numel()))
            assert abs(ratio(example, alpha) - 1) < 5 * error
        assert not padding_noise(call, pad_id).any()


def neftune_modules(model: nn.Module) -> list[str]:
    """Names of the modules that have a hook of NEFTune, native or ours."""

    def is_neftune(hook: Any) -> bool:
        hook = hook.func if isinstance(hook, functools.partial) else hook
        named = hook if hasattr(hook, "__qualname__") else type(hook)
        return "neftune" in f"{named.__module__}.{named.__qualname__}".lower()

    return [
        name
        for name, module in model.named_modules()
        if any(map(is_neftune, [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]))
    ]
