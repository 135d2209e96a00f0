"""Reads a configuration with ms-swift's own parser, and checks that its modules are patched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from neftune_transformers.arguments import KEYS
from swift.arguments import RLHFArguments, SftArguments
from swift.cli.main import parse_yaml_args
from swift.utils import parse_args

from neftune_plugins import CheckedModel, NEFTuneError, NoiseNotAppliedError, keys_in, unpatched
from neftune_swift.arguments import check_arguments
from neftune_swift.training import command


def adapter() -> str:
    """Return how ms-swift's modules are patched. Raises NoiseNotAppliedError if they are not."""
    problem = unpatched("neftune_swift")
    if not problem and not set(KEYS) <= set(SftArguments.__dataclass_fields__):
        problem = "PyTorch has not called the entry points of `torch.backends`; unset TORCH_DEVICE_BACKEND_AUTOLOAD"
    if problem:
        raise NoiseNotAppliedError(f"ms-swift's modules are not patched: {problem}")
    return "by PyTorch's autoload"


def check(file: Path) -> Sequence[CheckedModel]:
    """Read a file as `swift sft` or `swift rlhf` does, up to what needs the model."""
    name = command(yaml.safe_load(file.read_text(encoding="utf-8")))
    kind = {"sft": SftArguments, "rlhf": RLHFArguments}[name]
    words = [str(file)]
    with patch.dict("os.environ"):
        parse_yaml_args(words)
    # Its other checks read the model's configuration, download it, or make folders.
    with patch.object(kind, "__post_init__", lambda self: None), patch("argparse.ArgumentParser.error", _refuse):
        args, unknown = parse_args(kind, words)
    if unknown:
        raise NEFTuneError(f"{unknown[0].removeprefix('--')}: swift {name} has no such key")
    if args.model is None:
        raise NEFTuneError("there is no model; set model to a folder or a name on a hub")
    check_arguments(args)
    return [CheckedModel((), keys_in(vars(args)), args.model, native=True, seed=args.seed)]


def _refuse(parser: Any, message: str) -> None:
    raise NEFTuneError(message)
