#!/usr/bin/env bash
# TORCH_DEVICE_BACKEND_AUTOLOAD=true turns autoload off
#
# Guess:   Autoload is on by default, and the variable takes the usual words: 0 and false turn it off, 1 and true turn
#          it on.
# Happens: Only "1" keeps the torch.backends entry points on. Every other value, including true, on, yes and the empty
#          string, turns them off without a message.
# Matters: To anybody who trains on a device, or with an extension, that comes as an autoloaded package, and sets the
#          variable in a job script to be sure: that line is what turns it off.
# With:    torch==2.14.1
# Seen:    2026-11-27
# | unset: loaded
# | '1': loaded
# | '0': not loaded
# | 'true': not loaded
# | 'on': not loaded
# | '': not loaded
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import os
import subprocess
import sys
from pathlib import Path

Path("backend.py").write_text("def load():\n    print('loaded')\n")
package = Path("backend-1.dist-info")
package.mkdir()
(package / "METADATA").write_text("Metadata-Version: 2.1\nName: backend\nVersion: 1\n")
(package / "entry_points.txt").write_text("[torch.backends]\nbackend = backend:load\n")

for value in (None, "1", "0", "true", "on", ""):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    if value is not None:
        environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = value
    command = [sys.executable, "-c", "import torch"]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    print(f"{'unset' if value is None else repr(value)}: {printed or 'not loaded'}")
PYTHON
