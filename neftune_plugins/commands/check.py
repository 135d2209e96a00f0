"""`neftune check`: a configuration file through its framework's own validation, without the model."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neftune_plugins.autoload import VARIABLE, enabled
from neftune_plugins.commands import installed, worker
from neftune_plugins.commands.diagnosis import version
from neftune_plugins.commands.terminal import coloured, table, waiting
from neftune_plugins.config import key, looks_like_ours
from neftune_plugins.errors import NEFTuneError, NoiseNotAppliedError
from neftune_plugins.noise import alpha_at
from neftune_plugins.plugins import Framework, frameworks, noise_types, resolve

_UNIFORM = 3**-0.5  # root mean square of the native hook's noise, in units of alpha / sqrt(L d)

Place = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Checked:
    """A configuration file that was looked at.

    framework: with its version; None where it was not recognised.
    status: 0 right, 1 wrong, 2 not to be told: the framework is not installed, or not recognised.
    problem: and its remedy, if there is one.
    line: of the file, at which it is.
    models: see `described`.
    """

    file: str
    framework: str | None = None
    status: int = 0
    problem: str = ""
    line: int | None = None
    models: Sequence[Mapping[str, Any]] = ()


def check(files: Sequence[Path], framework: str | None, lengths: Sequence[int]) -> list[Checked]:
    """Check files, those of one framework in one process.

    framework: name; None to recognise it from each file.
    lengths: L of the examples whose noise is told, tokens.
    """
    results: dict[Path, Checked] = {}
    marks: dict[Path, dict[Place, int]] = {}
    jobs: dict[str, list[Path]] = {}
    for file in files:
        try:
            marks[file] = lines_of(file)
            jobs.setdefault(_recognised(file, marks[file], framework).name, []).append(file)
        except _CannotCheckError as error:
            results[file] = Checked(str(file), None, error.status, str(error), error.line)
    for name, mine in jobs.items():
        shown = f"{name} {version(frameworks()[name].distribution)}"
        try:
            with waiting(f"checking with {shown}"):
                answers = worker.call("neftune_plugins.commands.check:probe", name, *map(str, mine))
        except NEFTuneError as error:
            problem = f"{shown} does not work here ({error}); `neftune doctor` says what to do"
            results |= {file: Checked(str(file), shown, 2, problem) for file in mine}
            continue
        for file, answer in zip(mine, answers, strict=True):
            if "problem" in answer:
                line = _line(answer["problem"], marks[file])
                results[file] = Checked(str(file), shown, 1, answer["problem"], line)
            else:
                models = [described(model, marks[file], lengths) for model in answer["models"]]
                results[file] = Checked(str(file), shown, models=models)
    return [results[file] for file in files]


def framework_of(file: Path, name: str | None) -> Framework:
    """The framework of a configuration file, of that name or recognised from the file's keys.

    Raises NEFTuneError where there is none, or it is not installed.
    """
    try:
        return _recognised(file, lines_of(file), name)
    except _CannotCheckError as error:
        raise NEFTuneError(f"{file}: {error}") from None


def probe(name: str, *files: str) -> list[dict[str, Any]]:
    """What the framework makes of each file: its models, as dicts, or the problem that it found."""
    framework = worker.imported(name)
    assert framework.check is not None
    answers: list[dict[str, Any]] = []
    for file in files:
        try:
            models = framework.check(Path(file))
            if any(resolve(model.keys) is not None for model in models):
                if not enabled():
                    raise NoiseNotAppliedError(f"{VARIABLE}=0: this package is off; unset {VARIABLE}")
                framework.adapter()
            answers.append({"models": [dataclasses.asdict(model) for model in models]})
        except (Exception, SystemExit) as error:
            answers.append({"problem": _message(error)})
    return answers


def report(results: Sequence[Checked]) -> str:
    """The results as text."""
    return "\n\n".join(map(_report, results))


def as_json(results: Sequence[Checked]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(result) for result in results]


class _CannotCheckError(Exception):
    def __init__(self, message: str, *, status: int = 2, line: int | None = None) -> None:
        super().__init__(message)
        self.status, self.line = status, line


def lines_of(file: Path) -> dict[Place, int]:
    """The line of each key, and of each member of a list, in a YAML or JSON file."""
    try:
        import yaml
    except ImportError:  # every framework that reads YAML brings it
        raise _CannotCheckError(_nothing_installed()) from None
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise _CannotCheckError(str(error)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise _CannotCheckError(f"this is not YAML: {error.problem}", status=1, line=line) from None
    marks: dict[Place, int] = {}

    def walk(node: Any, place: Place) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                marks[*place, name.value] = name.start_mark.line + 1
                walk(value, (*place, name.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                marks[*place, number] = value.start_mark.line + 1
                walk(value, (*place, number))

    walk(root, ())
    return marks


def _recognised(file: Path, marks: Mapping[Place, int], name: str | None) -> Framework:
    able = {known.name: known for known in frameworks().values() if known.check is not None}
    if name is not None and name not in able:
        raise _CannotCheckError(f"--framework {name}: there is no such adapter; there are: {', '.join(able)}")
    keys = {place[0] for place in marks if len(place) == 1}
    fitting = [known for known in able.values() if any(sign <= keys for sign in known.signs)]
    if name is None and len(fitting) != 1:
        signs = "; ".join(
            f"{known.name} has " + " or ".join(" and ".join(sorted(sign)) for sign in known.signs)
            for known in fitting or able.values()
        )
        of = "more than one framework" if fitting else "no framework"
        raise _CannotCheckError(f"by its keys it is of {of} ({signs}); say which with --framework NAME")
    framework = fitting[0] if name is None else able[name]
    if version(framework.distribution) is None:
        raise _CannotCheckError(
            f'it is of {framework.name}, which is not installed: pip install "{installed.extra(framework)}"'
        )
    return framework


def _nothing_installed() -> str:
    example = next(known for known in frameworks().values() if known.check is not None)
    return f'no training framework is installed; install one, such as: pip install "{installed.extra(example)}"'


def _message(error: BaseException) -> str:
    """Ours where the framework has wrapped it, and else the framework's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NEFTuneError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error).strip() or type(error).__name__


def _line(message: str, marks: Mapping[Place, int]) -> int | None:
    """The line of the key that a message is about: ours, if it names one, and else that whose whole place it names, or
    which it names first. A name that may be a word of the message counts in quotes only."""
    found = []
    for place, line in marks.items():
        name, whole = re.escape(str(place[-1])), ".".join(map(str, place))
        pattern = rf"(?<!\w){name}(?!\w)" if "_" in name else rf"['\"`]{name}['\"`]"
        named = re.search(pattern, message)
        at_start = message.startswith(f"{whole}:")
        if isinstance(place[-1], str) and (named or at_start):
            start = 0 if named is None else named.start()
            found.append((not looks_like_ours(place[-1]), not at_start, start, line))
    return min(found)[-1] if found else None


def described(model: Mapping[str, Any], marks: Mapping[Place, int], lengths: Sequence[int]) -> dict[str, Any]:
    """A checked model: `place` and `model`; `keys`, each with `value` and `source`; `alphas` at the first step, after
    each quarter of the run and at its end; and `lengths`, each with the norm of the `noise` of one token at the first
    step and that of the `native` hook's, or None where it would not have run."""
    config = resolve(model["keys"])
    shown: dict[str, Any] = {"place": ".".join(map(str, model["place"])), "model": model["model"]}
    if config is None:
        return shown | {"keys": {}, "alphas": [], "lengths": []}
    keys = {}
    for field in dataclasses.fields(config):
        name, value = key(field), getattr(config, field.name)
        line = marks.get((*model["place"], name))
        if line is not None:
            source = f"line {line}"
        elif model["keys"].get(name) is not None:
            source = "the framework"
        elif field.name == "seed":
            value, line = model["seed"], marks.get(tuple(model["seed_place"]))
            source = "the run's seed, " + ("the framework's default" if line is None else f"line {line}")
        else:
            source = "default"
        keys[name] = {"value": value, "source": source}
    strength, longest = noise_types()[config.type].rms * config.alpha, max(lengths)
    native = _UNIFORM * config.alpha / math.sqrt(longest) if model["native"] else None
    norms = [
        {"L": L, "noise": strength / math.sqrt(L if config.length == "sequence" else longest), "native": native}
        for L in lengths
    ]
    alphas = [alpha_at(config.alpha, config.schedule, quarter, 4) for quarter in range(5)]
    return shown | {"keys": keys, "alphas": alphas, "lengths": norms}


def _report(result: Checked) -> str:
    if result.status:
        place = result.file if result.line is None else f"{result.file}:{result.line}"
        return f"{coloured(place, 'red')}: {result.problem}"
    lines = [f"{result.file}: {coloured('right', 'green')}, for {result.framework}"]
    for model in result.models:
        lines += ["", *_report_model(model)]
    return "\n".join(lines)


def _report_model(model: Mapping[str, Any]) -> list[str]:
    where = f" ({model['place']})" if model["place"] else ""
    if not model["keys"]:
        return [f"{model['model']}{where}: no noise, neftune_noise_alpha is not set"]
    rows = [("key", "value", "from")]
    rows += [(name, _shown(found["value"]), found["source"]) for name, found in model["keys"].items()]
    native = [norm["native"] for norm in model["lengths"]]
    heading = "native hook" if native[0] is not None else "native hook: not there"
    norms = [("tokens L", "noise", heading)]
    norms += [
        (str(norm["L"]), f"{norm['noise']:.4f}", "none" if norm["native"] is None else f"{norm['native']:.4f}")
        for norm in model["lengths"]
    ]
    longest = max(norm["L"] for norm in model["lengths"])
    alphas = [f"{alpha:.4g}" for alpha in model["alphas"]]
    over_the_run = []
    if len(set(alphas)) > 1:
        over_the_run = [
            "",
            f"These are of the first step. Alpha after each quarter of the run: {', '.join(alphas[1:])}.",
        ]
    return [
        f"The noise goes on the output of the input embedding of {model['model']}{where},",
        f"which is found when the model is loaded{'' if native[0] is None else '. The native hook is left out'}.",
        "",
        table(rows),
        "",
        f"Norm of the noise on one token, in a batch of these examples padded to {longest}:",
        "",
        table(norms, right=(0, 1, 2)),
        *over_the_run,
    ]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()  # as in YAML
    return f"{value:g}" if isinstance(value, float) else str(value)
