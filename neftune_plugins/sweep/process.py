"""Runs the commands of a trial. Each ends when the sweep ends, and writes into the trial's log."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Look = Callable[[], None]

LOOK = 1.0  # seconds between two reads of what a training has logged


def nothing() -> None:
    """Do nothing."""


def run(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str],
    lock: int,
    look: Look = nothing,
) -> int:
    """Run a command with its output at the end of `log`, and return its exit status.

    lock: file descriptor that is kept open as long as the command, or what is left of it, runs.
    look: called every `LOOK` seconds. If it raises or Ctrl-C is pressed, the command is stopped before the error
        continues.
    """
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "neftune_plugins.sweep.guard", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only the sweep; the guard's process group is the command
            pass_fds=(lock,),
        )
    assert process.stdin is not None
    try:
        while True:
            try:
                return process.wait(LOOK)
            except subprocess.TimeoutExpired:
                look()
    finally:
        process.stdin.close()
        process.wait()


def tail(log: Path, characters: int = 4000) -> str:
    """Return the end of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4 * characters))
        text = file.read().decode(errors="replace")
    return text[-characters:].strip()
