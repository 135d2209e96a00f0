"""The keys on LLaMA-Factory's TrainingArguments, of the classic path and of V1."""

import dataclasses
import importlib
from typing import Any

from neftune_transformers.arguments import KEYS, fields, normalise

from neftune_plugins import NoiseNotAppliedError, enabled, refuse_context_parallel, resolve, unpatched

_ALPHA = KEYS[0]


def add_keys(module: Any) -> None:
    """Patch a `training_args` module: its class gets our fields, and checks them when it is made, which is before the
    model loads. Pickles of it load without this package."""
    original = module.TrainingArguments

    def check_and_post_init(self: Any) -> None:
        noisy = enabled() and _take(self, module.__name__)
        if noisy:
            import transformers.trainer  # noqa: F401  (it is needed soon, and its patch may fail)

            problem = unpatched("neftune_llamafactory")
            if problem:
                raise NoiseNotAppliedError(f"{_ALPHA} would have no effect: {problem}")
        original.__post_init__(self)
        if noisy:
            check_distribution(self)

    patched = dataclasses.make_dataclass(
        original.__name__,
        fields(),
        bases=(original,),
        namespace={"__post_init__": check_and_post_init, "__doc__": original.__doc__},
    )
    patched.__module__, patched.__qualname__ = original.__module__, original.__qualname__
    module.TrainingArguments = patched


def _take(args: Any, module: str) -> bool:
    """Whether the arguments ask for noise. Writes numbers that are given as text as numbers; with an alpha of 0 the
    keys are left out, so that no hook is put in for them, and a log line says so."""
    line = normalise(args)
    if line:
        package = "llamafactory.v1.utils" if ".v1." in module else "llamafactory.extras"
        importlib.import_module(f"{package}.logging").get_logger("llamafactory.neftune").info_rank0(line)
    return resolve(vars(args)) is not None


def check_distribution(args: Any) -> None:
    """Raises NoiseConfigError for arguments of V1 under which it cuts sequences."""
    refuse_context_parallel({"dist_config.cp_size": (getattr(args, "dist_config", None) or {}).get("cp_size")})
