"""NEFTune for Ludwig: active as soon as Ludwig runs (docs/autoload.md), or passed as a callback."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neftune_ludwig.callback import NEFTuneCallback

__all__ = ["NEFTuneCallback"]


def __getattr__(name: str) -> Any:
    # Not at import: every process that imports torch imports this module.
    if name in __all__:
        from neftune_ludwig import callback

        return getattr(callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
