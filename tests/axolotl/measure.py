"""Measure what noise NEFTune really puts into Axolotl's runs; print a Markdown table.

    python -m tests.axolotl.measure --alpha 5             # Axolotl's own NEFTune
    python -m tests.axolotl.measure --alpha 5 --plugin    # with this project's plugin

`ratio` is the noise of an example over the paper's alpha / sqrt(L_i d): 1 is right. About two minutes for all modes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.recorder import Run

PAD_ID = 0
COLUMNS = (
    "mode",
    "axolotl",
    "hooks on the embedding",
    "lengths L_i, first call",
    "ratios, first call",
    "ratio, all calls",
    "padding, max abs",
    "noisy calls per step, grad",
    "noisy calls per step, no_grad",
    "recomputes alike",
    "seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=5.0, help="neftune_noise_alpha (default: 5)")
    parser.add_argument("--plugin", action="store_true", help="leave this project's plugin active")
    parser.add_argument("--modes", nargs="*", help="the modes to run (default: all)")
    arguments = parser.parse_args()
    if not arguments.plugin:
        os.environ["NEFTUNE_PLUGINS"] = "0"

    print(row(COLUMNS))
    print(row(["---"] * len(COLUMNS)), flush=True)
    for cells in measure(arguments.alpha, arguments.plugin, arguments.modes):
        print(row(cells), flush=True)


def measure(alpha: float, plugin: bool, modes: list[str] | None) -> Iterator[list[str]]:
    """Run each mode, and yield its row of the table."""
    from neftune_transformers.tiny import make_tiny_model

    from tests.axolotl.configs import MODES, base_config
    from tests.axolotl.driver import with_plugin
    from tests.axolotl.runs import run_axolotl

    release = version("axolotl")
    with tempfile.TemporaryDirectory() as folder:
        model_dir = make_tiny_model(Path(folder) / "tiny")
        for mode in modes or MODES:
            config = base_config(model_dir, mode) | {"neftune_noise_alpha": alpha}
            if plugin:
                config = with_plugin(config)
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    run = run_axolotl(config, Path(folder) / mode)
            except Exception as error:
                message = str(error).strip().splitlines() or [""]
                yield [mode, release, f"{type(error).__name__}: {message[0]}"] + [""] * (len(COLUMNS) - 3)
                continue
            yield [mode, release, *describe(run, alpha)]


def describe(run: Run, alpha: float) -> list[str]:
    """The cells of a run, from the third column on."""
    import torch

    from tests.support.probe import padding_noise, per_example, ratio

    calls = run.calls
    noisy = [call for call in calls if call.noise is not None and call.noise.any()]  # without noise: zeros, exactly
    examples = per_example(next(call for call in calls if call.grad_enabled), PAD_ID)
    ratios = [ratio(example, alpha) for call in noisy for example in per_example(call, PAD_ID)]
    padding = [padding_noise(call, PAD_ID).abs().max().item() for call in calls if padding_noise(call, PAD_ID).numel()]
    recomputes = [
        call.noise is not None and torch.equal(again, call.noise) for call in calls for again in call.recomputes
    ]

    def per_step(grad_enabled: bool) -> str:
        num_noisy = sum(call.grad_enabled == grad_enabled for call in noisy)
        num_calls = sum(call.grad_enabled == grad_enabled for call in calls)
        return f"{num_noisy / len(run.steps):g} of {num_calls / len(run.steps):g}"

    hooks = [name.rpartition(".")[2] for name in run.steps[0]["hooks"]]
    return [
        f"{len(hooks)}: {', '.join(hooks)}" if hooks else "0",
        " / ".join(str(len(example.ids)) for example in examples),
        " / ".join(f"{ratio(example, alpha):.2f}" for example in examples),
        f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "no noise",
        f"{max(padding):.3g}" if padding else "no padding",
        per_step(True),
        per_step(False),
        f"{sum(recomputes)} of {len(recomputes)}" if recomputes else "",
        f"{run.seconds:.1f}",
    ]


def row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
