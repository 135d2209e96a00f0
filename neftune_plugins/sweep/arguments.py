"""The arguments of `neftune sweep`; imports nothing that only the extra `sweep` brings."""

import argparse
from pathlib import Path

from neftune_plugins.errors import NEFTuneError

DESCRIPTION = """\
Trains with each alpha, each type and length of the noise and each seed, by the framework's own command, and compares.
What was interrupted goes on when the same command is given again; on many machines with the same --storage they share
the work.
What stands behind -- goes to the training command, such as: neftune sweep ludwig.yaml --alpha 0,5 -- --dataset data.csv
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Entry point of the group `neftune_plugins.commands`: add `sweep` to the sub-commands of `neftune`."""
    parser = commands.add_parser(
        "sweep", help="train with several alphas, noise types and seeds, and compare", description=DESCRIPTION
    )
    add_arguments(parser)
    parser.set_defaults(run=_run, more=[])


def _run(options: argparse.Namespace) -> int:
    try:
        try:
            from neftune_plugins.sweep.command import sweep
        except ModuleNotFoundError as error:
            raise NEFTuneError(f'{error}; install what a sweep needs: pip install "neftune-plugins[sweep]"') from None
        return sweep(options)
    except KeyboardInterrupt:
        print("\nStopped before the first trial; nothing was trained.")
        return 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a sweep."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a framework's configuration, or a .py file")
    parser.add_argument("--framework", metavar="NAME", help="whose it is; by default recognised from its keys")
    what = parser.add_argument_group("what is trained")
    what.add_argument(
        "--alpha",
        type=_alphas,
        required=True,
        metavar="A,A,...",
        help="neftune_noise_alpha; 0 is without noise. LOW..HIGH among them is a range to draw from",
    )
    what.add_argument("--type", type=_names, metavar="T,T,...", help="neftune_noise_type; left out, the file's own")
    what.add_argument("--length", type=_names, metavar="L,L", help="neftune_noise_length; left out, the file's own")
    what.add_argument("--seeds", type=_count, default=1, metavar="N", help="seeds 0 to N - 1 (default: 1)")
    what.add_argument("--trials", type=_count, default=0, metavar="N", help="how many alphas to draw from LOW..HIGH")
    what.add_argument("--sampler", default="TPESampler", metavar="CLASS", help="of Optuna (default: %(default)s)")
    what.add_argument(
        "--pruner",
        default="NopPruner",
        metavar="CLASS",
        help="of Optuna: stops trainings whose noise-free loss is high while they run (default: %(default)s)",
    )
    compared = parser.add_argument_group("what is compared")
    compared.add_argument("--held-out", type=Path, metavar="FILE.jsonl", help="rows to measure the trained model with")
    compared.add_argument(
        "--measure",
        default="",
        metavar="OPTIONS",
        help="for the measurement with these rows, such as '--limit 50' (python -m neftune_plugins.sweep.measure "
        "--help lists them)",
    )
    compared.add_argument(
        "--metric",
        type=_metric,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="a command whose last line is a number; {model} in it is the folder of the trained model",
    )
    compared.add_argument(
        "--objective",
        metavar="NAME",
        help="the value that is best when smallest (default: held_out_loss, or without --held-out train_loss, "
        "which has the noise in it)",
    )
    compared.add_argument("--direction", choices=("minimize", "maximize"), default="minimize")
    failing = parser.add_argument_group("what happens when a trial fails")
    failing.add_argument(
        "--retry-failed", action="store_true", help="train again with the settings and seeds whose trials have failed"
    )
    failing.add_argument(
        "--stop-after",
        type=_count_or_none,
        default=3,
        metavar="N",
        help="give up when the last N trials of this worker failed alike and no trial of the study has succeeded "
        "(default: %(default)s); 0 never gives up",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--output", type=Path, default=Path("neftune-sweep"), metavar="FOLDER", help="for the trials")
    where.add_argument("--storage", metavar="URL", help="of a database (default: SQLite in the folder)")
    where.add_argument("--study", metavar="NAME", help="in the database (default: the name of CONFIG)")
    where.add_argument("--heartbeat", type=_count, default=30, metavar="SECONDS", help="of a worker (default: 30)")
    where.add_argument(
        "--dry-run", action="store_true", help="list the trials and how long they will take; run nothing, write nothing"
    )
    where.add_argument("--discard-models", action="store_true", help="delete each trained model once it is measured")


def _alphas(text: str) -> tuple[tuple[float, ...], tuple[float, float] | None]:
    """The numbers, and the ends of the range if there is one."""
    ranges = [part.split("..") for part in text.split(",") if ".." in part]
    if len(ranges) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: there may be one range LOW..HIGH")
    try:
        numbers = tuple(dict.fromkeys(float(part) for part in text.split(",") if ".." not in part))
        low, high = map(float, ranges[0]) if ranges else (0.0, 1.0)
    except ValueError:
        problem = f"{text!r} is no list of numbers; write them as 0,5,10, and a range to draw from as 1..20"
        raise argparse.ArgumentTypeError(problem) from None
    if not low < high:
        raise argparse.ArgumentTypeError(f"{text!r}: the range begins with its smaller end")
    return numbers, (low, high) if ranges else None


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _count_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else _count(text)


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number from 1 to {_LARGEST}")
    return count


_LARGEST = 10**6


def _metric(text: str) -> tuple[str, str]:
    name, separator, command = text.partition("=")
    if not name or not separator or not command:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=COMMAND")
    return name, command
