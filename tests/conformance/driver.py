"""What the conformance suite needs of a framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.conformance.golden import Golden
from tests.support.recorder import AtStepEnd, Run


class Driver(Protocol):
    """Trains a tiny model with a framework's own entry function.

    name: of the framework.
    modes: names of the batch layouts and training methods that it has; every one is put through the suite.
    sft_modes: those of `modes` that train on the same examples.
    native_modes: those of `modes` in which the framework's own hook is on.
    native_hook: name of that hook's function.
    reference_modes: those of `modes` in which the trained model also makes forwards that are not trained on:
        reference, KL, generation.
    rollout_modes: those of `modes` that train on what the model generates, with the number of forwards of a step that
        are trained on.
    golden_modes: names of the ways in which it trains on given examples.
    resumed_modes: those of `modes` that are put through SIGKILL.
    resumes_dropout: whether the framework's checkpoints hold the random state.
    seed: of the runs.
    pad_id: of the tokenizer.
    model: folder of the model.
    weight: (V, D) its input embedding before training.
    """

    name: str
    modes: tuple[str, ...]
    sft_modes: tuple[str, ...]
    native_modes: tuple[str, ...]
    native_hook: str
    reference_modes: tuple[str, ...]
    rollout_modes: Mapping[str, int]
    golden_modes: tuple[str, ...]
    resumed_modes: tuple[str, ...]
    resumes_dropout: bool
    seed: int
    pad_id: int
    model: Path
    weight: Any

    def train(
        self,
        mode: str,
        keys: Mapping[str, Any],
        *,
        folder: Path,
        stock: bool = False,
        evaluate: bool = False,
        at_step_end: AtStepEnd | None = None,
        save: bool = False,
    ) -> Run:
        """A run of a few steps.

        keys: `neftune_*` keys. stock: as if this package were not installed. evaluate: at every step. save: the
        trained model into `run.saved`, and checkpoints after steps 3 and 5. Raises what the framework raises.
        """
        ...

    def launch(
        self,
        mode: str,
        keys: Mapping[str, Any],
        *,
        folder: Path,
        kill_after: int | None = None,
        resume: Path | None = None,
    ) -> Run:
        """The run of `train` with `save` in a process of its own, by the framework's command line where it has one.

        kill_after: the step at whose end it gets SIGKILL. resume: `saved` of such a run, whose checkpoint it goes on
        from. Does not raise when it fails: look at `returncode` and `output`.
        """
        ...

    def train_golden(self, mode: str, examples: Sequence[Golden], model: Path, folder: Path) -> Run:
        """A run of one step whose batch are the `examples`, on that model, with `golden.ALPHA` and `golden.SEED`."""
        ...

    def loads_model(self) -> Any:
        """A context manager that gives a list; a name is added to it whenever the framework loads a model, or, where
        that is the caller's affair, begins to train."""
        ...
