"""What `neftune demo --tiny --steps 4` leaves behind, whatever the framework."""

import re
import subprocess
from pathlib import Path

# The name of a folder that has to be quoted in YAML and on a command line.
AWKWARD = 'it\'s run #1: "a" {b}'


def check_demo(result: "subprocess.CompletedProcess[str]", config: Path, model: Path) -> None:
    """Its report says that the noise was right, `config` has the key once, and there is a trained `model`."""
    assert result.returncode == 0, result.stdout
    assert "The one line that makes it NEFTune: neftune_noise_alpha: 5\n" in result.stdout
    assert config.read_text().count("neftune_noise_alpha") == 1
    report = result.stdout.split("\nneftune_noise_alpha: 5, trained for")[1]
    assert "16 in 4 steps" in report
    mean = re.search(r"mean ([\d.]+)", report)
    assert mean
    assert abs(float(mean[1]) - 1) < 0.01
    assert re.search(r"noise on padding +0\n", report)
    losses = re.search(r"([\d.]+) before, ([\d.]+) after", report)
    assert losses
    assert float(losses[2]) < float(losses[1])
    assert len((config.parent / "noise.jsonl").read_text().splitlines()) == 16
    assert (model / "model.safetensors").exists()
