"""Describes Ludwig to the `neftune` command, without importing it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from neftune_ludwig.places import no_training
from neftune_ludwig.training import PLACES, TRAINING
from neftune_plugins import CheckedModel, DemoOptions, Framework, hookimpl


def _demo(options: DemoOptions) -> None:
    from neftune_ludwig.demo import demo

    demo(options)


def _adapter() -> str:
    from neftune_ludwig.check import adapter

    return adapter()


def _check(file: Path) -> Sequence[CheckedModel]:
    from neftune_ludwig.check import check

    return check(file)


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [
        Framework(
            "ludwig",
            distribution="ludwig",
            demo=_demo,
            modules=("ludwig.models.llm", "ludwig.trainers.trainer", "neftune_ludwig.check"),
            native=("ludwig.modules.training_hooks:NEFTuneHook",),
            adapter=_adapter,
            signs=(frozenset({"input_features", "output_features"}),),
            check=_check,
            training=TRAINING,
            places=PLACES,
            searched=frozenset({"hyperopt"}),
            no_training=no_training,
        )
    ]
