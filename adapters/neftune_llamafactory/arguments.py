"""Adds the keys to LLaMA-Factory's TrainingArguments, in the classic path and in V1."""

import importlib
from typing import Any

from neftune_transformers.arguments import extended, normalise, refuse_unpatched

from neftune_plugins import enabled, refuse_context_parallel, resolve


def add_keys(module: Any) -> None:
    """Patch a `training_args` module: its class gets our fields and checks them in `__post_init__`, before the model
    loads. Its pickles load without this package."""
    original = module.TrainingArguments

    def check_and_post_init(self: Any) -> None:
        noisy = enabled() and _take(self, module.__name__)
        if noisy:
            import transformers.trainer  # noqa: F401  (training needs it, and its patch may fail)

            refuse_unpatched("neftune_llamafactory")
        original.__post_init__(self)
        if noisy:
            check_distribution(self)

    module.TrainingArguments = extended(original, {"__post_init__": check_and_post_init})


def _take(args: Any, module: str) -> bool:
    """Return whether the arguments ask for noise.

    Converts numbers given as text. With an alpha of 0 it clears the keys, so that no hook is installed for them, and
    logs that.
    """
    line = normalise(args)
    if line:
        package = "llamafactory.v1.utils" if ".v1." in module else "llamafactory.extras"
        importlib.import_module(f"{package}.logging").get_logger("llamafactory.neftune").info_rank0(line)
    return resolve(vars(args)) is not None


def check_distribution(args: Any) -> None:
    """Raise NoiseConfigError for arguments of V1 that split sequences over processes."""
    refuse_context_parallel({"dist_config.cp_size": (getattr(args, "dist_config", None) or {}).get("cp_size")})
