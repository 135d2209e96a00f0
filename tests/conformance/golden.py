"""The same four examples in every framework: `golden.json` has their ids, and what noise each gets in the first step.

python -m tests.conformance.golden      # writes the file anew, from the specification in plain Python
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from neftune_transformers.tiny import make_tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from tests.support import specification
from tests.support.texts import answer, question

PATH = Path(__file__).with_name("golden.json")
ALPHA, SEED, DIM = 5, 42, 64


@dataclass(frozen=True)
class Golden:
    """An example.

    question, answer: for frameworks that make a chat of them; prompt, completion: the same as text, as ChatML has it.
    ids: of prompt and completion, tokenised. noise: SHA-256 of the (L, d) float32 noise, C order, little-endian.
    """

    question: str
    answer: str
    prompt: str
    completion: str
    ids: list[int]
    noise: str


def golden_examples() -> list[Golden]:
    return [Golden(**entry) for entry in json.loads(PATH.read_text())]


def golden_model(folder: Path) -> Path:
    """A tiny model whose embedding is zero: what comes out of it in training is the noise, to the bit."""
    model = make_tiny_model(folder / "golden")
    path = model / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"].zero_()
    save_file(weights, path, metadata={"format": "pt"})
    return model


def digest(noise_LD: Tensor) -> str:
    return hashlib.sha256(noise_LD.contiguous().numpy().tobytes()).hexdigest()


def _make(folder: Path) -> Iterable[Golden]:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder))
    for i in range(4):
        asked, told = question(i), answer(i, 1 + i)
        prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        completion = f"{told}<|im_end|>\n"
        ids = tokenizer(prompt + completion, add_special_tokens=False).input_ids
        noise = torch.tensor(specification.noise(ids, DIM, alpha=ALPHA, seed=SEED, step=0))
        yield Golden(asked, told, prompt, completion, ids, digest(torch.zeros_like(noise) + noise))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        lines = [json.dumps(asdict(example)) for example in _make(Path(name))]
    PATH.write_text("[\n" + ",\n".join(lines) + "\n]\n")
