"""`neftune probe`."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from neftune_plugins.commands.ending import INTERRUPTED
from neftune_plugins.commands.files import write
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.probing import injected, show
from neftune_plugins.probing.alpha import alpha_of
from neftune_plugins.probing.findings import Findings

_PACKAGE = Path(__file__).parents[1]
_METADATA = "Metadata-Version: 2.1\nName: neftune-probe\nVersion: 0\n"
_ENTRY_POINT = "[torch.backends]\nneftune_probe = neftune_probe:arm\n"


def probe(options: argparse.Namespace) -> int:
    """Run the command, and show what was measured in it. Returns the exit status."""
    command = options.more
    if not command:
        raise NEFTuneError("there is no command; name it after --, such as: neftune probe -- axolotl train config.yml")
    with tempfile.TemporaryDirectory(prefix="neftune-probe-") as name:
        status = _run(command, Path(name), steps=options.steps, go_on=options.go_on)
        reports = [json.loads(file.read_text()) for file in sorted(Path(name, "reports").glob("*.json"))]
    findings = Findings(command, status, options.steps, reports, *alpha_of(command, options.alpha, reports))
    print(f"\n{show.text(findings)}", flush=True)
    if options.json:
        _write(options.json, json.dumps(findings.as_dict(), indent=1))
    if options.picture:
        _write(options.picture, show.picture(findings))
    return findings.status


def _run(command: list[str], folder: Path, **given: Any) -> int:
    """Its exit status, as a shell counts it."""
    reports = folder / "reports"
    reports.mkdir()
    inject(folder / "path")
    paths = [str(folder / "path"), *filter(None, [os.environ.get("PYTHONPATH")])]
    agent = json.dumps({**given, "folder": str(reports), "package": str(_PACKAGE)})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), injected.VARIABLE: agent}
    try:
        status = subprocess.run(command, env=environment, check=False).returncode
    except OSError as error:
        raise NEFTuneError(f"{shlex.join(command)} cannot be run: {error.strerror or error}") from None
    except KeyboardInterrupt:
        return INTERRUPTED
    return status if status >= 0 else 128 - status


def inject(folder: Path) -> None:
    """Fill a folder which, on PYTHONPATH, starts the probe in every Python process. Nothing is installed."""
    metadata = folder / "neftune_probe-0.dist-info"
    metadata.mkdir(parents=True)
    for name in ("sitecustomize.py", "neftune_probe.py"):
        shutil.copy(injected.__file__, folder / name)
    (metadata / "METADATA").write_text(_METADATA)
    (metadata / "entry_points.txt").write_text(_ENTRY_POINT)


def _write(file: Path, text: str) -> None:
    try:
        write(file, text)
    except OSError as error:
        raise NEFTuneError(f"{file} cannot be written: {error.strerror or error}") from None
