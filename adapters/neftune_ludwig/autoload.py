"""Runs at the end of `import torch`; does not import Ludwig."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    after_import(
        {
            "ludwig.schema.llms.model_parameters": "neftune_ludwig.schema:add_keys",
            "ludwig.schema.model_types.base": "neftune_ludwig.schema:check_keys",
            "ludwig.models.llm": "neftune_ludwig.patches:leave_out_native_hook",
            "ludwig.trainers.trainer": "neftune_ludwig.patches:add_callback",
            "ludwig.trainers.trainer_llm": "neftune_ludwig.patches:stop_without_training",
        }
    )
    after_import({"ludwig.trainers.trainer": "neftune_ludwig.curve:patch"})
