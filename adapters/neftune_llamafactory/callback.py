"""The callback of `neftune_transformers` among the Trainer's defaults."""

from neftune_transformers.defaults import FromArguments, add

__all__ = ["FromArguments", "add"]
