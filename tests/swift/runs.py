"""Run the real ms-swift, offline and on the CPU, with a probe in it: in this process or by its command line.

config = base_config(model_dir, "dpo") | {"neftune_noise_alpha": 5}  # of tests.swift.configs
run = run_swift(config, tmp_path, "rlhf")
print(run.losses, [ratio(e, 5) for call in run.calls for e in per_example(call, pad_id=0)])
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.logs import LineHandler
from tests.support.process import like_new
from tests.support.recorder import RECORD_DIR, AtStepEnd, KeepingRecorder, Run, read_run
from tests.support.warm import Execute, Warm

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "recorder_plugin.py"

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Before `datasets` or `huggingface_hub` is imported, which read them once.
os.environ.update(ENVIRONMENT)

SCRIPTS = Path(sys.executable).parent
WARM = Warm("swift.pipelines", "swift.rlhf_trainers.grpo_trainer", environment=ENVIRONMENT)


def run_swift(
    config: dict[str, Any], workdir: Path, command: str = "sft", *, at_step_end: AtStepEnd | None = None
) -> Run:
    """Train in this process by ms-swift's Python face; `command` is that of `tests.swift.configs.command`.

    Whatever ms-swift raises comes out. A run does not depend on those before it: see `clean_process`.
    """
    recorder = KeepingRecorder(at_step_end=at_step_end)
    lines = LineHandler()
    config = _prepare(config, workdir)
    start = time.perf_counter()
    with recorded_by(recorder, lines):
        from swift import arguments, pipelines

        kind, main = {
            "sft": (arguments.SftArguments, pipelines.sft_main),
            "pt": (arguments.PretrainArguments, pipelines.pretrain_main),
            "rlhf": (arguments.RLHFArguments, pipelines.rlhf_main),
        }[command]
        main(kind(**{"callbacks": ["recorder"], **config}))
    recorder.finish()
    return Run(
        calls=recorder.probe.calls,
        **recorder.record,
        output="\n".join(lines.lines),
        seconds=time.perf_counter() - start,
        saved=workdir / "out",
    )


@contextmanager
def recorded_by(recorder: KeepingRecorder, lines: LineHandler) -> Iterator[None]:
    """The callback `recorder` of ms-swift's runs is this one."""
    with clean_process(lines):
        from swift.callbacks import callbacks_map

        callbacks_map["recorder"] = lambda args, trainer: recorder
        try:
            yield
        finally:
            del callbacks_map["recorder"]


def swift_cli(
    config: dict[str, Any],
    workdir: Path,
    command: str = "sft",
    *,
    env: dict[str, str] | None = None,
    execute: Execute | None = None,
) -> Run:
    """Train by the command line, `swift sft cfg.yaml`, in a process of its own.

    execute: runs the true command line, which takes the time of two starts. Left out, the script that it starts runs in
    a warm process. Does not raise when it fails: look at `returncode` and `output`. Records up to the failure are in
    the run.
    """
    return _execute(config, workdir, command, env or {}, [workdir], execute)[0]


def swift_torchrun(config: dict[str, Any], workdir: Path, execute: Execute, *, processes: int = 2) -> list[Run]:
    """As `swift_cli`, in several processes; one run for each rank, all with the same output."""
    folders = [workdir / f"rank{rank}" for rank in range(processes)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # other tests may train in several processes at the same time
    env = {"NPROC_PER_NODE": str(processes), "MASTER_PORT": str(port)}
    return _execute(config, workdir, "sft", env, folders, execute)


def _execute(
    config: dict[str, Any],
    workdir: Path,
    command: str,
    env: dict[str, str],
    folders: list[Path],
    execute: Execute | None,
) -> list[Run]:
    config = {"external_plugins": [str(PLUGIN)], "callbacks": ["recorder"], **_prepare(config, workdir)}
    path = workdir / "cfg.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    for folder in folders:  # records of an earlier run in the same folder
        for name in ("record.json", "probe.pt"):
            (folder / name).unlink(missing_ok=True)
    environment = {**os.environ, **ENVIRONMENT, RECORD_DIR: str(workdir), **env}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    arguments: list[str | Path] = [SCRIPTS / "swift", command, path]
    if execute is None:
        from swift.cli.main import ROUTE_MAPPING

        spec = importlib.util.find_spec(ROUTE_MAPPING[command])
        assert spec is not None and spec.origin is not None
        arguments = [spec.origin, *words_of(config)]
    start = time.perf_counter()
    process = (execute or WARM.run)(arguments, cwd=workdir, env=environment)
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        run.output, run.returncode, run.seconds = process.stdout, process.returncode, time.perf_counter() - start
        run.saved = workdir / "out"
    return runs


def words_of(config: dict[str, Any]) -> list[str]:
    """What `swift sft cfg.yaml` gives to the program that it starts."""
    from swift.cli.main import parse_yaml_args

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, pytest.MonkeyPatch.context() as patch:
        yaml.safe_dump(config, file)
        file.flush()
        patch.setenv("SWIFT_CONFIG_FILE", "")  # it sets it
        words = [file.name]
        parse_yaml_args(words)
    return words


def _prepare(config: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """The configuration with its output folder, which is emptied."""
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(workdir / "out", ignore_errors=True)
    return {"output_dir": str(workdir / "out"), **config}


@contextmanager
def clean_process(handler: logging.Handler) -> Iterator[None]:
    """Give a run a process as new, and undo what it leaves."""
    from swift.utils import get_logger

    with like_new(handler, (None, get_logger().name, "transformers"), ENVIRONMENT):
        yield
