"""Runs at the end of `import torch`; does not import transformers."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    # Every trainer imports these modules, and neither of them is itself what imports torch.
    for patch in ("neftune_transformers.curve:patch", "neftune_transformers.notice:patch"):
        after_import({"transformers.optimization": patch})
