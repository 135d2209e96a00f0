"""What the documentation shows is so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documentation import GENERATED, PAGES, PICTURES, ROOT, SNIPPET, anchors, regenerated, shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", SNIPPET.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [*GENERATED, *PICTURES], ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page):
    assert page.read_text() == regenerated(page), "run python -m tests.support.documentation"


def test_the_readmes_commands_are_those_of_tox_and_ci():
    demo, test = (shown("README.md", "bash", number).strip() for number in (0, 1))
    assert demo == f"{test.removesuffix('-parallel')} -e demo"
    pattern = re.search(r"sed -n 's\|(.+?)\|\\1\|p' README.md", (ROOT / ".ci" / "run").read_text())
    assert pattern
    in_ci = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
    assert re.findall(in_ci, (ROOT / "README.md").read_text(), re.MULTILINE) == [test]


def test_the_readmes_screen_is_first():
    """Before the first heading below the title: what it is, and the two commands."""
    first = (ROOT / "README.md").read_text().split("\n## ")[0]
    assert first.count("```bash") == 2
    assert len(first.splitlines()) <= 40


def test_the_command_line_that_the_demo_page_shows():
    neftune = shutil.which("neftune", path=str(Path(sys.executable).parent))
    assert neftune
    shown = subprocess.run([neftune, "demo", "--help"], capture_output=True, text=True, check=True).stdout
    for option in re.findall(r"--[a-z]+", (ROOT / "docs" / "demo.md").read_text()):
        assert option in shown


def test_the_command_without_a_framework_says_what_to_install():
    neftune = shutil.which("neftune", path=str(Path(sys.executable).parent))
    result = subprocess.run([neftune, "demo"], capture_output=True, text=True, check=False)
    if "axolotl" in sys.modules:
        pytest.fail("the core's environment has no framework")
    assert result.returncode == 1
    assert 'pip install "neftune-plugins[axolotl,demo]"' in result.stderr


def test_changelog_and_package_agree_on_the_version():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
