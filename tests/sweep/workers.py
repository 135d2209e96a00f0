"""Workers of a sweep in processes of their own, and what the trainings that they ran tell."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

import neftune_plugins.sweep.command  # noqa: F401  (before the fork: its imports take longer than these sweeps)
from neftune_plugins.commands.cli import main

PATIENCE = 300.0  # seconds
TRAINING = Path(__file__).with_name("training.py")


class Worker:
    """`neftune sweep training.py ARGUMENTS` in a folder, forked."""

    def __init__(self, folder: Path, *arguments: str, host: str | None = None, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        self.ledger = folder / "ledger.jsonl"
        self._log = folder / f"worker-{time.monotonic_ns()}.txt"
        environment = {"LEDGER": str(self.ledger), **environment}
        self._process = multiprocessing.get_context("fork").Process(
            target=self._run,
            args=(folder, ["sweep", str(TRAINING), *arguments], environment, host),
            daemon=True,  # one that a failed test has left stopped is not waited for
        )
        self._process.start()

    def _run(self, folder: Path, arguments: list[str], environment: dict[str, str], host: str | None) -> None:
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.update(environment)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        if host is not None:
            import socket

            socket.gethostname = lambda: host
        main(arguments)

    def signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def interrupt(self) -> tuple[int | None, str]:
        """Press Ctrl-C, and once more where it was lost: Python ignores an exception in a destructor."""
        for _ in range(5):
            self.signal(signal.SIGINT)
            self._process.join(PATIENCE / 5)
            if self._process.exitcode is not None:
                break
        return self.wait()

    def wait(self) -> tuple[int | None, str]:
        """Exit status and output."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, self.output
        return self._process.exitcode, self.output

    @property
    def output(self) -> str:
        return self._log.read_text()


def events(ledger: Path, event: str, **about: Any) -> list[dict[str, Any]]:
    """Those of this kind, in order."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    found = [json.loads(line) for line in lines]
    return [one for one in found if one["event"] == event and about.items() <= one.items()]


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives as soon as it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def runs(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def trials(url: str, study: str = "training") -> list[FrozenTrial]:
    """The trials of Optuna."""
    return optuna.load_study(study_name=study, storage=url).get_trials()
