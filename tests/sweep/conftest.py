"""The command in the test's own process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from neftune_plugins.commands.cli import main
from tests.sweep.workers import TRAINING

Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """Runs the command in the test's folder: exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger.jsonl"))

    def sweep(*arguments: str, file: Path = TRAINING) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["sweep", str(file), *arguments])
        shown = capsys.readouterr()
        if isinstance(end.value.code, int):
            return end.value.code, shown.out, shown.err
        return 1, shown.out, str(end.value.code)

    return sweep
