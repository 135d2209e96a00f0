#!/usr/bin/env bash
# llamafactory-cli train cannot read the .json files that it accepts
#
# Guess:   A configuration in JSON trains as the same one in YAML: the command line has a branch for it.
# Happens: The branch gives a path to json.load, which needs an open file: each .json file is an AttributeError.
# Matters: To anybody who writes configurations by a program: only YAML works.
# With:    llamafactory==0.9.5 torch==2.14.1 torchvision==0.29.1
# Seen:    2026-11-27
# | config.yaml: read, learning_rate 0.001
# | config.json: AttributeError: 'PosixPath' object has no attribute 'read'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import json
import sys
from pathlib import Path

from llamafactory.hparams.parser import read_args

config = {"stage": "sft", "model_name_or_path": "model", "learning_rate": 0.001}
for name in ("config.yaml", "config.json"):
    Path(name).write_text(json.dumps(config))  # which is YAML too
    sys.argv = ["llamafactory-cli", name]
    try:
        print(f"{name}: read, learning_rate {read_args()['learning_rate']}")
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
PYTHON
