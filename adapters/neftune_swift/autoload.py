"""Runs at the end of `import torch`; does not import ms-swift."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    # None of them is itself what imports torch: `import swift` does.
    after_import(
        {
            "swift.pipelines.base": "neftune_swift.arguments:check_options",
            "swift.arguments.sft_args": "neftune_swift.arguments:check_values",
            "swift.arguments.rlhf_args": "neftune_swift.arguments:check_values",
            "swift.trainers.arguments": "neftune_swift.arguments:add_keys",
            "swift.trainers.patcher": "neftune_swift.callback:add",
        }
    )
