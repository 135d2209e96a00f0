"""Runs at the end of `import torch`; does not import LLaMA-Factory."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    # Under torchrun, llamafactory.train.tuner itself imports torch: its import has begun, so it cannot be patched.
    after_import(
        {
            "transformers.hf_argparser": "neftune_llamafactory.sources:patch",
            "llamafactory.hparams.training_args": "neftune_llamafactory.classic:patch",
            "llamafactory.v1.config.training_args": "neftune_llamafactory.arguments:add_keys",
            "llamafactory.v1.core.base_trainer": "neftune_llamafactory.v1:patch",
            "llamafactory.v1.utils.callbacks.trainer_callback": "neftune_llamafactory.curve:patch",
        }
    )
