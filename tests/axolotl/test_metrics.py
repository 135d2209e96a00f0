"""The metrics in the reporters that come with Axolotl, read back from what they wrote."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.axolotl.configs import base_config
from tests.axolotl.driver import NEEDS_PLUGINS_KEY, with_plugin
from tests.axolotl.runs import axolotl_cli
from tests.conformance.conftest import make_driver
from tests.support.events import LOSSES, METRICS, scalars

STEPS = range(1, 6)
# The transformers that Axolotl 0.19 asks for gives an argument to the Trackio that it asks for, which that lacks.
HAS_TRACKIO = not NEEDS_PLUGINS_KEY


@pytest.fixture(scope="session")
def driver(pytestconfig):
    return make_driver(pytestconfig)


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB's format, behind a header as long as those of its chunks."""
    header, block, parts = struct.Struct("<IHB"), 2**15, []
    place = header.size
    while place + header.size <= len(data):
        if block - place % block < header.size:  # the rest of a block that holds no header
            place += block - place % block
            continue
        _, length, kind = header.unpack_from(data, place)
        place += header.size
        parts.append(data[place : place + length])
        place += length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def in_wandb(folder: Path) -> dict[str, dict[int, float]]:
    """The value of each metric at each step, from an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.rglob("run-*.wandb")
    found: dict[str, dict[int, float]] = {}
    for data in leveldb_log(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in items.items():
            found.setdefault(name, {})[items.get("train/global_step")] = value
    return found


def in_trackio(folder: Path) -> dict[str, dict[int, float]]:
    """The same, from Trackio's database."""
    [file] = folder.glob("*.db")
    found: dict[str, dict[int, float]] = {}
    for metrics, *_ in sqlite3.connect(file).execute("select metrics from metrics"):
        items = json.loads(metrics)
        for name, value in items.items():
            found.setdefault(name, {})[items.get("train/global_step")] = value
    return found


def test_every_reporter_has_the_metrics_of_every_step(driver, tmp_path):
    config = base_config(driver.model, "sft") | {
        "neftune_noise_alpha": 5,
        "neftune_clean_loss_steps": 1,
        "use_tensorboard": True,
        "wandb_project": "noise",
        "wandb_mode": "offline",
    }
    if HAS_TRACKIO:
        config |= {"trackio_project_name": "noise"}
    places = {"WANDB_DIR": str(tmp_path / "wandb"), "TRACKIO_DIR": str(tmp_path / "trackio")}
    (tmp_path / "wandb").mkdir()
    run = axolotl_cli(with_plugin(config), tmp_path, env=places)
    assert run.returncode == 0, run.output
    want = {entry["step"]: entry for entry in run.logs if "neftune/alpha" in entry}
    assert list(want) == list(STEPS)
    reporters = {
        "TensorBoard": {name: dict(series) for name, series in scalars(tmp_path / "out").items()},
        "W&B": in_wandb(tmp_path / "wandb"),
    }
    if HAS_TRACKIO:
        reporters["Trackio"] = in_trackio(tmp_path / "trackio")
    for reporter, found in reporters.items():
        for name in METRICS | LOSSES:
            series = found[f"train/{name}"]
            assert series == {step: pytest.approx(want[step][name], rel=1e-6) for step in STEPS}, reporter


def test_the_loss_without_noise_counts_no_tokens(driver, tmp_path):
    """Axolotl's counters in the logs, in a checkpoint, and in a run that is resumed from it."""
    found = []
    for steps in (None, 1):
        keys = {"neftune_noise_alpha": 5.0, "neftune_clean_loss_steps": steps, "include_tkps": True}
        folder = tmp_path / str(steps)
        run = driver.train("sft", keys, folder=folder, save=True)
        saved = [json.loads(path.read_text()) for path in sorted(folder.rglob("tokens_state.json"))]
        counters = [{name: log[name] for name in log if name.startswith("tokens/t")} for log in run.logs]
        resumed = driver.launch("sft", keys, folder=tmp_path / f"{steps} resumed", resume=run.saved)
        assert resumed.returncode == 0, resumed.output
        again = [json.loads(path.read_text()) for path in sorted(resumed.saved.rglob("tokens_state.json"))]
        rates = {"tokens/train_per_sec_per_gpu", "tokens/train_per_sec_per_gpu_overall"}
        found.append((saved, again, [{n: c[n] for n in c if n not in rates} for c in counters]))
    assert found[0][0] and found[0][1] and found[0][2][0]
    assert found[1] == found[0]
