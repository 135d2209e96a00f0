"""NEFTune for Hugging Face Trainer and everything built on it, TRL's trainers included."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neftune_transformers.callback import NEFTuneCallback

__all__ = ["NEFTuneCallback"]


def __getattr__(name: str) -> Any:
    # Not at import: the `neftune` command lists this adapter where transformers is not installed.
    if name in __all__:
        from neftune_transformers import callback

        return getattr(callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
