"""`neftune check`: validate configuration files with their framework, without loading the model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neftune_plugins.autoload import VARIABLE, enabled
from neftune_plugins.commands import installed, judgement, reading, worker
from neftune_plugins.commands.checked import Checked
from neftune_plugins.commands.diagnosis import version
from neftune_plugins.commands.terminal import waiting
from neftune_plugins.config import Place, key
from neftune_plugins.errors import NEFTuneError, NoiseNotAppliedError
from neftune_plugins.noise import alpha_at
from neftune_plugins.plugins import Framework, frameworks, noise_types, resolve

_UNIFORM = 3**-0.5  # root mean square of the native hook's noise, in units of alpha / sqrt(L d)


@dataclasses.dataclass(frozen=True)
class _Read:
    """A file whose text has no errors in our keys."""

    file: Path
    framework: Framework
    source: reading.Source
    judged: judgement.Judged


def check(files: Sequence[Path], framework: str | None, lengths: Sequence[int]) -> list[Checked]:
    """Check files. The files of one framework are validated in one process.

    framework: its name, or None to recognise it from each file.
    lengths: lengths L of examples, in tokens, for which the noise is printed.
    """
    results: dict[Path, Checked] = {}
    jobs: dict[str, list[_Read]] = {}
    for file in dict.fromkeys(files):
        try:
            read = _read(file, framework)
            jobs.setdefault(read.framework.name, []).append(read)
        except reading.CannotReadError as error:
            results[file] = Checked(str(file), None, error.status, str(error), error.line)
    for name, mine in jobs.items():
        results |= _validated(name, mine, lengths)
    return [results[file] for file in files]


def _read(file: Path, name: str | None) -> _Read:
    """Raises CannotReadError if the file is wrong, or its framework is not recognised or not installed."""
    source = reading.read(file)
    framework = judgement.recognised(source, _able(), name)
    if framework.exponents:
        source = reading.read(file, exponents=True)
    judged = judgement.judge(source, framework)
    _stop_if_missing(framework)
    return _Read(file, framework, source, judged)


def _able() -> dict[str, Framework]:
    return {known.name: known for known in frameworks().values() if known.check is not None}


def _stop_if_missing(framework: Framework) -> None:
    if version(framework.distribution) is None:
        raise reading.CannotReadError(
            f"this is a configuration of {framework.name}, which is not installed; run "
            f'pip install "{installed.extra(framework)}", '
            "or check only our keys with --quick",
            status=2,
        )


def _validated(name: str, mine: Sequence[_Read], lengths: Sequence[int]) -> dict[Path, Checked]:
    """The results of a framework's own validation of its files."""
    shown = f"{name} {version(frameworks()[name].distribution)}"
    try:
        with waiting(f"checking with {shown}"):
            answers = worker.call("neftune_plugins.commands.check:probe", name, *(str(read.file) for read in mine))
    except NEFTuneError as error:
        problem = f"{shown} does not work here ({error}); `neftune doctor` says what to do"
        return {read.file: Checked(str(read.file), shown, 2, problem) for read in mine}
    results = {}
    for read, answer in zip(mine, answers, strict=True):
        file, notes, lines = str(read.file), read.judged.notes, read.source.lines
        if "problem" in answer:
            problem = answer["problem"]
            results[read.file] = Checked(file, shown, 1, problem, judgement.line_of(problem, lines), notes)
        else:
            models = [described(model, lines, lengths) for model in answer["models"]]
            results[read.file] = Checked(file, shown, notes=notes, models=models)
    return results


def framework_of(file: Path, name: str | None) -> Framework:
    """The framework of a configuration file: the named one, or the one recognised from the file's keys.

    Raises NEFTuneError if no framework fits or it is not installed.
    """
    try:
        framework = judgement.recognised(reading.read(file), _able(), name)
        _stop_if_missing(framework)
    except reading.CannotReadError as error:
        raise NEFTuneError(f"{file}: {error}") from None
    return framework


def probe(name: str, *files: str) -> list[dict[str, Any]]:
    """Validate each file with the framework. Returns for each a dict with `models` or with `problem`."""
    framework = worker.imported(name)
    assert framework.check is not None
    answers: list[dict[str, Any]] = []
    for file in files:
        try:
            models = framework.check(Path(file))
            if any(resolve(model.keys) is not None for model in models):
                if not enabled():
                    raise NoiseNotAppliedError(
                        f"{VARIABLE}=0 turns this package off, so no noise would be added; unset {VARIABLE}"
                    )
                framework.adapter()
            answers.append({"models": [dataclasses.asdict(model) for model in models]})
        except (Exception, SystemExit) as error:
            answers.append({"problem": _message(error)})
    return answers


def _message(error: BaseException) -> str:
    """The message of our own error, even if the framework wrapped it; otherwise the framework's message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NEFTuneError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error).strip() or type(error).__name__


def described(model: Mapping[str, Any], marks: Mapping[Place, int], lengths: Sequence[int]) -> dict[str, Any]:
    """Return a checked model as a dict.

    place, model: as in `CheckedModel`.
    keys: each with `value` and `source`.
    alphas: at the first step, after each quarter of the run, and at its end.
    lengths: each with the norm of the `noise` on one token at the first step and of the `native` hook's, which is None
        if the native hook would not run.
    """
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
