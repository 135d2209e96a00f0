"""What `import torch` runs; imports nothing of transformers."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    # Every trainer imports it, and no module that may itself be half imported when it comes to torch.
    after_import({"transformers.optimization": "neftune_transformers.curve:patch"})
