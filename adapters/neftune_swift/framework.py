"""Describes ms-swift to the `neftune` command, without importing it."""

from collections.abc import Iterable

from neftune_transformers.framework import NATIVE

from neftune_plugins import Framework, hookimpl


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [
        Framework(
            "swift",
            distribution="ms-swift",
            modules=("swift.pipelines", "neftune_swift.callback"),
            native=NATIVE,
        )
    ]
