"""Makes the callback of `neftune_transformers` one of the Trainer's default callbacks."""

from neftune_transformers.defaults import FromArguments, add

__all__ = ["FromArguments", "add"]
