"""The keys on LLaMA-Factory's TrainingArguments, of the classic path and of V1."""

import dataclasses
from typing import Any

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, enabled, key, refuse_context_parallel, resolve, unpatched


def add_keys(module: Any) -> None:
    """Patch a `training_args` module: its class gets our fields, and checks them when it is made, which is before the
    model loads. Pickles of it load without this package."""
    original = module.TrainingArguments

    def check_and_post_init(self: Any) -> None:
        noisy = enabled() and resolve(vars(self)) is not None
        if noisy:
            import transformers.trainer  # noqa: F401  (it is needed soon, and its patch may fail)

            problem = unpatched("neftune_llamafactory")
            if problem:
                raise NoiseNotAppliedError(f"neftune_noise_alpha would have no effect: {problem}")
        original.__post_init__(self)
        if noisy:
            check_distribution(self)

    patched = dataclasses.make_dataclass(
        original.__name__,
        [
            (
                key(field),
                field.metadata["annotation"],
                dataclasses.field(default=None, metadata={"help": field.metadata["help"]}),
            )
            for field in dataclasses.fields(NoiseConfig)
        ],
        bases=(original,),
        namespace={"__post_init__": check_and_post_init, "__doc__": original.__doc__},
    )
    patched.__module__, patched.__qualname__ = original.__module__, original.__qualname__
    module.TrainingArguments = patched


def check_distribution(args: Any) -> None:
    """Raises NoiseConfigError for arguments of V1 under which it cuts sequences."""
    refuse_context_parallel({"dist_config.cp_size": (getattr(args, "dist_config", None) or {}).get("cp_size")})
