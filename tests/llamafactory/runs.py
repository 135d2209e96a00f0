"""Run the real LLaMA-Factory, offline and on the CPU, with a probe in it: in this process or by its command line.

    config = base_config(model_dir, "packing") | {"neftune_noise_alpha": 5}  # of tests.llamafactory.configs
    run = run_llamafactory(config, tmp_path)
    print(run.losses, [ratio(e, 5) for call in run.calls for e in per_example(call, pad_id=0)])

Model, datasets and their tokenized form lie beside each other (`model_dir.parent`), shared by all runs on that model.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from tests.support.logs import LineHandler
from tests.support.process import like_new
from tests.support.recorder import RECORD_DIR, AtStepEnd, KeepingRecorder, Run, read_run
from tests.support.warm import Execute, Warm

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"
# Before 0.9.5, V1 is a skeleton, and neat_packing refuses every transformers that this package supports.
HAS_V1 = Version(version("llamafactory")) >= Version("0.9.5")

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Before `datasets` or `huggingface_hub` is imported, which read them once.
os.environ.update(ENVIRONMENT)

SCRIPTS = Path(sys.executable).parent
MODULES = ("llamafactory.train.tuner", *(["llamafactory.v1.trainers.sft_trainer"] if HAS_V1 else []))
WARM = Warm(*MODULES, environment=ENVIRONMENT, paths=[SITE])


def run_llamafactory(
    config: dict[str, Any], workdir: Path, command: str = "train", *, at_step_end: AtStepEnd | None = None
) -> Run:
    """Train in this process as `llamafactory-cli` does; `command` is that of `tests.llamafactory.configs.command`.

    Whatever LLaMA-Factory raises comes out. A run does not depend on those before it: see `clean_process`.
    """
    from tests.llamafactory.recorders import record_v1

    config = _prepare(config, workdir)
    recorder = KeepingRecorder(at_step_end=at_step_end)
    lines = LineHandler()
    start = time.perf_counter()
    with clean_process(lines), ExitStack() as stack:
        if command == "train":
            from llamafactory.train.tuner import run_exp

            run_exp(config, callbacks=[recorder])
        else:
            from llamafactory.v1.core.base_trainer import BaseTrainer

            stack.callback(record_v1(BaseTrainer, lambda: recorder))
            trainer = importlib.import_module(f"llamafactory.v1.trainers.{command}_trainer")
            getattr(trainer, f"run_{command}")(config)
    recorder.finish()
    return Run(
        calls=recorder.probe.calls,
        **recorder.record,
        output="\n".join(lines.lines),
        seconds=time.perf_counter() - start,
        saved=workdir / "out",
    )


def llamafactory_cli(
    config: dict[str, Any],
    workdir: Path,
    command: str = "train",
    *,
    env: dict[str, str] | None = None,
    execute: Execute = WARM.run,
) -> Run:
    """Train by the true command line, `llamafactory-cli train cfg.yaml`, in a process of its own.

    Does not raise when it fails: look at `returncode` and `output`. Records up to the failure are in the run.
    """
    return _execute(config, workdir, command, env or {}, [workdir], execute)[0]


def llamafactory_torchrun(config: dict[str, Any], workdir: Path, *, processes: int = 2) -> list[Run]:
    """As `llamafactory_cli`, with FORCE_TORCHRUN=1, which starts new processes; one run for each rank, all with the
    same output."""
    env = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(processes)}
    folders = [workdir / f"rank{rank}" for rank in range(processes)]
    return _execute(config, workdir, "train", env, folders, WARM.run)


def _execute(
    config: dict[str, Any], workdir: Path, command: str, env: dict[str, str], folders: list[Path], execute: Execute
) -> list[Run]:
    config_path = workdir / "cfg.yaml"
    config = _prepare(config, workdir)
    config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    for folder in folders:  # records of an earlier run in the same folder
        for name in ("record.json", "probe.pt"):
            (folder / name).unlink(missing_ok=True)
    environment = {**os.environ, **ENVIRONMENT, RECORD_DIR: str(workdir), **env}
    if command != "train":
        environment["USE_V1"] = "1"
    environment["PATH"] = f"{SCRIPTS}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SITE), str(ROOT), os.environ.get("PYTHONPATH")]))
    start = time.perf_counter()
    process = execute([SCRIPTS / "llamafactory-cli", command, config_path], cwd=workdir, env=environment)
    seconds = time.perf_counter() - start
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        run.output, run.returncode, run.seconds = process.stdout, process.returncode, seconds
        run.saved = workdir / "out"
    return runs


def _prepare(config: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """The configuration with its output folder, which is emptied."""
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(workdir / "out", ignore_errors=True)
    return {"output_dir": str(workdir / "out"), **config}


# --- One process, many runs ------------------------------------------------------------------------------------------


@contextmanager
def clean_process(handler: logging.Handler) -> Iterator[None]:
    """Give a run a process as new, and undo what it leaves: everything global that was found to leak is listed here
    and in `like_new`."""
    import datasets.arrow_writer

    def reset() -> None:
        v1 = sys.modules.get("llamafactory.v1.accelerator.interface")
        if v1 is not None:
            v1.DistributedInterface._instance = None

    typed_sequence = datasets.arrow_writer.OptimizedTypedSequence
    saved_constructor = typed_sequence.__init__  # neat_packing puts in another, for masks of 32 bits
    loggers = (None, "llamafactory", "llamafactory.v1", "transformers")
    reset()
    try:
        with like_new(handler, loggers, ENVIRONMENT):
            yield
    finally:
        typed_sequence.__init__ = saved_constructor
        reset()
