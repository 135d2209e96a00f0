"""A small framework with its adapter, as the `neftune` command finds them installed."""

from pathlib import Path

PLUGIN = """
from pathlib import Path
from neftune_plugins import CheckedModel, Framework, KeyPlace, NEFTuneError, NoiseConfig, hookimpl

def adapter():
    import little
    if not getattr(little, "patched", True):
        raise NEFTuneError("little is not patched")
    return "by hand"

def check(file):
    import yaml
    config = yaml.safe_load(file.read_text())
    print("little says hello")
    ours = {name: value for name, value in config["noise"].items()}
    NoiseConfig.from_keys(ours)
    if config["little_model"] == "gone":
        raise ValueError("little_model is gone")
    return [CheckedModel(("noise",), ours, config["little_model"], native=True, seed=config.get("seed"))]

def no_training(config):
    return "epochs is 0; set epochs: 1" if config.get("epochs") == 0 else ""

@hookimpl
def neftune_frameworks():
    return [Framework("little", distribution="little", modules=("little",), native=("little:hook",), adapter=adapter,
                      signs=(frozenset({"little_model", "noise"}),), check=check,
                      places=(KeyPlace(("noise",)),), no_training=no_training)]
"""


def distribution(site: Path, name: str, version: str, requires: tuple[str, ...] = (), points: str = "") -> None:
    """Install a distribution without modules in a folder."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    extras = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.3\nName: {name}\nVersion: {version}\n{extras}")
    (folder / "entry_points.txt").write_text(points)
