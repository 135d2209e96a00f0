"""What the documentation shows is so."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from neftune_plugins import NoiseConfig
from neftune_plugins.layout import read_layout
from neftune_plugins.manager import noise_types
from neftune_plugins.noise import noise, stream_key, token_keys, token_scales
from tests.support.documentation import GENERATED, PAGES, ROOT, SNIPPET, anchors, regenerated, snippets
from tests.support.models import ToyModel, examples, padded


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", SNIPPET.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", GENERATED, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page):
    assert page.read_text() == regenerated(page), "run python -m tests.support.documentation"


def vectors() -> list[dict]:
    return json.loads(snippets(ROOT / "docs" / "noise.md", "json")[0])


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector["type"])
def test_the_test_vectors(vector):
    ids = torch.tensor([vector["ids"]])
    layout = read_layout({"input_ids": ids})
    keys = token_keys(ids, layout, stream_key(vector["seed"], vector["stream"]), torch.tensor(vector["step"]))
    scales = token_scales(layout, vector["d"], vector["alpha"])
    got = noise(keys[0], scales[0], vector["d"], noise_types()[vector["type"]])[:, [0, 1, -1]]
    want = torch.tensor(vector["noise"])
    if vector["type"] == "gaussian":
        torch.testing.assert_close(got, want, rtol=2**-23, atol=0)
    else:
        assert torch.equal(got, want)


class Model(ToyModel):
    """With a loss, as the snippets have it."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        logits = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        return type("Output", (), {"loss": logits.logsumexp(-1).mean()})()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "core.md"], ids=lambda page: page.name)
def test_loops_of_ones_own(page):
    found = [code for code in snippets(page, "python") if "install(" in code]
    assert found
    ids, mask = padded(examples([5, 9]))
    for code in found:
        model = Model().train()
        noised: list[torch.Tensor] = []
        model.embed_tokens.register_forward_hook(lambda m, a, out, noised=noised: noised.append(out))
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        exec(
            code, {"model": model, "batches": [{"input_ids": ids, "attention_mask": mask}] * 3, "optimizer": optimizer}
        )
        assert len(noised) == 3
        assert not model._forward_pre_hooks


def test_the_plugin_page_shows_the_example_package():
    package = ROOT / "tests" / "example_plugin"
    page = ROOT / "docs" / "plugins.md"
    shown = snippets(page, "python")[0]
    source = (package / "neftune_triangular" / "__init__.py").read_text()
    assert source.endswith(shown)
    assert snippets(page, "toml")[0] in (package / "pyproject.toml").read_text()


def test_yaml_snippets_ask_for_noise():
    found = [yaml.safe_load(code) for page in PAGES for code in snippets(page, "yaml")]
    configs = [NoiseConfig.from_keys(keys) for keys in found if "neftune_noise_alpha" in keys]
    assert configs
    assert {config.alpha for config in configs} == {5}
    assert {"plugins": ["neftune_axolotl.NEFTunePlugin"]} in found


def test_the_readmes_commands_are_those_of_tox_and_ci():
    demo, test = (code.strip() for code in snippets(ROOT / "README.md", "bash")[:2])
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
