"""NEFTune for LLaMA-Factory: active as soon as LLaMA-Factory runs (docs/autoload.md), or passed as a callback.

The classic path uses the callback of `neftune_transformers`; V1 has its own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neftune_transformers import NEFTuneCallback

    from neftune_llamafactory.v1 import NEFTuneV1Callback

__all__ = ["NEFTuneCallback", "NEFTuneV1Callback"]


def __getattr__(name: str) -> Any:
    # Not at import: every process that imports torch imports this module.
    if name == "NEFTuneCallback":
        from neftune_transformers import NEFTuneCallback

        return NEFTuneCallback
    if name == "NEFTuneV1Callback":
        from neftune_llamafactory.v1 import NEFTuneV1Callback

        return NEFTuneV1Callback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
