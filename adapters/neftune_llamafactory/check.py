"""Validates a configuration with LLaMA-Factory's own code, and checks that its modules are patched."""

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from llamafactory.hparams import get_train_args, training_args
from neftune_transformers.arguments import KEYS
from omegaconf import OmegaConf

from neftune_plugins import CheckedModel, NoiseNotAppliedError, keys_in, unpatched

# The run may be on another machine, so devices, launchers, files and packages of this one are not checked.
_ANYWHERE = ["use_cpu=true", "overwrite_output_dir=true"]
_OF_A_MACHINE = ("accelerator_config", "ddp_backend", "deepspeed", "fsdp", "fsdp_config", "tf32")


def adapter() -> str:
    """Return how LLaMA-Factory's modules are patched. Raises NoiseNotAppliedError if they are not."""
    problem = unpatched("neftune_llamafactory")
    if not problem and not set(KEYS) <= set(training_args.TrainingArguments.__dataclass_fields__):
        problem = "PyTorch has not called the entry points of `torch.backends`; unset TORCH_DEVICE_BACKEND_AUTOLOAD"
    if problem:
        raise NoiseNotAppliedError(f"LLaMA-Factory's modules are not patched: {problem}")
    return "by PyTorch's autoload"


def check(file: Path) -> Sequence[CheckedModel]:
    """Read a file as `llamafactory-cli` does, in the classic path or in V1."""
    config = OmegaConf.to_container(OmegaConf.load(file))
    v1 = "model_name_or_path" not in config
    elsewhere = [] if v1 else [*_ANYWHERE, *(f"{name}=null" for name in _OF_A_MACHINE if name in config)]
    bf16 = patch("llamafactory.hparams.parser.is_torch_bf16_gpu_available", lambda: True)
    packages = patch("llamafactory.hparams.parser.check_version", lambda *_, **__: None)
    with bf16, packages, patch("sys.argv", ["llamafactory-cli", str(file), *elsewhere]):
        if v1:
            from llamafactory.v1.config import get_args

            model, _, arguments, _ = get_args()
            name, native = model.model, False
        else:
            model, _, arguments, method, _ = get_train_args()
            name, native = model.model_name_or_path, method.stage != "ppo"
    return [CheckedModel((), keys_in(vars(arguments)), name, native=native, seed=arguments.seed)]
