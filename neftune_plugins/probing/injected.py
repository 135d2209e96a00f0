"""Starts the probe in every Python process of a command; a copy lies in a folder on its PYTHONPATH.

As `sitecustomize` it is imported at Python's start, and imports the one that it hides. As `neftune_probe` it is an
entry point of the group `torch.backends`, which PyTorch calls at the end of `import torch`. Either may be missing:
another `sitecustomize` comes first, or TORCH_DEVICE_BACKEND_AUTOLOAD=0. Uses the standard library alone.
"""

import importlib
import importlib.util
import json
import os
import sys
from importlib.machinery import PathFinder

VARIABLE = "NEFTUNE_PROBE"


def arm() -> None:
    """Have the probe wait for a training in this process. Never raises."""
    try:
        given = json.loads(os.environ[VARIABLE])
        _find(given["package"])
        importlib.import_module("neftune_plugins.probing.agent").wait(given)
    except Exception as error:
        print(f"neftune probe: it cannot start in this process: {error!r}", file=sys.stderr)


def _find(package: str) -> None:
    """Load the package from where `neftune` has it, if this environment has none."""
    if "neftune_plugins" in sys.modules or importlib.util.find_spec("neftune_plugins") is not None:
        return
    file = os.path.join(package, "__init__.py")
    spec = importlib.util.spec_from_file_location("neftune_plugins", file, submodule_search_locations=[package])
    assert spec is not None and spec.loader is not None
    module = sys.modules["neftune_plugins"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _import_the_hidden() -> None:
    """Import the `sitecustomize` that would have been imported without this one."""
    here = os.path.dirname(os.path.abspath(__file__))
    spec = PathFinder.find_spec("sitecustomize", [folder for folder in sys.path if os.path.abspath(folder) != here])
    if spec is not None and spec.loader is not None:
        module = sys.modules["sitecustomize"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    arm()
    _import_the_hidden()
