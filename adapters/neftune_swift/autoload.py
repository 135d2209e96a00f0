"""Runs at the end of `import torch`; does not import ms-swift."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    # Not `swift.trainers.patcher`, which replaces the default callbacks: it may itself be what imports torch.
    after_import(
        {
            "swift.pipelines.base": "neftune_swift.arguments:check_options",
            "swift.arguments.sft_args": "neftune_swift.arguments:check_values",
            "swift.arguments.rlhf_args": "neftune_swift.arguments:check_values",
            "swift.trainers.arguments": "neftune_swift.arguments:add_keys",
            "swift.trainers.mixin": "neftune_swift.callback:add",
        }
    )
