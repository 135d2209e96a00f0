"""Runs at the end of `import torch`; does not import TRL."""

from neftune_plugins import after_import


def register() -> None:
    """Entry point of the group `torch.backends`."""
    after_import({"trl.scripts.utils": "neftune_trl.parser:patch"})
