"""Import frameworks in a separate process, because their imports may fail, hang, crash or print anything.

python -m neftune_plugins.commands.worker FILE package.module:function ARGUMENT...   # writes the result to FILE as JSON
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.plugins.framework import Framework
from neftune_plugins.plugins.manager import frameworks

_running: "set[subprocess.Popen[bytes]]" = set()

LONGEST = 600  # seconds; importing a framework takes up to two minutes on a busy machine with a cold disk


def call(function: str, *arguments: str) -> Any:
    """Call `package.module:function` in a separate process that cannot contact a model hub, and return its result.

    Raises NEFTuneError if the process ends without a result (with the last line of its output) or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="neftune-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-P", "-m", "neftune_plugins.commands.worker", str(result), function, *arguments]
        written = _run(command, Path(folder) / "output.txt")
        if not result.exists():
            raise NEFTuneError(written)
        return json.loads(result.read_text())


def stop() -> None:
    """Kill the processes of all calls, and the processes that they started."""
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _run(command: list[str], output: Path) -> str:
    """Run a command, and return its exit status and the last line of its output as a sentence."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _running.add(process)
    try:
        status = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        raise NEFTuneError(f"the process did not end within {LONGEST} s and was stopped") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _running.discard(process)
    last = output.read_text(errors="replace").strip().splitlines()[-1:] or ["it wrote nothing"]
    return f"the process ended with status {status}: {last[0]}"


def imported(name: str) -> Framework:
    """Import the modules of a framework and return it. Raises the errors of these imports."""
    framework = frameworks()[name]
    for module in framework.modules:
        importlib.import_module(module)
    return framework


if __name__ == "__main__":
    home, function = sys.argv[2].split(":")
    Path(sys.argv[1]).write_text(json.dumps(getattr(importlib.import_module(home), function)(*sys.argv[3:])))
