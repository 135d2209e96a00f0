"""What `import torch` runs; imports nothing of transformers."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    # Every trainer imports it, and no module that may itself be half imported when it comes to torch.
    for patch in ("neftune_transformers.curve:patch", "neftune_transformers.notice:patch"):
        after_import({"transformers.optimization": patch})
