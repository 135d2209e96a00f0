"""Measure the noise that really enters a framework's training runs, its own NEFTune's beside ours: a Markdown table.

    python -m tests.conformance.measure --driver axolotl --alpha 5

`native` and `ours` are the noise of each example of the first batch over the paper's alpha / sqrt(3 L d): 1 is right.
`native on padding` is its largest value there; ours is checked to be 0. `without grad` counts the noisy ones among the
forwards without gradients in all steps: of references, KL and old log-probabilities, and beside them those of rollouts,
with their largest noise over the largest of the forwards that are trained on, root mean squares both; ours are checked
to be clean. Modes with the same numbers share a row.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ.update({"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"})

from neftune_plugins.plugins.manager import frameworks
from tests.conformance.driver import Driver
from tests.support.garbage import leave_out_what_lives
from tests.support.probe import Call, padding_noise, per_example, ratio
from tests.support.recorder import Run, generated, trained

COLUMNS = (
    "mode",
    "true lengths L",
    "native",
    "ours",
    "native on padding",
    "without grad, native",
    "ours, all examples",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--driver", required=True, help="the framework: axolotl, ludwig, llamafactory, swift, transformers"
    )
    parser.add_argument("--alpha", type=int, default=5, help="neftune_noise_alpha (default: 5)")
    parser.add_argument("--modes", nargs="*", help="the modes to run (default: all)")
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        import torch

        torch.set_num_threads(1)
        driver = importlib.import_module(f"tests.{options.driver}.driver").make_driver()
    modes_of: dict[tuple[str, ...], list[str]] = {}
    for mode, *cells in measure(driver, options.alpha, options.modes):
        modes_of.setdefault(tuple(cells), []).append(mode)
        print(mode, file=sys.stderr)
    print(f"{driver.name} {version(frameworks()[driver.name].distribution)}\n")
    for row in (COLUMNS, ("---",) * len(COLUMNS), *((", ".join(modes), *cells) for cells, modes in modes_of.items())):
        print(f"| {' | '.join(row)} |")


def measure(driver: Driver, alpha: int, modes: list[str] | None) -> Iterator[list[str]]:
    """Run each mode twice, and yield its row of the table."""
    keys = {"neftune_noise_alpha": alpha}
    with tempfile.TemporaryDirectory() as folder:
        for mode in modes or driver.modes:
            leave_out_what_lives()
            with contextlib.redirect_stdout(sys.stderr):
                ours = driver.train(mode, keys, folder=Path(folder) / mode / "ours")
                try:
                    native: Run | str = driver.train(mode, keys, folder=Path(folder) / mode / "native", stock=True)
                except Exception as error:
                    native = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            yield describe(mode, ours, native, alpha, driver)


def describe(mode: str, ours: Run, native: Run | str, alpha: int, driver: Driver) -> list[str]:
    """The cells of a mode; `native` is a run, or the error that it ended with."""
    pad_id = driver.pad_id
    first = trained(ours)[0]
    lengths = " / ".join(str(len(example.ids)) for example in per_example(first, pad_id))
    ratios = [ratio(example, alpha) for call in trained(ours) for example in per_example(call, pad_id)]
    assert not any(padding_noise(call, pad_id).any() for call in ours.calls if call.input_ids is not None)
    assert not any(call.noise.any() for call in without_grad(ours))
    every = f"{min(ratios):.2f} to {max(ratios):.2f}"
    if isinstance(native, str):
        return [mode, lengths, native, shown(first, alpha, pad_id), "", "", every]
    padding = [padding_noise(call, pad_id).abs().max().item() for call in trained(native) if has_padding(call, pad_id)]
    return [
        mode,
        lengths,
        shown(trained(native)[0], alpha, pad_id),
        shown(first, alpha, pad_id),
        f"{max(padding):.3f}" if padding else "none there",
        ", ".join(noisy_without_grad(native, generated(native) if mode in driver.rollout_modes else [])),
        every,
    ]


def shown(call: Call, alpha: int, pad_id: int) -> str:
    """The ratios of a call's examples."""
    if not call.noise.any():
        return "no noise"
    return " / ".join(f"{ratio(example, alpha):.2f}" for example in per_example(call, pad_id))


def has_padding(call: Call, pad_id: int) -> bool:
    return bool(padding_noise(call, pad_id).numel())


def noisy_without_grad(run: Run, rollouts: list[Call]) -> Iterator[str]:
    """How many of the forwards that score are noisy, and of those that generate."""
    scoring = [call for call in without_grad(run) if not any(call is rollout for rollout in rollouts)]
    if scoring:
        yield f"{sum(bool(call.noise.any()) for call in scoring)} of {len(scoring)}"
    if rollouts:
        counted = f"rollouts {sum(bool(call.noise.any()) for call in rollouts)} of {len(rollouts)}"
        largest, of_policy = (max(rms(call) for call in calls) for calls in (rollouts, trained(run)))
        yield f"{counted}, {largest / of_policy:.1f} times" if largest else counted


def rms(call: Call) -> float:
    return call.noise.double().square().mean().sqrt().item()


def without_grad(run: Run) -> list[Call]:
    return [call for call in run.calls if not call.grad_enabled]


if __name__ == "__main__":
    main()
