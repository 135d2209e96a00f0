"""Run the real Axolotl, offline and on the CPU, with a probe in it: in this process (fast) or by its command line.

    config = base_config(model_dir, "packed") | {"neftune_noise_alpha": 5}  # of tests.axolotl.configs
    run = run_axolotl(config, tmp_path)
    print(run.losses, [ratio(e, 5) for call in run.calls for e in per_example(call, pad_id=0)])

Model, datasets and their tokenized form lie beside each other (`model_dir.parent`), shared by all runs on that model.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.logs import LineHandler
from tests.support.recorder import Run, read_run
from tests.support.warm import Warm

ROOT = Path(__file__).parents[2]
PROBE_PLUGIN = "tests.axolotl.probe_plugin.ProbePlugin"
RECORD_DIR = "NEFTUNE_TEST_RECORD_DIR"  # environment variable: where the probe plugin writes

ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Before `datasets` or `huggingface_hub` is imported, which read them once.
os.environ.update(ENVIRONMENT)

SCRIPTS = Path(sys.executable).parent
WARM = Warm("axolotl.cli.main", "axolotl.cli.train", "tests.axolotl.probe_plugin", environment=ENVIRONMENT)


def run_axolotl(config: dict[str, Any], workdir: Path) -> Run:
    """Train in this process as the launcher does, `axolotl.cli.train.do_cli(config=...)`.

    Whatever Axolotl raises comes out. A run does not depend on those before it: see `clean_process`.
    """
    config_path = _prepare(config, workdir)
    lines = LineHandler()
    start = time.perf_counter()
    # With the tee on stdout, closing the log a second time waits for its own lock (axolotl/utils/tee.py).
    with clean_process({**ENVIRONMENT, "AXOLOTL_TEE_STDOUT": "0", RECORD_DIR: str(workdir)}, lines):
        from axolotl.cli.train import do_cli

        do_cli(config=str(config_path))
    run = read_run(workdir)
    run.output, run.seconds = "\n".join(lines.lines), time.perf_counter() - start
    return run


def axolotl_cli(config: dict[str, Any], workdir: Path, *arguments: str, env: dict[str, str] | None = None) -> Run:
    """Train by the true command line, `axolotl train cfg.yml --launcher python`, in a process of its own.

    It is a warm one, see `tests.support.warm`. Does not raise when it fails: look at `returncode` and `output`. Records
    up to the failure are in the run.
    """
    arguments = ("--launcher", "python", *arguments)
    return _execute(config, workdir, arguments, env or {}, [workdir])[0]


def axolotl_torchrun(config: dict[str, Any], workdir: Path, *, processes: int = 2) -> list[Run]:
    """As `axolotl_cli`, with `--launcher torchrun`, whose processes are new; one run for each rank, all with the same
    output."""
    arguments = ("--launcher", "torchrun", "--", "--standalone", f"--nproc-per-node={processes}")
    folders = [workdir / f"rank{rank}" for rank in range(processes)]
    env = {"ACCELERATE_USE_CPU": "true"}  # else accelerate takes each process for the only one
    return _execute(config, workdir, arguments, env, folders)


def _execute(
    config: dict[str, Any],
    workdir: Path,
    arguments: tuple[str, ...],
    env: dict[str, str],
    folders: list[Path],
) -> list[Run]:
    config_path = _prepare(config, workdir)
    environment = {**os.environ, **ENVIRONMENT, RECORD_DIR: str(workdir), **env}
    environment["PATH"] = f"{SCRIPTS}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [SCRIPTS / "axolotl", "train", config_path, *arguments]
    start = time.perf_counter()
    process = WARM.run(command, cwd=workdir, env=environment)
    seconds = time.perf_counter() - start
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        run.output, run.returncode, run.seconds = process.stdout, process.returncode, seconds
    return runs


def _prepare(config: dict[str, Any], workdir: Path) -> Path:
    """Write cfg.yml, with the probe as the last plugin; remove records of an earlier run in the same folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    for record in [*workdir.rglob("record.json"), *workdir.rglob("probe.pt")]:
        record.unlink()
    plugins = [*(config.get("plugins") or []), PROBE_PLUGIN]
    config = {"output_dir": str(workdir / "out"), **config, "plugins": plugins}
    config_path = workdir / "cfg.yml"
    config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return config_path


# --- One process, many runs ------------------------------------------------------------------------------------------


@contextmanager
def clean_process(environment: dict[str, str], handler: logging.Handler) -> Iterator[None]:
    """Give a run a process as new, and undo what it leaves: everything global that was found to leak is listed here."""
    import accelerate.state
    import axolotl.utils.distributed
    import axolotl.utils.tee
    import numpy
    import torch
    import transformers.modelcard
    import transformers.models.llama.modeling_llama  # loaded now, so that its classes are among the saved ones
    from axolotl.cli.main import cli  # noqa: F401  (what the command line imports: sets up logging)
    from axolotl.integrations.base import PluginManager

    def reset() -> None:
        # The singleton is emptied, not replaced: axolotl.train of 0.19 keeps a reference to it.
        manager = PluginManager._instance
        if manager is not None:
            manager.plugins.clear()
            manager.cfg = None
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        axolotl.utils.distributed.distributed_state = None
        axolotl.utils.tee.close_debug_log()
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        gc.collect()

    saved_environment = dict(os.environ)
    saved_argv, sys.argv = sys.argv, ["axolotl"]  # do_cli parses it
    saved_comment = transformers.modelcard.AUTOGENERATED_TRAINER_COMMENT
    saved_classes = [(model_class, dict(vars(model_class))) for model_class in _model_classes()]
    saved_signal = signal.getsignal(signal.SIGINT)  # Axolotl saves the model on Ctrl-C, and exits with 0
    loggers = [logging.getLogger(), logging.getLogger("axolotl")]
    reset()
    os.environ.update(environment)
    # 0.19 draws the LoRA weights before it sets the seed.
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        for model_class, attributes in saved_classes:  # the LoRA kernels patch the attention's class
            for name in set(vars(model_class)) - set(attributes):
                delattr(model_class, name)
            for name, value in attributes.items():
                if vars(model_class)[name] is not value:
                    setattr(model_class, name, value)
        sys.argv = saved_argv
        signal.signal(signal.SIGINT, saved_signal)
        transformers.modelcard.AUTOGENERATED_TRAINER_COMMENT = saved_comment
        os.environ.clear()
        os.environ.update(saved_environment)
        reset()


def _model_classes() -> list[type]:
    """The classes of all models of transformers that have been imported."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith("transformers.models.")}
    return [
        member
        for name, module in modules.items()
        if ".modeling_" in name
        for member in vars(module).values()
        if isinstance(member, type) and member.__module__ == name
    ]
