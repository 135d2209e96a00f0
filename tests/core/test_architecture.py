"""docs/architecture.md: the files and names that it gives exist, and its diffs apply and do what they say."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documentation import ROOT, shown

PAGE = (ROOT / "docs" / "architecture.md").read_text()
FOLDERS = ("adapters", "neftune_plugins")


def test_the_files_exist():
    files = re.findall(r"`((?:neftune_plugins|tests)/[\w/]+\.py)`", PAGE)
    assert len(files) > 40
    for file in files:
        assert (ROOT / file).exists(), file


def defined(file: str) -> Iterator[str]:
    """The classes and functions of a file, with the methods of its classes as `Class.method`."""
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))


def test_the_life_of_a_batch_names_what_is_in_the_files():
    [life] = re.findall(r"^## The life of a batch\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    named = re.findall(r"((?:`[\w.]+`(?: and )?)+)\s[^`(]{0,20}\s?\(`(neftune_plugins/[\w/]+\.py)`\)", life)
    assert len(named) > 15
    for names, file in named:
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in set(defined(file)), (name, file)


@pytest.fixture
def patched(tmp_path):
    """Applies a diff of the page to a copy of the repository, and runs code with that."""

    def run(diff: str, *command: str) -> str:
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["git", "apply", "-C1", "-"], input=diff, cwd=tmp_path, text=True, check=True)
        _install(tmp_path)
        path = os.pathsep.join(map(str, (tmp_path, tmp_path / "adapters")))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


def _install(copy: Path) -> None:
    """Metadata of a distribution with the entry points that the copy has beyond the installed package."""
    groups = [tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"] for root in (ROOT, copy)]
    lines = []
    for group, points in groups[1].items():
        new = [f"{name} = {target}" for name, target in points.items() if name not in groups[0][group]]
        lines += [f"[{group}]", *new]
    metadata = copy / "patched-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: patched\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


def test_the_noise_type(patched):
    code = """
import torch
from neftune_plugins.plugins import noise_types
ternary = noise_types()["ternary"]
noise = ternary.draw(torch.randint(-2**31, 2**31, (10**5,), generator=torch.manual_seed(0)).to(torch.int32))
print([round((noise == value).float().mean().item(), 2) for value in (-1, 0, 1)], ternary.rms**2)
"""
    # The standard error of a share of 10^5 draws is at most 0.0016.
    assert patched(shown("docs/architecture.md", "diff", 0), "-c", code).startswith("[0.25, 0.5, 0.25] 0.5")


def test_the_finder(patched):
    code = """
import torch
from neftune_plugins import NoiseConfig, install
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(100, 16)
    def forward(self, input_ids, attention_mask=None):
        return self.words(input_ids)
ids = torch.arange(5)[None]
with install(model := Model().train(), NoiseConfig(alpha=5)) as noise:
    print(noise.embeddings, torch.equal(model(ids), model.words.weight[ids]))
"""
    assert patched(shown("docs/architecture.md", "diff", 1), "-c", code) == "['words'] False\n"


def test_the_adapter(patched, tmp_path):
    (tmp_path / "little.py").write_text(shown("docs/plugins.md", "python", 3))
    code = f"""
import sys
sys.path.append({str(ROOT)!r})
import torch
from neftune_little import NoisyTrainer
from neftune_plugins.plugins import frameworks
from tests.support.models import ToyModel, examples, padded
ids, mask = padded(examples([5, 9]))
def trained(**keys):
    torch.manual_seed(0)
    model = ToyModel()
    config = {{"learning_rate": 0.1, "seed": 7, **keys}}
    NoisyTrainer(model, config, [{{"input_ids": ids, "attention_mask": mask}}] * 3).train()
    return model.embed_tokens.weight
noisy = trained(neftune_noise_alpha=5)
print(torch.equal(noisy, trained()), torch.equal(noisy, trained(neftune_noise_alpha=5)), "little" in frameworks())
"""
    assert patched(shown("docs/architecture.md", "diff", 2), "-c", code) == "False True True\n"


def test_the_command(patched):
    listing = patched(shown("docs/architecture.md", "diff", 3), "-m", "neftune_plugins", "keys")
    assert re.search(r"^neftune_noise_type +uniform$", listing, re.MULTILINE)
