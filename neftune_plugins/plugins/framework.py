"""Describes a training framework to the `neftune` command."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neftune_plugins.config import Place
from neftune_plugins.plugins.places import KeyPlace


@dataclass(frozen=True)
class DemoOptions:
    """The options of `neftune demo`.

    folder: output folder.
    model: folder of the model to train, or None for SmolLM2-135M-Instruct.
    tiny: train a tiny random model instead.
    alpha: strength of the noise.
    steps: number of training steps, or None for one pass over the data.
    """

    folder: Path
    model: Path | None = None
    tiny: bool = False
    alpha: float = 5.0
    steps: int | None = None


@dataclass(frozen=True)
class CheckedModel:
    """A language model that a configuration file trains, after the framework has validated the file.

    place: path of the keys in the file, such as `("model_parameters",)`; empty for the top level.
    keys: our keys as the framework resolved them, for `NoiseConfig.from_keys`.
    model: name or folder of the base model.
    native: whether the framework's own hook would noise this model.
    seed: seed of the run, which is also the default seed of the noise.
    seed_place: path of the seed in the file.
    """

    place: Place
    keys: Mapping[str, Any]
    model: str
    native: bool
    seed: int | None = None
    seed_place: Place = ("seed",)


@dataclass(frozen=True)
class TrainingCommand:
    """How `neftune sweep` runs a framework on a configuration file.

    arguments: (file, seed, output folder) -> the framework's own command line.
    model: (output folder) -> the folder of the trained model.
    owners: (configuration) -> the paths in it where our keys belong.
    settings: (seed, output folder) -> the top-level keys that set these two in the file.
    """

    arguments: Callable[[Path, int, Path], list[str]]
    model: Callable[[Path], Path]
    owners: Callable[[Mapping[str, Any]], Sequence[Place]] = lambda config: [()]
    settings: Callable[[int, Path], Mapping[str, Any]] = lambda seed, folder: {}


@dataclass(frozen=True)
class Framework:
    """A training framework. Its supported versions are those of the extra with its name, in the distribution that
    provides this object.

    name: as in `--framework NAME` and in the extra `neftune-plugins[NAME]`.
    distribution: the Python distribution of the framework.
    demo: trains a model with one key and reports the noise; imports the framework when called.
    modules: the modules that a training run imports, including those of the adapter.
    native: possible places of the framework's own hook, as `module:attribute`; the place depends on the version.
    adapter: returns how the adapter becomes active in a run, or raises NEFTuneError with the remedy if it does not.
        Called after `modules` were imported.
    signs: sets of top-level keys; a configuration file that contains all keys of one set belongs to the framework.
    check: has the framework validate a configuration file, without a model and without network, and returns the models
        that it trains. Raises any error of the validation. Called after `modules` were imported.
    training: how to train with it, or None if `neftune sweep` does not support it.
    places: where our keys belong in its configuration files.
    older_names: top-level keys that the framework itself reads as one of our keys, name -> our key.
    searched: top-level keys that describe a search over configurations; our names may appear anywhere in them.
    no_training: (configuration) -> why a run with it trains nothing, and the remedy; empty if it trains.
    exponents: whether its YAML reader takes 1e5 for a number, as YAML 1.2 does; YAML 1.1 requires 1.0e+5.
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
    places: tuple[KeyPlace, ...] = (KeyPlace(),)
    older_names: Mapping[str, str] = field(default_factory=dict)
    searched: frozenset[str] = frozenset()
    no_training: Callable[[Mapping[str, Any]], str] = lambda config: ""
    exponents: bool = False

    def places_in(self, config: Mapping[str, Any]) -> list[Place]:
        """Return the paths in a configuration where our keys belong. The mapping at a path may be missing."""
        return [place for known in self.places for place in known.found(config)]
