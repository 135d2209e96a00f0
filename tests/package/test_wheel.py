"""A wheel built from a clean clone, in an empty environment."""

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = str(Path(sys.executable).with_name("uv"))
ADAPTERS = [
    *("neftune_axolotl", "neftune_llamafactory", "neftune_ludwig", "neftune_swift"),
    *("neftune_transformers", "neftune_trl"),
]
PACKAGES = ["neftune_plugins", *ADAPTERS]
BUILT_IN = ["neftune_plugins.model.builtin", "neftune_plugins.model.report"]


def run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The folder with the sdist, and the wheel that was built from it."""
    given = pytestconfig.getoption("--dist")
    if given is not None:
        return Path(given).absolute()
    folder = tmp_path_factory.mktemp("dist")
    run("git", "clone", "--quiet", str(ROOT), "clone", cwd=folder)
    run(UV, "build", "--quiet", "--out-dir", str(folder), "clone", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [wheel] = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that has the wheel and its dependencies, and nothing else."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    run(UV, "venv", "--quiet", "--python", sys.executable, str(environment), cwd=wheel.parent)
    python = str(environment / "bin" / "python")
    run(UV, "pip", "install", "--quiet", "--python", python, str(wheel), cwd=wheel.parent)
    return python


def test_it_holds_all_packages_their_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tracked = run("git", "ls-files", "neftune_plugins", "adapters", cwd=ROOT).splitlines()
    files = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert files == {name.removeprefix("adapters/") for name in tracked}
    assert {name.split("/")[0] for name in files} == set(PACKAGES)
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_has_what_the_wheel_is_built_from(dist, wheel):
    [sdist] = dist.glob("*.tar.gz")
    top = sdist.name.removesuffix(".tar.gz")
    assert wheel.name.startswith(f"{top}-py3-none-any")
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    assert names >= {*run("git", "ls-files", cwd=ROOT).splitlines(), "PKG-INFO"}


def test_the_package_index_takes_both(dist):
    files = [*map(str, dist.glob("*.whl")), *map(str, dist.glob("*.tar.gz"))]
    shown = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files, cwd=dist)
    assert shown.count("PASSED") == 2


def test_the_base_install_is_light_and_imports_no_framework(python, wheel):
    script = (
        "import sys, neftune_plugins, neftune_axolotl, neftune_llamafactory, neftune_ludwig, neftune_transformers;"
        "import neftune_swift, neftune_trl;"
        "from neftune_plugins.plugins.manager import frameworks, noise_types;"
        "assert sorted(frameworks()) == ['axolotl', 'llamafactory', 'ludwig', 'swift', 'transformers', 'trl'];"
        "assert len(noise_types()) == 3;"
        "heavy = {'transformers', 'axolotl', 'ludwig', 'llamafactory', 'swift', 'trl', 'pydantic'};"
        "assert not heavy & set(sys.modules);"
        "import importlib.metadata as m; print(*sorted(m.requires('neftune-plugins')), sep='\\n')"
    )
    requirements = run(python, "-c", script, cwd=wheel.parent).splitlines()
    base = [line.split(">=")[0] for line in requirements if "extra ==" not in line]
    assert base == ["packaging", "pluggy", "pyyaml", "torch"]


def test_its_entry_points_and_its_command_are_there(python, wheel):
    script = (
        "from importlib.metadata import entry_points as e;"
        "print([sorted(p.value for p in e(group=g)) for g in ('neftune_plugins', 'axolotl.plugins', 'torch.backends')])"
    )
    shown = run(python, "-c", script, cwd=wheel.parent)
    assert ast.literal_eval(shown) == [
        sorted([*(f"{adapter}.framework" for adapter in ADAPTERS), *BUILT_IN]),
        ["neftune_axolotl:NEFTunePlugin"],
        [f"{adapter}.autoload:register" for adapter in ADAPTERS if adapter != "neftune_axolotl"],
    ]
    assert run(str(Path(python).with_name("neftune")), "--version", cwd=wheel.parent).strip() in wheel.name
    assert "demo" in run(python, "-m", "neftune_plugins", "--help", cwd=wheel.parent)


def test_the_doctor_says_what_to_install(python, wheel):
    command = [str(Path(python).with_name("neftune")), "doctor"]
    result = subprocess.run(command, cwd=wheel.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    *_, conclusion = result.stdout.splitlines()
    assert conclusion.startswith("No training framework is installed.")
    assert 'pip install "neftune-plugins[axolotl]"' in conclusion


def test_importing_torch_imports_no_more_of_it_than_the_autoload(python, wheel):
    script = "import sys, torch; print(sorted(name for name in sys.modules if name.startswith('neftune')))"
    assert ast.literal_eval(run(python, "-c", script, cwd=wheel.parent)) == [
        "neftune_llamafactory",
        "neftune_llamafactory.autoload",
        "neftune_ludwig",
        "neftune_ludwig.autoload",
        "neftune_plugins",
        "neftune_plugins.autoload",
        "neftune_swift",
        "neftune_swift.autoload",
        "neftune_transformers",
        "neftune_transformers.autoload",
        "neftune_trl",
        "neftune_trl.autoload",
    ]


def test_a_noisy_forward_works_in_it(python, wheel):
    script = (
        "import torch; from torch import nn; from neftune_plugins import NoiseConfig, install\n"
        "class M(nn.Module):\n"
        "    def __init__(self): super().__init__(); self.e = nn.Embedding(9, 64)\n"
        "    def get_input_embeddings(self): return self.e\n"
        "    def forward(self, input_ids): return self.e(input_ids)\n"
        "m, x = M().train(), torch.arange(9)[None]\n"
        "with install(m, NoiseConfig(alpha=5)): print(float((m(x) - m.e.weight[x]).abs().max()) > 0.1)\n"
    )
    assert run(python, "-c", script, cwd=wheel.parent).strip() == "True"
