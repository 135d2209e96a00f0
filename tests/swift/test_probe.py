"""`neftune probe` on the true command line."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.probe import command
from tests.support.probing import assert_is_the_native_hooks, assert_is_the_papers, probed

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("native", [False, True])
def test_a_padded_run(tmp_path, native):
    switch = {"NEFTUNE_PLUGINS": "0"} if native else {}
    ended, found = probed(command("swift", "sft", tmp_path, native=native), tmp_path, PATH=PATH, **switch)
    (assert_is_the_native_hooks if native else assert_is_the_papers)(ended, found)
    assert (found["alpha"], found["alpha_source"]) == (5, str(tmp_path / "config.yaml"))
