"""Prepares the training of a trial: a framework's own command with a configuration file, or a Python file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import yaml

from neftune_plugins.commands import files
from neftune_plugins.commands.check import framework_of
from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.plugins.framework import Framework
from neftune_plugins.sweep import configs
from neftune_plugins.sweep.study import AXES

PYTHON = "python"
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(NoiseConfig) if field.name in AXES}


@dataclass(frozen=True)
class Run:
    """A command, and the folder in which it saves the trained model or checkpoints of it."""

    command: Sequence[str]
    folder: Path

    @property
    def model(self) -> Path:
        """The folder of the trained model, when the command has ended: the last checkpoint if there are only
        checkpoints, as ms-swift saves them."""
        if any((self.folder / name).exists() for name in ("config.json", "adapter_config.json")):
            return self.folder
        steps = {path: path.name.removeprefix("checkpoint-") for path in self.folder.glob("checkpoint-*")}
        saved = [path for path, step in steps.items() if step.isdecimal()]
        return max(saved, key=lambda path: int(steps[path]), default=self.folder)


class Source(Protocol):
    """The source of the trials.

    framework: its name.
    noise: values on the `AXES` that the sweep does not vary.
    """

    framework: str
    noise: dict[str, Any]

    def run(self, keys: dict[str, Any], seed: int, folder: Path) -> Run:
        """Prepare a run with these of our keys in a trial's folder; alpha None is a run without noise."""


class ConfigFile:
    """A configuration file of a framework. Its training command gets `more` arguments.

    Raises NEFTuneError if the framework is unknown or not installed.
    """

    def __init__(self, file: Path, framework: str | None, more: Sequence[str]) -> None:
        found: Framework = framework_of(file, framework)
        if found.training is None:
            raise NEFTuneError(f"{file}: neftune sweep does not know how {found.name} trains")
        self.framework, self._training, self._more = found.name, found.training, more
        self._file, self._text = file, files.text(file)
        config = _parsed(file, self._text)
        try:
            self._owners = found.training.owners(config)
        except Exception as error:
            raise NEFTuneError(
                f"{file}: {found.name} cannot read this configuration ({type(error).__name__}: {error}); "
                f"run neftune check {file} for details"
            ) from None
        if not self._owners:
            raise NEFTuneError(f"{file}: there is no language model in it whose embeddings could be noised")
        self.noise = DEFAULTS | {
            axis: value
            for axis in AXES
            for owner in reversed(self._owners)  # the first one has the values
            if (value := _at(config, (*owner, f"neftune_noise_{axis}")))
        }
        self._can_be_changed()

    def run(self, keys: dict[str, Any], seed: int, folder: Path) -> Run:
        config, output = folder / f"config{self._file.suffix}", folder / "output"
        settings = {(name,): value for name, value in self._training.settings(seed, output).items()}
        config.write_text(configs.changed(self._text, configs.noise(keys, self._owners) | settings), encoding="utf-8")
        return Run([*self._training.arguments(config, seed, output), *self._more], self._training.model(output))

    def _can_be_changed(self) -> None:
        """Raise NEFTuneError if our keys cannot be written into the file or removed, such as keys of a merge key."""
        try:
            configs.changed(self._text, configs.noise({"neftune_noise_alpha": 5.0}, self._owners))
            text = configs.changed(self._text, configs.noise({"neftune_noise_alpha": None}, self._owners))
        except NEFTuneError as error:
            raise NEFTuneError(f"{self._file}, {error}") from None
        bare = yaml.safe_load(text)
        for place in ((*owner, name) for owner in self._owners for name in configs.OURS):
            if _at(bare, place) is not None:
                raise NEFTuneError(
                    f"{self._file}: {place[-1]} comes through YAML's merge key <<, so that a sweep cannot take it out; "
                    "write it where it belongs"
                )


class PythonFile:
    """A Python file that takes the options that HfArgumentParser makes of TrainingArguments."""

    framework = PYTHON
    noise = DEFAULTS

    def __init__(self, file: Path, more: Sequence[str]) -> None:
        self._file, self._more = file, more

    def run(self, keys: dict[str, Any], seed: int, folder: Path) -> Run:
        output = folder / "output"
        given = keys | {"seed": seed, "output_dir": output}
        if keys["neftune_noise_alpha"] is None:
            given = {name: value for name, value in given.items() if name not in configs.OURS}
        arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        return Run([sys.executable, str(self._file), *arguments, *self._more], output)


def source(file: Path, framework: str | None, more: Sequence[str]) -> Source:
    """Return the source for a file. Raises NEFTuneError if it does not exist or belongs to no framework."""
    files.text(file)
    return PythonFile(file, more) if file.suffix == ".py" else ConfigFile(file, framework, more)


def _at(config: Any, place: configs.Place) -> Any:
    for name in place:
        try:
            config = config[name]
        except (KeyError, IndexError, TypeError):
            return None
    return config


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise NEFTuneError(f"{file}: this is not YAML: {problem}") from None
    if not isinstance(config, dict):
        raise NEFTuneError(f"{file}: this is not a configuration, because it has no keys at its top level")
    return config
