"""NEFTune for ms-swift: active as soon as ms-swift trains (docs/autoload.md), or registered as a callback."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neftune_swift.callback import NEFTuneCallback

__all__ = ["NEFTuneCallback"]


def __getattr__(name: str) -> Any:
    # Not at import: every process that imports torch imports this module.
    if name in __all__:
        from neftune_swift import callback

        return getattr(callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
