"""What tests of the commands share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.little import PLUGIN, distribution


@pytest.fixture
def little(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Installs the framework, and gives the environment variables with which it is found."""

    def install(module: str = "hook = None", version: str = "1.5", plugin: str = PLUGIN) -> dict[str, str]:
        site = tmp_path / "site"
        point = "[neftune_plugins]\nlittle = little_adapter\n"
        requirements = ('little>=1,<2; extra == "little"', 'other; extra == "more"')
        distribution(site, "little-adapter", "3.0", requirements, point)
        distribution(site, "little", version)
        (site / "little_adapter.py").write_text(plugin)
        (site / "little.py").write_text(module)
        paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    return install
