"""Frameworks in a process of their own: their imports may fail, hang or crash, and they write what they like.

python -m neftune_plugins.commands.worker FILE package.module:function ARGUMENT...   # writes the result to FILE as JSON
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.plugins.framework import Framework
from neftune_plugins.plugins.manager import frameworks

LONGEST = 600  # seconds; the imports of a framework take up to two minutes on a busy machine with a cold disk


def call(function: str, *arguments: str) -> Any:
    """What `package.module:function` returns for these arguments, in a process that reaches no model hub.

    Raises NEFTuneError, with the end of what it wrote, where the process ends without a result or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="neftune-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-P", "-m", "neftune_plugins.commands.worker", str(result), function, *arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        try:
            process = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=LONGEST,
                text=True,
                errors="replace",
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NEFTuneError(f"there was no answer within {LONGEST} s") from None
        if not result.exists():
            last = process.stdout.strip().splitlines()[-1:] or ["it wrote nothing"]
            raise NEFTuneError(f"the process ended with status {process.returncode}: {last[0]}")
        return json.loads(result.read_text())


def imported(name: str) -> Framework:
    """The framework of that name, after the import of its modules. Raises what the imports raise."""
    framework = frameworks()[name]
    for module in framework.modules:
        importlib.import_module(module)
    return framework


if __name__ == "__main__":
    home, function = sys.argv[2].split(":")
    Path(sys.argv[1]).write_text(json.dumps(getattr(importlib.import_module(home), function)(*sys.argv[3:])))
