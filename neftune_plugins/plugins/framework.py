"""What the `neftune` command knows of a training framework."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DemoOptions:
    """What `neftune demo` was asked for.

    folder: to work in.
    model: folder of a model to train, or None for SmolLM2-135M-Instruct.
    tiny: train a model made on the spot instead.
    alpha: of the noise.
    steps: of training; None for one pass over the data.
    """

    folder: Path
    model: Path | None = None
    tiny: bool = False
    alpha: float = 5.0
    steps: int | None = None


@dataclass(frozen=True)
class CheckedModel:
    """A language model that a configuration trains, after the framework's own validation.

    place: where its keys stand in the file, such as `("model_parameters",)`; empty is the top level.
    keys: our keys as the framework resolved them, for `NoiseConfig.from_keys`.
    model: what it starts from: a name or a folder.
    native: whether the framework's own hook would have noised it.
    seed: of the run, which is the noise's where it has none.
    seed_place: where that may stand in the file.
    """

    place: tuple[str | int, ...]
    keys: Mapping[str, Any]
    model: str
    native: bool
    seed: int | None = None
    seed_place: tuple[str | int, ...] = ("seed",)


@dataclass(frozen=True)
class TrainingCommand:
    """How a framework trains what a configuration file says, for `neftune sweep`.

    arguments: (file, seed, output folder) -> the framework's own command line.
    model: (output folder) -> where the trained model is afterwards.
    owners: (configuration) -> the places in it where our keys belong.
    settings: (seed, output folder) -> the top-level keys that say these in the file.
    """

    arguments: Callable[[Path, int, Path], list[str]]
    model: Callable[[Path], Path]
    owners: Callable[[Mapping[str, Any]], Sequence[tuple[str | int, ...]]] = lambda config: [()]
    settings: Callable[[int, Path], Mapping[str, Any]] = lambda seed, folder: {}


@dataclass(frozen=True)
class Framework:
    """A training framework. The releases that it is tested with are those of the extra with its name, of the
    distribution whose entry point tells of it.

    name: as in `--framework NAME` and in the extra `neftune-plugins[NAME]`.
    distribution: the Python distribution that provides it.
    demo: trains a model with one key and reports what the noise did; imports the framework when called.
    modules: what a training run imports, the adapter's own included.
    native: the framework's own hook as `module:attribute`, in one of these places depending on the release.
    adapter: how the adapter gets into a run. Raises NEFTuneError, with the remedy, where it does not. Called when
        `modules` have been imported.
    signs: sets of top-level keys; a configuration file that has all of one of them is the framework's.
    check: passes a configuration file through the framework's own validation, without model and network. Raises
        whatever that raises. Called when `modules` have been imported.
    training: None where `neftune sweep` cannot run it.
    """

    name: str
    distribution: str
    demo: Callable[[DemoOptions], None] | None = None
    modules: tuple[str, ...] = ()
    native: tuple[str, ...] = ()
    adapter: Callable[[], str] = lambda: "by its plugin"
    signs: tuple[frozenset[str], ...] = ()
    check: Callable[[Path], Sequence[CheckedModel]] | None = None
    training: TrainingCommand | None = None
