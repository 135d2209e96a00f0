"""Describes LLaMA-Factory to the `neftune` command, without importing it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from neftune_transformers.framework import NATIVE

from neftune_llamafactory.training import TRAINING, no_training
from neftune_plugins import CheckedModel, DemoOptions, Framework, hookimpl


def _demo(options: DemoOptions) -> None:
    from neftune_llamafactory.demo import demo

    demo(options)


def _adapter() -> str:
    from neftune_llamafactory.check import adapter

    return adapter()


def _check(file: Path) -> Sequence[CheckedModel]:
    from neftune_llamafactory.check import check

    return check(file)


_SIGNS = ({"model_name_or_path", "stage"}, {"model_name_or_path", "finetuning_type"}, {"model", "train_dataset"})


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [
        Framework(
            "llamafactory",
            distribution="llamafactory",
            demo=_demo,
            modules=("llamafactory.train.tuner", "neftune_llamafactory.check"),
            native=NATIVE,
            adapter=_adapter,
            signs=tuple(map(frozenset, _SIGNS)),
            check=_check,
            training=TRAINING,
            no_training=no_training,
            exponents=True,
        )
    ]
