"""What a training run leaves behind, written down by a Trainer callback that shares no code with the project."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from tests.support.probe import Call, Probe, find_causal_model

if TYPE_CHECKING:
    import pytest

AtStepEnd = Callable[[nn.Module, int], None]
KILL_AFTER = "NEFTUNE_TEST_KILL_AFTER"  # environment variable: the step after which a recorder kills its process
RECORD_DIR = "NEFTUNE_TEST_RECORD_DIR"  # environment variable: where the recorder of a command line writes


@dataclass
class Run:
    """What a run left behind.

    calls: every forward of the trained model, see `tests.support.probe.Call`; not those of a separate reference model.
    steps: for each step its number, `rng` (hash of the global torch RNG state after it) and `hooks` (names of the
        forward hooks on the input embedding).
    logs: what the trainer logged. weights: hash of all weights after training; None if training did not end.
    hooks_after: names of the hooks on the embedding when `trainer.train()` had returned; None if it did not.
    output: log records ("LEVEL logger: message" lines) of a run in this process; stdout and stderr of a command line.
    saved: the folder that the run saved in.
    """

    calls: list[Call] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    weights: str | None = None
    hooks_after: list[str] | None = None
    output: str = ""
    returncode: int = 0
    seconds: float = 0.0
    saved: Path = Path()

    @property
    def losses(self) -> list[float]:
        """The logged training loss of each step, unrounded where the framework does not round."""
        return [float(entry["loss"]) for entry in self.logs if "loss" in entry]


class StepRecord:
    """What is written down of a run, with `folder` into record.json and probe.pt in it after each step.
    `at_step_end(model, step)` is called where given."""

    def __init__(self, folder: Path | None = None, at_step_end: AtStepEnd | None = None) -> None:
        self.folder = folder
        self.at_step_end = at_step_end
        self.probe = Probe()
        self.record: dict[str, Any] = {"steps": [], "logs": [], "weights": None, "hooks_after": None}

    def end_step(self, model: nn.Module, step: int) -> None:
        """To be called when `step` steps of the optimiser are done."""
        rng = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
        self.record["steps"].append({"step": step, "rng": rng, "hooks": embedding_hooks(model)})
        if self.at_step_end is not None:
            self.at_step_end(model, step)
        self.write()
        if os.environ.get(KILL_AFTER) == str(step):
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self) -> None:
        if self.folder is not None:
            self.probe.save(self.folder / "probe.pt")
            (self.folder / "record.json").write_text(json.dumps(self.record, default=str))


class Recorder(StepRecord, TrainerCallback):
    """Attaches the probe at the first step, so behind every hook that was there before."""

    attached = False

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        if not self.attached:
            self.probe.attach(model)
            self.attached = True
        self.probe.global_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        self.end_step(model, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.record["logs"].append({"step": state.global_step, **(logs or {})})

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        self.record["weights"] = weights_hash(model)
        self.probe.detach()
        self.write()


class KeepingRecorder(Recorder):
    """Keeps the model, to look at it once more when the trainer is done with it."""

    model: nn.Module | None = None

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        super().on_train_end(args, state, control, model=model)
        self.model = model

    def finish(self) -> None:
        """To be called after the run."""
        if self.model is not None:
            self.record["hooks_after"] = embedding_hooks(self.model)
            self.write()


class RankRecorder(KeepingRecorder):
    """Writes into the folder of this rank, under the one that the environment names, until the process ends."""

    def __init__(self) -> None:
        folder = Path(os.environ[RECORD_DIR])
        if "RANK" in os.environ:
            folder /= f"rank{os.environ['RANK']}"
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        atexit.register(self.finish)


def read_run(folder: Path) -> Run:
    """The run that a Recorder wrote into `folder`; an empty one if it wrote nothing."""
    if not (folder / "record.json").exists():
        return Run()
    record = json.loads((folder / "record.json").read_text())
    return Run(calls=Probe.load(folder / "probe.pt").calls, **record)


def remembered(train: Callable[..., Run], folders: pytest.TempPathFactory) -> Callable[..., Run]:
    """`run(mode, neftune_noise_alpha=5, stock=False)`: trains, or gives what the same call gave before.

    train: of a `tests.conformance.driver.Driver`.
    """
    runs: dict[object, Run] = {}

    def run(mode: str, *, stock: bool = False, **keys: object) -> Run:
        case = (mode, stock, tuple(sorted(keys.items())))
        if case not in runs:
            runs[case] = train(mode, keys, folder=folders.mktemp(mode), stock=stock)
        return runs[case]

    return run


def trained(run: Run) -> list[Call]:
    """The forwards that are to be noised."""
    return [call for call in run.calls if call.training and call.grad_enabled]


def generated(run: Run) -> list[Call]:
    """The forwards by which the model generates what it is trained on. They never see the last token, so they are
    narrower than the forwards of their step that score the whole."""
    width = {call.global_step: call.input_ids.shape[1] for call in trained(run) if call.input_ids is not None}
    return [
        call
        for call in run.calls
        if call.input_ids is not None and call.input_ids.shape[1] < width.get(call.global_step, 0)
    ]


def neftune_hooks(names: list[str]) -> list[str]:
    """Those of NEFTune, native or ours, among the names of hooks."""
    return [name for name in names if "neftune" in name.lower()]


def embedding_hooks(model: nn.Module) -> list[str]:
    """Names of the forward hooks on the input embedding and on the modules in it (PEFT wraps it), in calling order."""
    embedding = find_causal_model(model).get_input_embeddings()
    return [_name(hook) for module in embedding.modules() for hook in module._forward_hooks.values()]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all parameters, to tell two trained models apart."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name(hook: Any) -> str:
    if isinstance(hook, functools.partial):
        hook = hook.func
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__module__}.{named.__qualname__}"
