"""Run the real Ludwig, offline and on the CPU, with a probe in it: in this process (fast) or by its command line.

dataset = write_dataset(tmp_path)  # of tests.ludwig.configs
config = with_keys(base_config(model_dir, "full"), {"neftune_noise_alpha": 5})
run = run_ludwig(config, tmp_path / "run", dataset)
print(run.losses, [ratio(e, 5) for call in run.calls for e in per_example(call, pad_id=0)])
"""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.events import LOSSES, METRICS, event_files, scalars
from tests.support.logs import LineHandler
from tests.support.recorder import AtStepEnd, Run, read_run
from tests.support.warm import Execute, Warm

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Before `huggingface_hub` is imported, which reads it once.
os.environ.update(ENVIRONMENT)

SCRIPTS = Path(sys.executable).parent
SITE = Path(__file__).parent / "site"
RECORD_DIR = "NEFTUNE_TEST_RECORD_DIR"  # environment variable: where the command line's recorder writes
WARM = Warm("ludwig.cli", "ludwig.train", environment=ENVIRONMENT, paths=[SITE])


def run_ludwig(
    config: dict[str, Any],
    workdir: Path,
    dataset: Path,
    *,
    at_step_end: AtStepEnd | None = None,
    evaluate: bool = False,
    save: bool = False,
    **options: Any,
) -> Run:
    """Train in this process as the command line does, `ludwig.train.train_cli`; `options` are its arguments.

    evaluate: after each step, on the dataset's own examples for it. save: the model, into `run.saved`, and the
    checkpoint for `model_resume_path`. Whatever Ludwig raises comes out. A run does not depend on those before it: see
    `clean_process`.
    """
    config_path = _prepare(config, workdir, evaluate)
    results = Path(options.get("model_resume_path") or workdir)  # of a resumed run those of the run before are there
    before = event_files(results)
    lines = LineHandler()
    start = time.perf_counter()
    with clean_process(lines):
        from ludwig.backend import initialize_backend
        from ludwig.train import train_cli
        from ludwig.utils.data_utils import load_yaml

        from tests.ludwig.recorder import Recorder

        config = load_yaml(str(config_path))
        arguments = {
            "config": config,
            "dataset": str(dataset),
            "output_directory": str(workdir / "out"),
            "experiment_name": "experiment",
            "backend": initialize_backend(config["backend"]),
            "callbacks": [Recorder(workdir, at_step_end)],
            "skip_save_log": False,
            "skip_save_model": not save,
            "skip_save_processed_input": True,  # its cache beside the dataset does not notice another tokenizer
            "skip_save_progress": not save,
        }
        train_cli(**(arguments | options))
    run = read_run(workdir)
    _add_metrics(run, scalars(results, but=before))
    run.output, run.seconds = "\n".join(lines.lines), time.perf_counter() - start
    run.saved = _saved(options.get("model_resume_path") or workdir / "out" / "experiment_run")
    return run


def ludwig_cli(
    config: dict[str, Any],
    workdir: Path,
    dataset: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    execute: Execute = WARM.run,
) -> Run:
    """Train by the true command line, `ludwig train --config cfg.yaml --dataset data.csv`, in a process of its own.

    Does not raise when it fails: look at `returncode` and `output`. Records up to the failure are in the run.
    """
    config_path = _prepare(config, workdir, False)
    environment = {**os.environ, **ENVIRONMENT, RECORD_DIR: str(workdir), **(env or {})}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SITE), str(ROOT), environment.get("PYTHONPATH")]))
    command = [SCRIPTS / "ludwig", "train", "--config", config_path, "--recorder", "--dataset", dataset]
    command += ["--output_directory", workdir / "out", "--skip_save_processed_input", *arguments]
    start = time.perf_counter()
    process = execute(command, cwd=workdir, env=environment)
    run = read_run(workdir)
    run.output, run.returncode, run.seconds = process.stdout, process.returncode, time.perf_counter() - start
    run.saved = _saved(workdir / "out" / "experiment_run")
    return run


def _prepare(config: dict[str, Any], workdir: Path, evaluate: bool) -> Path:
    """Write cfg.yaml; remove what an earlier run left in the same folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in ("record.json", "probe.pt"):
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / "out", ignore_errors=True)
    if evaluate:
        trainer = config["trainer"] | {"skip_all_evaluation": False, "steps_per_checkpoint": 1}
        config = config | {"trainer": trainer}
    config_path = workdir / "cfg.yaml"
    config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return config_path


def _add_metrics(run: Run, found: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """To the logs of the steps, what is in TensorBoard's. There a step is a batch; of ours one is written an update."""
    batches = {batch: number for number, (batch, _) in enumerate(found.get("neftune/alpha", ()))}
    for name in METRICS | LOSSES:
        for batch, value in found.get(name, ()):
            run.logs[batches[batch]][name] = value


def _saved(results: Path | str) -> Path:
    return Path(results) / "model" / "model_weights"


# --- One process, many runs ------------------------------------------------------------------------------------------


@contextmanager
def clean_process(handler: logging.Handler) -> Iterator[None]:
    """Give a run a process as new, and undo what it leaves: everything global that was found to leak is listed here."""
    import ludwig.distributed
    import ludwig.globals
    import ludwig.train  # prints what is logged on the root logger, from here on, unless pytest was first
    import numpy
    import torch
    from ludwig.utils import logging_utils

    signals = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    saved_signals = {number: signal.getsignal(number) for number in signals}  # not restored where training raises
    saved_environment = dict(os.environ)  # PYTHONHASHSEED
    saved_progressbar = ludwig.globals.DISABLE_PROGRESSBAR
    root, logger = logging.getLogger(), logging.getLogger("ludwig")
    saved_levels = root.level, logger.level

    def reset() -> None:
        logging_utils._logged.clear()  # what has been said once
        ludwig.distributed._current_strategy = None
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        gc.collect()

    reset()
    os.environ.update(ENVIRONMENT)
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    printing = [other for other in root.handlers if type(other) is logging.StreamHandler]
    for other in printing:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for other in printing:
            root.addHandler(other)
        root.setLevel(saved_levels[0])
        logger.setLevel(saved_levels[1])
        ludwig.globals.DISABLE_PROGRESSBAR = saved_progressbar
        for number, action in saved_signals.items():
            signal.signal(number, action)
        os.environ.clear()
        os.environ.update(saved_environment)
        reset()
