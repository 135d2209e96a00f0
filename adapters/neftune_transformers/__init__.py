"""NEFTune for Hugging Face Trainer and everything built on it, TRL's trainers included."""

from neftune_transformers.callback import NEFTuneCallback

__all__ = ["NEFTuneCallback"]
