"""Describes ms-swift to the `neftune` command, without importing it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from neftune_transformers.framework import NATIVE

from neftune_plugins import CheckedModel, DemoOptions, Framework, hookimpl
from neftune_swift.training import TRAINING, no_training


def _demo(options: DemoOptions) -> None:
    from neftune_swift.demo import demo

    demo(options)


def _adapter() -> str:
    from neftune_swift.check import adapter

    return adapter()


def _check(file: Path) -> Sequence[CheckedModel]:
    from neftune_swift.check import check

    return check(file)


_SIGNS = ({"model", "dataset"}, {"model", "tuner_type"}, {"model", "rlhf_type"})


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [
        Framework(
            "swift",
            distribution="ms-swift",
            demo=_demo,
            modules=("swift.pipelines", "neftune_swift.check"),
            native=NATIVE,
            adapter=_adapter,
            signs=tuple(map(frozenset, _SIGNS)),
            check=_check,
            training=TRAINING,
            no_training=no_training,
        )
    ]
