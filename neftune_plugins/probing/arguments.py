"""The arguments of `neftune probe`; imports nothing that needs torch."""

import argparse
from pathlib import Path

from neftune_plugins.commands.options import count, number

DESCRIPTION = """\
Runs a training command and measures the noise that enters its models, from outside: this package's noise, or with
NEFTUNE_PLUGINS=0 the framework's own. After a few optimisation steps it ends the command and prints what it measured in
each kind of forward pass, and a verdict. Exits with 0 if the noise is the paper's, with 1 if it is not or could not be
measured, and with the command's own status if the command failed before. Example:
neftune probe -- axolotl train config.yml
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Entry point of the group `neftune_plugins.commands`: add `probe` to the sub-commands of `neftune`."""
    parser = commands.add_parser(
        "probe",
        help="run a training command, and measure the noise that enters its models from outside",
        description=DESCRIPTION,
        usage="neftune probe [options] -- COMMAND ...",
    )
    parser.add_argument("--steps", type=count, default=3, metavar="N", help="optimisation steps (default: 3)")
    parser.add_argument("--go-on", action="store_true", help="let the command go on after that, without the probe")
    parser.add_argument(
        "--alpha",
        type=number,
        metavar="ALPHA",
        help="to compare with; default: neftune_noise_alpha of the command, its configuration or its trainer",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="write an SVG: the noise of each example against its length"
    )
    parser.set_defaults(run=_run, more=[], needs_torch=False)


def _run(options: argparse.Namespace) -> int:
    from neftune_plugins.probing.command import probe

    return probe(options)
