"""The noise of a framework's own NEFTune and of this package, as `neftune probe` sees it, by training method.

python -m benchmarks.probe axolotl           # in the environment of that framework; each method takes about 30 seconds
python -m benchmarks.probe axolotl sft dpo   # these alone

Trains tiny random models by the frameworks' own command lines (Trainer and TRL: by a script), with NEFTUNE_PLUGINS=0
and without, and adds the records to benchmarks/results/probe.json. docs/proof.md shows them.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from neftune_plugins.plugins.manager import frameworks

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "probe.json"
SCRIPTS = Path(sys.executable).parent
ALPHA = 5
METHODS = {
    "axolotl": ("sft", "packed", "lora_embedding", "checkpointing_reentrant", "dpo", "grpo_lora"),
    "llamafactory": ("sft", "packing", "lora_embedding", "checkpointing", "dpo_lora"),
    "ludwig": ("full", "pad_eos", "lora_embedding", "checkpointing", "lora"),
    "swift": ("sft", "lora_embedding", "dpo_lora", "kto", "grpo"),
    "transformers": ("trainer", "sft_packed", "sft_lora_embedding", "dpo_lora", "grpo_lora"),
}
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AXOLOTL_DO_NOT_TRACK": "1",
}


def command(framework: str, method: str, folder: Path, *, native: bool) -> list[str]:
    """A complete training command of that framework, with alpha 5, on a tiny model; its files are written to the
    folder."""
    if framework == "transformers":
        return [sys.executable, "-m", "benchmarks.probe", "--train", method, *(["--native"] if native else [])]
    from neftune_transformers.tiny import make_tiny_model

    configs = importlib.import_module(f"tests.{framework}.configs")
    model = make_tiny_model(folder / "model")
    config = configs.base_config(model, method)
    file = folder / "config.yaml"
    keys = {"neftune_noise_alpha": ALPHA}
    if framework == "ludwig":
        file.write_text(yaml.safe_dump(configs.with_keys(config, keys)))
        arguments = ["--dataset", str(configs.write_dataset(folder)), "--output_directory", str(folder / "out")]
        return [str(SCRIPTS / "ludwig"), "train", "--config", str(file), *arguments, "--skip_save_processed_input"]
    if framework == "axolotl" and not native:
        config = importlib.import_module("tests.axolotl.driver").with_plugin(config)
    file.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), **config, **keys}))
    if framework == "swift":
        return [str(SCRIPTS / "swift"), configs.command(method), str(file)]
    program = {"axolotl": "axolotl", "llamafactory": "llamafactory-cli"}[framework]
    return [str(SCRIPTS / program), "train", str(file)]


def probe(framework: str, method: str, *, native: bool) -> dict[str, Any]:
    """What `neftune probe --json` writes about a run of three steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = folder / "probe.json"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths}
        environment["PATH"] = f"{SCRIPTS}{os.pathsep}{environment['PATH']}"
        if native:
            environment["NEFTUNE_PLUGINS"] = "0"
        probed = [str(SCRIPTS / "neftune"), "probe", "--json", str(result), "--"]
        trained = command(framework, method, folder, native=native)
        done = subprocess.run(
            [*probed, *trained], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if not result.exists():
            raise RuntimeError(done.stdout + done.stderr)
        print(done.stdout[done.stdout.rfind("optimisation steps") - 2 :], flush=True)
        return json.loads(result.read_text())


def shown(found: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps: of each kind of forward pass the range of its ratios."""
    kinds = []
    for kind in found["kinds"]:
        ratios = sorted(example["ratio"] for example in kind["examples"])
        names = ("model", "mode", "grad", "adapters", "caller", "forwards", "padding", "blind")
        about = {name: kind[name] for name in names}
        middle = ratios[len(ratios) // 2] if ratios else None
        kinds.append({**about, "examples": len(ratios), "ratios": [ratios[0], middle, ratios[-1]] if ratios else []})
    return {"verdict": found["verdict"].split(":")[0], "steps": found["steps"], "kinds": kinds}


def recorded() -> str:
    """The records as a table: the range of the noise, by framework, method and who called the model."""
    lines = ["| framework | method | passes of | native hook | this package |", "| --- | --- | --- | --- | --- |"]
    for framework, found in json.loads(RECORD.read_text()).items():
        for method, pair in found["methods"].items():
            callers = dict.fromkeys(kind["caller"] for one in pair.values() for kind in one["kinds"])
            for caller in sorted(callers, key=lambda name: name != "trainer"):
                cells = [_cell(pair.get(name), caller) for name in ("native", "ours")]
                about = (f"{framework} {found['version']}", f"`{method}`", caller)
                lines.append(f"| {' | '.join([*about, *cells])} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, caller: str) -> str:
    """The smallest and the largest ratio of the forward passes of one caller, of a trainer those with gradients."""
    kinds = [kind for kind in found["kinds"] if kind["caller"] == caller] if found else []
    kinds = [kind for kind in kinds if kind["ratios"] and (kind["grad"] or caller != "trainer")]
    if not kinds:
        return "–"
    low, high = min(kind["ratios"][0] for kind in kinds), max(kind["ratios"][2] for kind in kinds)
    padding = max(kind["padding"] for kind in kinds)
    noise = "none" if high == 0 else f"{low:.2f} to {high:.2f}"
    return f"{noise}; padding {padding:.2f}" if padding else noise


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", nargs="?", choices=METHODS)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--native", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train:
        return _train(options.train, native=options.native)
    for method in options.methods or METHODS[options.framework]:
        for name, native in (("native", True), ("ours", False)):
            print(f"{options.framework} {method} {name}", flush=True)
            found = shown(probe(options.framework, method, native=native))
            record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
            release = version(frameworks()[options.framework].distribution)
            of_framework = record.setdefault(options.framework, {"version": release, "methods": {}})
            of_framework["methods"].setdefault(method, {})[name] = found
            RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return None


def _train(method: str, *, native: bool) -> None:
    """By Trainer or one of TRL's."""
    from tests.transformers.driver import make_driver

    with tempfile.TemporaryDirectory() as folder:
        driver = make_driver()
        driver.trainer(method, {"neftune_noise_alpha": ALPHA}, Path(folder), callbacks=[], stock=native).train()


if __name__ == "__main__":
    main()
