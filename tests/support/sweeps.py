"""What `neftune sweep --alpha 0,5` does with a framework's own command, whatever the framework."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.commands import neftune
from tests.support.texts import answer, question

STEPS, BATCH = 2, 4


def check_sweep(
    config: Mapping[str, Any],
    folder: Path,
    *arguments: str,
    without: Callable[[dict[str, Any]], None],
    held_out: bool = False,
) -> None:
    """Sweep over a configuration of `STEPS` steps of `BATCH` examples of alpha 3, and look at what has come out.

    arguments: for the framework's command, run in `folder`.
    without: takes out of a trial's configuration what a trial may change.
    held_out: measure the trained models, which takes as long as to import transformers again; else look at their size.
    """
    file, rows, record = folder / "mine.yaml", folder / "rows.jsonl", folder / "noise.jsonl"
    file.write_text(yaml.safe_dump(dict(config)))
    rows.write_text(json.dumps({"prompt": question(20), "completion": answer(20, 2)}) + "\n")
    measured = ("--held-out", rows, "--measure", "--max-new-tokens 4")
    objective = "held_out_loss" if held_out else "size"
    if not held_out:
        measured = ("--metric", "size=stat -c %s {model}/model.safetensors", "--objective", "size")
    options = ("--alpha", "0,5", *measured, "--output", folder / "sweep")
    result = neftune("sweep", file, *options, "--", *arguments, cwd=folder, NEFTUNE_REPORT=str(record))
    logs = "".join(path.read_text() for path in sorted(folder.glob("sweep/trials/*/log.txt")))
    assert result.returncode == 0, result.stdout + result.stderr + logs

    study = json.loads((folder / "sweep" / "study.json").read_text())
    assert (study["objective"], study["direction"]) == (objective, "minimize")
    clean, noisy = study["trials"]
    for trial, alpha, noise in ((clean, 0, ["none", "none"]), (noisy, 5, ["uniform", "sequence"])):
        assert (trial["state"], trial["alpha"], trial["seed"]) == ("complete", alpha, 0)
        assert [trial["type"], trial["length"]] == noise
        assert [point["step"] for point in trial["curve"]] == list(range(1, STEPS + 1)), logs
        assert all(math.isfinite(point["loss"]) for point in trial["curve"])
        assert math.isfinite(trial["values"][objective]) and trial["values"][objective] > 0
    assert clean["curve"][0]["loss"] != noisy["curve"][0]["loss"]
    assert (clean["values"][objective] != noisy["values"][objective]) == held_out

    examples = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(examples) == STEPS * BATCH  # those of the run with noise
    theory = [5 / (3 * example["length"] * example["dim"]) ** 0.5 for example in examples]
    ratios = [example["rms"] / expected for example, expected in zip(examples, theory, strict=True)]
    # The mean square of n uniform numbers has the relative standard deviation sqrt(4 / (5 n)); its root half of it.
    numbers = sum(example["length"] * example["dim"] for example in examples)
    assert abs(sum(ratios) / len(ratios) - 1) < 5 * (0.8 / (numbers / len(examples))) ** 0.5 / 2 / len(examples) ** 0.5

    before = yaml.safe_load(file.read_text())
    for trial, alpha in ((clean, None), (noisy, 5.0)):
        after = yaml.safe_load(Path(trial["log"]).with_name("config.yaml").read_text())
        text = yaml.safe_dump(after)
        assert text.count("neftune_noise_") == (alpha is not None)
        assert alpha is None or f"neftune_noise_alpha: {alpha}" in text
        without(after)
        without(before)
        assert after == before
