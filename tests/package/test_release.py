"""What a release needs beside what is built: a tag, a version and a changelog that say the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import changelog

TEXT = """\
# Changelog

## 0.3.0, unreleased

- Later.

## 0.2.0, 2026-12-01

### New

- A key.

## 0.1.0, 2026-11-01

- First.
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(changelog, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(TEXT)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    return tmp_path


def test_the_notes_are_the_versions_section(repository):
    assert changelog.notes("v0.2.0") == "### New\n\n- A key."
    assert changelog.section(TEXT, "0.1.0") == ("2026-11-01", "- First.")


@pytest.mark.parametrize("tag", ["v0.1.0", "0.2.0", "v0.2.0rc1"])
def test_a_tag_of_another_version_is_not_released(repository, tag):
    with pytest.raises(ValueError, match=rf"the tag is {tag}, and the version in pyproject.toml 0.2.0: tag v0.2.0"):
        changelog.notes(tag)


def test_a_version_without_a_day_is_not_released(repository):
    (repository / "pyproject.toml").write_text('[project]\nversion = "0.3.0"\n')
    with pytest.raises(ValueError, match=r"says 0.3.0, unreleased: give it the day of the release"):
        changelog.notes("v0.3.0")


def test_the_command_of_the_workflow():
    """On this repository: it prints the notes, or says why there is no release yet."""
    tag = f"v{changelog.version()}"
    date, text = changelog.section((changelog.ROOT / "CHANGELOG.md").read_text(), changelog.version())
    command = [sys.executable, "-m", "tests.support.changelog", tag]
    result = subprocess.run(command, cwd=changelog.ROOT, capture_output=True, text=True, check=False)
    expected = (1, "") if date == "unreleased" else (0, text + "\n")
    assert (result.returncode, result.stdout) == expected
    assert ("give it the day" in result.stderr) == (date == "unreleased")


def test_the_steps_of_a_release_are_commands_that_exist():
    contributing = (changelog.ROOT / "CONTRIBUTING.md").read_text()
    [steps] = re.findall(r"^## Releasing$.*?^```bash\n(.*?)^```", contributing, re.MULTILINE | re.DOTALL)
    assert f"python -m tests.support.changelog v{changelog.version()} " in steps
    for path in re.findall(r"\.(?:ci|github)\S+", steps):
        assert (changelog.ROOT / path).exists(), path
    environments = re.findall(r"tox run -e (\S+)", steps)
    assert environments
    for environment in environments:
        assert f"\n[testenv:{environment}]\n" in (changelog.ROOT / "tox.ini").read_text()
