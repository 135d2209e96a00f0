"""Describes TRL's commands to the `neftune` command, without importing TRL."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from neftune_transformers.framework import NATIVE

from neftune_plugins import CheckedModel, DemoOptions, Framework, hookimpl
from neftune_trl.training import TRAINING


def _demo(options: DemoOptions) -> None:
    from neftune_trl.demo import demo

    demo(options)


def _adapter() -> str:
    from neftune_trl.check import adapter

    return adapter()


def _check(file: Path) -> Sequence[CheckedModel]:
    from neftune_trl.check import check

    return check(file)


_SIGNS = ({"model_name_or_path", "dataset_name"}, {"model_name_or_path", "datasets"})


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [
        Framework(
            "trl",
            distribution="trl",
            demo=_demo,
            modules=("trl.scripts.utils", "neftune_trl.check"),
            native=NATIVE,
            adapter=_adapter,
            signs=tuple(map(frozenset, _SIGNS)),
            check=_check,
            training=TRAINING,
        )
    ]
