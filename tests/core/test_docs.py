"""What the documentation shows is so."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from benchmarks.alpha import RECORD
from benchmarks.probe import RECORD as PROBED
from tests.support.documentation import GENERATED, PAGES, PICTURES, ROOT, SNIPPET, anchors, regenerated, shown
from tests.support.shell import CHECKS


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
    """Before the first heading below the title: two sentences and a picture, one key a framework, the two commands."""
    first = (ROOT / "README.md").read_text().split("\n## ")[0]
    assert first.count("```bash") == 2
    assert first.count("](docs/images/noise-by-length.svg)") == 1
    assert len(first.splitlines()) <= 40


def test_the_readmes_table_of_frameworks():
    """Each row has an extra, or none for a loop of one's own, the key, and the framework's page."""
    table = (ROOT / "README.md").read_text().split("| framework | install | add |\n")[1].split("\n\n")[0]
    commands = []
    for row in table.splitlines()[1:]:
        name, install, add = (cell.strip() for cell in row.split("|")[1:-1])
        assert re.fullmatch(r"\[.+\]\(docs/\w+\.md(#[\w-]+)?\)", name), name
        assert re.search("neftune_noise_alpha(: |=)5|NoiseConfig\\(alpha=5\\)", add), add
        commands.append(install.strip("`").split())
    for program, *arguments in commands:
        CHECKS[program](arguments)
    extras = {argument.strip('"').removeprefix("neftune-plugins").strip("[]") for _, _, argument in commands}
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras == {*known, ""} - {"demo", "sweep"}


def test_the_readmes_results_are_those_of_the_record():
    settings = {(one["alpha"], one["length"]): one for one in json.loads(RECORD.read_text())["summary"]["settings"]}
    [none] = [one for (alpha, _), one in settings.items() if alpha == 0]
    losses = [one["metrics"]["held_out_loss"] for one in (none, settings[5, "sequence"], settings[15, "sequence"])]
    without, *noisy = (f"{loss['mean']:.4f} ± {loss['spread']:.4f}" for loss in losses)
    [row] = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| [this project]")]
    assert row.endswith(f"| {without} | alpha 5: {noisy[0]}, alpha 15: {noisy[1]} |")
    assert [loss["supported"] for loss in losses] == [None, False, True]


def test_the_readme_counts_the_model_classes_of_the_page():
    page = (ROOT / "docs" / "models.md").read_text()
    [ran] = re.findall(r"(\d+) of them could be made tiny", page)
    head, ours = (re.search(rf"^\| {word}\|.+", page, re.MULTILINE)[0].split("|") for word in ("", "ours "))
    right = dict(zip(map(str.strip, head), map(str.strip, ours), strict=True))["right"]
    assert f"| {right} of {ran} model classes" in (ROOT / "README.md").read_text()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]


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


# A row of README's comparison; for each framework the method that the probe recorded, and who called the model there.
MEASURED = {
    "L is the example's own length in padded rows": (
        {"Trainer, TRL": "trainer", "Axolotl": "sft", "Ludwig": "full", "LLaMA-Factory": "sft", "ms-swift": "sft"},
        "trainer",
    ),
    "L is the example's own length in packed rows": (
        {"Trainer, TRL": "sft_packed", "Axolotl": "packed", "LLaMA-Factory": "packing"},
        "trainer",
    ),
    "no noise in reference models and KL terms": ({"Trainer, TRL": "dpo_lora", "ms-swift": "dpo_lora"}, "reference"),
    "no noise in GRPO rollouts": ({"Trainer, TRL": "grpo_lora", "ms-swift": "grpo"}, "rollout"),
}
RECORDED = {
    **{"Trainer, TRL": "transformers", "Axolotl": "axolotl", "Ludwig": "ludwig"},
    **{"LLaMA-Factory": "llamafactory", "ms-swift": "swift"},
}


@pytest.mark.parametrize("row", MEASURED)
def test_cells_of_the_readmes_comparison_are_what_the_probe_recorded(row):
    table = (ROOT / "README.md").read_text().split("| | ours |")[1].split("\n\n")[0].splitlines()
    names = ["ours", *(cell.strip() for cell in table[0].split("|")[:-1])]
    [cells] = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table if line.startswith(f"| {row} |")]
    shown = dict(zip(names, cells, strict=True))
    record = json.loads(PROBED.read_text())
    methods, caller = MEASURED[row]
    for framework, method in methods.items():
        pair = record[RECORDED[framework]]["methods"][method]
        assert _is_right(pair["native"], caller) == (shown[framework] == "yes"), framework
        assert _is_right(pair["ours"], caller) and shown["ours"] == "yes"


def _is_right(found: dict, caller: str) -> bool:
    """Whether all examples of the forward passes have the paper's noise, or none where none belongs."""
    ranges = [kind["ratios"] for kind in found["kinds"] if kind["caller"] == caller and kind["ratios"]]
    assert ranges
    least, most = (0.9, 1.1) if caller == "trainer" else (0.0, 0.0)
    return all(least <= low and high <= most for low, _, high in ranges)
