"""Describes Axolotl to the `neftune` command, without importing it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from neftune_transformers.framework import NATIVE

from neftune_axolotl.training import OLDER_NAME, TRAINING, no_training
from neftune_plugins import CheckedModel, DemoOptions, Framework, hookimpl


def _demo(options: DemoOptions) -> None:
    from neftune_axolotl.demo import demo

    demo(options)


def _adapter() -> str:
    from neftune_axolotl.check import adapter

    return adapter()


def _check(file: Path) -> Sequence[CheckedModel]:
    from neftune_axolotl.check import check

    return check(file)


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [
        Framework(
            "axolotl",
            distribution="axolotl",
            demo=_demo,
            modules=("axolotl.cli.config", "axolotl.train", "neftune_axolotl.check"),
            native=NATIVE,
            adapter=_adapter,
            signs=(frozenset({"base_model", "datasets"}), frozenset({"base_model", "pretraining_dataset"})),
            check=_check,
            training=TRAINING,
            no_training=no_training,
            older_names={OLDER_NAME: "neftune_noise_alpha"},
        )
    ]
