"""LLaMA-Factory as the `neftune` command knows it; imports nothing of it."""

from collections.abc import Iterable

from neftune_plugins import DemoOptions, Framework, hookimpl


def _demo(options: DemoOptions) -> None:
    from neftune_llamafactory.demo import demo

    demo(options)


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [Framework("llamafactory", distribution="llamafactory", demo=_demo)]
