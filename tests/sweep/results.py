"""What a sweep has left."""

import json
from pathlib import Path


def study(folder: Path) -> dict:
    return json.loads((folder / "neftune-sweep" / "study.json").read_text())
