"""The command lines that the documentation shows: whether their programs, options and files exist."""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from torch.distributed.run import get_args_parser

from neftune_plugins.commands import cli
from tests.support.documentation import ROOT, shown_everywhere

Arguments = list[str]

# What stands in command lines for a file of the reader's.
PLACEHOLDERS = {"config.yml", "config.yaml", "train.py"}
# Of other projects, with options that are their own.
STRANGERS = {"dieharder", "gh", "git"}


def command_lines() -> Iterator[tuple[str, Arguments]]:
    """The program and the arguments of each command in the bash blocks of all pages, without what sets a variable."""
    for _, code in shown_everywhere("bash"):
        for words in commands(code):
            yield Path(words[0]).name, words[1:]


def commands(code: str) -> Iterator[Arguments]:
    """The words of each command in a bash block, without what sets a variable."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line):
            words = shlex.split(command.split(" > ")[0], comments=True)
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            yield words


def arguments_of(program: str) -> list[Arguments]:
    """Those of each of its command lines, with a configuration of the repository in the place of the reader's."""
    found = [arguments for name, arguments in command_lines() if name == program]
    assert found, f"no page shows {program}"
    examples = {"axolotl": "axolotl/full.yml", "llamafactory-cli": "llamafactory/full.yaml", "swift": "swift/full.yaml"}
    example = examples.get(program, "")
    return [[f"example_configs/{example}" if word in PLACEHOLDERS else word for word in words] for words in found]


def assert_files_exist(arguments: Arguments) -> None:
    """Those with a folder, as seen from the root of the repository."""
    for argument in arguments:
        if "/" in argument and not argument.startswith("-"):
            assert (ROOT / argument).exists(), argument


def environments() -> set[str]:
    """The names in tox.ini, with {a,b} and {1-3} spelt out."""
    text = (ROOT / "tox.ini").read_text()
    listed = re.findall(r"^    ([^ #]+)$", text.split("env_list =")[1].split("\n[")[0], re.MULTILINE)
    sections = re.findall(r"^\[testenv:(.+)\]$", text, re.MULTILINE)
    return {name for pattern in listed + sections for name in _spelt_out(pattern)}


def _spelt_out(pattern: str) -> Iterator[str]:
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    yield from ("".join(choice) for choice in product(*parts))


def _tox(arguments: Arguments) -> None:
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if arguments[0] == "run":
        assert arguments[1] == "-e" and arguments[2] in environments(), arguments
        assert set(arguments[3:]) <= {"--notest"}
    else:
        assert arguments == ["run-parallel"]


def _pip(arguments: Arguments) -> None:
    assert arguments[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for wanted in re.findall(r"neftune-plugins\[(.+)\]", " ".join(arguments)):
        assert set(wanted.split(",")) <= extras.keys(), wanted


def _python(arguments: Arguments) -> None:
    """`-m` with a module of this repository whose source has the options."""
    assert arguments[0] == "-m"
    module, given = arguments[1], arguments[2:]
    if module == "venv":
        return
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    for option in (word for word in given if word.startswith("--")):
        assert f'"{option}"' in source, (module, option)


def _neftune(arguments: Arguments) -> None:
    # What stands behind -- is the training's.
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
    cli._parsed(arguments)
    assert_files_exist(arguments)


def _ci(arguments: Arguments) -> None:
    assert not arguments and (ROOT / ".ci" / "run").exists()


def _torchrun(arguments: Arguments) -> None:
    get_args_parser().parse_args(arguments)


CHECKS: dict[str, Callable[[Arguments], None]] = {
    "neftune": _neftune,
    "pip": _pip,
    "run": _ci,
    "python": _python,
    "python3": _python,
    "torchrun": _torchrun,
    "tox": _tox,
    # Their options are looked at beside them, by tests/<framework>.
    "axolotl": assert_files_exist,
    "llamafactory-cli": assert_files_exist,
    "ludwig": assert_files_exist,
    "swift": assert_files_exist,
    "trl": assert_files_exist,
}
