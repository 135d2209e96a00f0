"""The arguments of `neftune sweep`. This module works without the packages of the extra `sweep`."""

import argparse
from pathlib import Path

from neftune_plugins.errors import NEFTuneError

DESCRIPTION = """\
Trains with each alpha, noise type, noise length and seed, with the framework's own command, and compares the results.
Run the same command again to continue after an interruption, and with more seeds or alphas to extend the study. On many
machines with the same --storage, the workers share the trials.
Arguments after -- go to the training command, such as: neftune sweep ludwig.yaml --alpha 0,5 -- --dataset data.csv
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
            raise NEFTuneError(
                f'{error}. neftune sweep needs this package; install: pip install "neftune-plugins[sweep]"'
            ) from None
        return sweep(options)
    except KeyboardInterrupt:
        print("\nStopped before the first trial; nothing was trained.")
        return 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a sweep, one group for each question that they answer."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a framework's configuration, or a .py file")
    parser.add_argument(
        "--framework", metavar="NAME", help="the framework of CONFIG; default: recognised from its keys"
    )
    _add_trials(parser.add_argument_group("trials"))
    _add_comparison(parser.add_argument_group("comparison"))
    _add_failures(parser.add_argument_group("failed trials"))
    _add_places(parser.add_argument_group("output and storage"))


def _add_trials(group: "argparse._ArgumentGroup") -> None:
    """Which models are trained."""
    group.add_argument(
        "--alpha",
        type=_alphas,
        required=True,
        metavar="A,A,...",
        help="values of neftune_noise_alpha; 0 means no noise. From a range LOW..HIGH, --trials N draws N alphas",
    )
    group.add_argument(
        "--type", type=_names, metavar="T,T,...", help="values of neftune_noise_type; default: the file's"
    )
    group.add_argument(
        "--length", type=_names, metavar="L,L", help="values of neftune_noise_length; default: the file's"
    )
    group.add_argument(
        "--seeds", type=_count, default=1, metavar="N", help="train with the seeds 0 to N - 1 (default: 1)"
    )
    group.add_argument("--trials", type=_count, default=0, metavar="N", help="how many alphas to draw from LOW..HIGH")
    group.add_argument(
        "--sampler", default="TPESampler", metavar="CLASS", help="Optuna's sampler (default: %(default)s)"
    )
    group.add_argument(
        "--pruner",
        default="NopPruner",
        metavar="CLASS",
        help="Optuna's pruner: stops trials whose loss without noise is high (default: %(default)s)",
    )


def _add_comparison(group: "argparse._ArgumentGroup") -> None:
    """What is measured of each trained model, and which value decides."""
    group.add_argument(
        "--held-out", type=Path, metavar="FILE.jsonl", help="rows on which the trained models are measured"
    )
    group.add_argument(
        "--measure",
        default="",
        metavar="OPTIONS",
        help="options for measuring on these rows, such as '--limit 50' (python -m neftune_plugins.sweep.measure "
        "--help lists them)",
    )
    group.add_argument(
        "--metric",
        type=_metric,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="your own metric: the last line that COMMAND prints; {model} becomes the folder of the trained model",
    )
    group.add_argument(
        "--objective",
        metavar="NAME",
        help="the value to minimise (default: held_out_loss; without --held-out train_loss, which includes the noise)",
    )
    group.add_argument("--direction", choices=("minimize", "maximize"), default="minimize")


def _add_failures(group: "argparse._ArgumentGroup") -> None:
    """What happens when a trial fails."""
    group.add_argument(
        "--retry-failed", action="store_true", help="train again each combination whose trial has failed"
    )
    group.add_argument(
        "--stop-after",
        type=_count_or_none,
        default=3,
        metavar="N",
        help="stop if the last N trials of this worker failed for the same cause and no trial has succeeded "
        "(default: %(default)s); 0 never stops",
    )


def _add_places(group: "argparse._ArgumentGroup") -> None:
    """Where trials and results are kept, and what else is written there."""
    group.add_argument(
        "--output",
        type=Path,
        default=Path("neftune-sweep"),
        metavar="FOLDER",
        help="folder for the trials and the report (default: %(default)s)",
    )
    group.add_argument("--storage", metavar="URL", help="URL of a database (default: SQLite in the folder)")
    group.add_argument(
        "--study", metavar="NAME", help="name of the study in the database (default: the name of CONFIG)"
    )
    group.add_argument(
        "--heartbeat",
        type=_count,
        default=30,
        metavar="N",
        help="a worker reports to the database every N seconds (default: 30)",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="list the trials and estimate their time, without running or writing anything",
    )
    group.add_argument(
        "--discard-models", action="store_true", help="delete each trained model after it has been measured"
    )


def _alphas(text: str) -> tuple[tuple[float, ...], tuple[float, float] | None]:
    """Parse --alpha: the listed numbers, and the ends of the range if one is given."""
    ranges = [part.split("..") for part in text.split(",") if ".." in part]
    if len(ranges) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(ranges)} ranges; give one range LOW..HIGH at most")
    try:
        numbers = tuple(dict.fromkeys(float(part) for part in text.split(",") if ".." not in part))
        low, high = map(float, ranges[0]) if ranges else (0.0, 1.0)
    except ValueError:
        problem = f"{text!r} is not a list of numbers; write 0,5,10, or a range to draw from as 1..20"
        raise argparse.ArgumentTypeError(problem) from None
    if not low < high:
        raise argparse.ArgumentTypeError(
            f"{text!r}: the start of the range is not below its end; write LOW..HIGH, such as 1..20"
        )
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; give a whole number from 1 to {_LARGEST}")
    return count


_LARGEST = 10**6


def _metric(text: str) -> tuple[str, str]:
    name, separator, command = text.partition("=")
    if not name or not separator or not command:
        raise argparse.ArgumentTypeError(f"{text!r} has no name or no command; write NAME=COMMAND")
    return name, command
