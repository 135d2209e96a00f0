"""Python scripts in processes of their own, without the time that a framework's imports take.

A process that has done them once is forked for each script. What the imports themselves do in a new process, in which
order, is not seen here: each framework has a test that launches its command line from nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tests.support.garbage import leave_out_what_lives

ROOT = Path(__file__).parents[2]


Execute = Callable[..., subprocess.CompletedProcess[str]]
"""`execute(command, cwd=, env=)`: runs a command in a process of its own, with both its outputs in one pipe."""

LONGEST = 600  # seconds


def cold(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Execute it from nothing."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=cwd, env=env, **pipes, text=True, timeout=LONGEST, check=False)


class Warm:
    """modules: to be imported once. environment: variables that they read. paths: of modules, before all others."""

    def __init__(self, *modules: str, environment: Mapping[str, str], paths: Sequence[Path] = ()) -> None:
        self.modules, self.environment, self.paths = modules, environment, paths
        self._lock = threading.Lock()

    @cached_property
    def _server(self) -> subprocess.Popen[str]:
        """It ends with its standard input, so with this process."""
        paths = [*map(str, self.paths), str(ROOT), os.environ.get("PYTHONPATH")]
        environment = {**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-m", "tests.support.warm", *self.modules]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)

    def run(
        self, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Execute a Python script, with the imports done."""
        arguments = list(map(str, command))
        with self._lock, tempfile.NamedTemporaryFile() as output:
            given = {"argv": arguments, "cwd": str(cwd), "env": dict(env), "output": output.name}
            server = self._server
            assert server.stdin is not None and server.stdout is not None
            print(json.dumps(given), file=server.stdin, flush=True)
            status = int(server.stdout.readline())
            text = Path(output.name).read_text(errors="replace")
        return subprocess.CompletedProcess(arguments, status, text)


def serve(modules: Sequence[str]) -> None:
    """Answer each line of standard input, a call of `Warm.run`, with the exit status. Returns in the children, too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is imported may print
    for module in modules:
        importlib.import_module(module)
    leave_out_what_lives()
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            return become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=answers, flush=True)
    return None


def become(argv: list[str], cwd: str, env: dict[str, str], output: str) -> None:
    """Go on as a new process that runs this script."""
    signal.alarm(LONGEST)
    written, nothing = os.open(output, os.O_WRONLY), os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, written, written)):
        os.dup2(file, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1:])
