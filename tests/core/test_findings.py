"""The heads of the scripts in findings/ and their index; the scripts themselves need a network and run nightly."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.documentation import ROOT

FINDINGS = ROOT / "findings"
SCRIPTS = sorted(path for path in FINDINGS.glob("*.sh") if path.name != "common.sh")


def run(folder, *arguments, **environment):
    command = [sys.executable, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment or None)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FINDINGS, tmp_path / "findings")


def test_heads_are_complete_and_the_index_is_theirs():
    result = run(FINDINGS, "--check")
    assert result.returncode == 0, result.stdout
    assert len(SCRIPTS) >= 8
    index = (FINDINGS / "README.md").read_text()
    assert re.findall(r"^\| \[.+?\]\((.+?\.sh)\) \|", index, re.MULTILINE) == [path.name for path in SCRIPTS]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_strict_runs_elsewhere_and_without_this_project(path):
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert "neftune_plugins" not in text and "neftune-plugins" not in text
    subprocess.run(["bash", "-n", str(path)], check=True)
    program = text.split("<<'PYTHON'\n")[1].removesuffix("PYTHON\n")
    compile(program, str(path), "exec")


@pytest.mark.parametrize("field", ["Guess", "Happens", "Matters", "With", "Seen"])
def test_a_head_without_one_of_its_parts_is_named(copy, field):
    script = copy / SCRIPTS[0].name
    script.write_text(re.sub(rf"^# {field}:.*\n", "", script.read_text(), count=1, flags=re.MULTILINE))
    result = run(copy, "--check")
    assert result.returncode == 1
    assert f"{script.name}: no '{field}'" in result.stdout


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"==[0-9.]+", "", "is not a package with its version"),
        (r"^(# Seen: +).*", r"\1yesterday", "not a date"),
        (r"^# \| .*\n", "", "no recorded output"),
    ],
)
def test_a_head_that_cannot_be_used_is_named(copy, pattern, replacement, message):
    script = copy / SCRIPTS[0].name
    script.write_text(re.sub(pattern, replacement, script.read_text(), flags=re.MULTILINE))
    result = run(copy, "--check")
    assert result.returncode == 1
    assert f"{script.name}: " in result.stdout and message in result.stdout


def test_an_index_that_is_not_the_scripts_is_seen_and_written_anew(copy):
    script = copy / SCRIPTS[0].name
    script.write_text(re.sub(r"(?m)^# Seen: .*", "# Seen:    2031-02-03", script.read_text()))
    assert "--index" in run(copy, "--check").stdout
    assert run(copy, "--index").returncode == 0
    assert run(copy, "--check").returncode == 0
    assert "2031-02-03" in (copy / "README.md").read_text()


def test_run_says_which_have_changed(copy, tmp_path):
    """With a `uv` that installs nothing: one program prints what is recorded, the other does not."""
    for path in copy.glob("*.sh"):
        if path.name not in ("common.sh", SCRIPTS[0].name, SCRIPTS[1].name):
            path.unlink()
    for path, printed in ((SCRIPTS[0], "as it was"), (SCRIPTS[1], "otherwise")):
        head = path.read_text().split("\nset -euo")[0]
        head = re.sub(r"(?m)^# \| .*\n?", "", head).rstrip("\n") + "\n# | as it was\n"
        head = re.sub(r"(?m)^# With: .*", "# With:    pytest==8.0", head)
        body = 'set -euo pipefail\nsource "$(dirname "${BASH_SOURCE[0]}")/common.sh"\nfinding "${BASH_SOURCE[0]}"'
        (copy / path.name).write_text(f"{head}{body} <<'PYTHON'\nprint({printed!r})\nPYTHON\n")
    tools, temporary = tmp_path / "tools", tmp_path / "temporary"
    tools.mkdir()
    temporary.mkdir()
    (tools / "uv").write_text(
        f'#!/bin/sh\n[ "$1" = venv ] || exit 0\nmkdir -p "$5/bin"\n'
        f'printf \'#!/bin/sh\\nexec "{sys.executable}" "$@"\\n\' >"$5/bin/python"\nchmod +x "$5/bin/python"\n'
    )
    (tools / "uv").chmod(0o755)
    result = run(copy, PATH=f"{tools}:/usr/bin:/bin", PYTHON=sys.executable, TMPDIR=str(temporary))
    assert result.returncode == 1, result.stderr
    assert re.search(rf"{SCRIPTS[0].stem} +as recorded\n{SCRIPTS[1].stem} +CHANGED", result.stdout)
    assert f"1 of 2 changed: {SCRIPTS[1].stem}" in result.stdout
    assert "+otherwise" in result.stderr
    assert not list(temporary.iterdir())


def test_the_commands_that_the_readme_shows():
    (block,) = re.findall(r"```bash\n(.*?)```", (FINDINGS / "README.md").read_text(), re.DOTALL)
    script, *programs = (line.partition("#")[0].split() for line in block.splitlines())
    assert os.access(ROOT / script[0], os.X_OK)
    for command in programs:
        assert command[:2] == ["python", "findings/run.py"]
        assert run(FINDINGS, *command[2:], "--check").returncode == 0


def test_the_page_of_surprises_has_every_finding():
    named = re.findall(r"findings/([\w-]+)\.sh", (ROOT / "docs" / "surprises.md").read_text())
    assert sorted(set(named)) == [path.stem for path in SCRIPTS]
