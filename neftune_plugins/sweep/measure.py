"""What is measured of a trained model.

python -m neftune_plugins.sweep.measure MODEL_FOLDER ROWS RESULT.json      # the values by their names, and `answers`

The loss is that of the model as it is used, without noise. The answers are greedy with the repetition penalty of 1.2
that the NEFTune paper decodes with (arXiv 2310.05914, section 5.2).
"""

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from neftune_plugins.commands.terminal import table
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.sweep.rows import Row, read
from neftune_plugins.sweep.text import CHUNK, diversity, similarity

REPETITION_PENALTY = 1.2
MAX_NEW_TOKENS = 256
BATCH_SIZE = 8


@dataclass(frozen=True)
class Answer:
    """What the model answered to one row.

    rows: `held_out` or `trained_on`.
    length: in tokens, without the one that ends it.
    finished: whether it ended by itself, and not at the greatest length.
    """

    rows: str
    prompt: str
    reference: str
    answer: str
    length: int
    finished: bool


Encoded = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


def measure(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    name: str,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    chunk: int = CHUNK,
    answered: int | None = None,
) -> tuple[dict[str, float], list[Answer]]:
    """The values of a model in evaluation mode over these rows, each with `name` and _ before it, and its answers.

    loss: mean cross-entropy per token of the rows' answers, in nats. The others are of the first `answered` rows:
    length: mean of the model's answers, in tokens.
    unfinished: the share of them that were cut off at `max_new_tokens`.
    Those of `text.diversity` and `text.similarity`.

    Raises NEFTuneError for a row that the model cannot take, and for a loss that is not finite.
    """
    encoded = [row.encode(tokenizer) for row in rows]
    _fits(encoded, model.config, max_new_tokens)
    values = {"loss": loss(model, encoded, batch_size)}
    if not math.isfinite(values["loss"]):
        raise NEFTuneError(f"the {name} loss of the model is {values['loss']}: its training has diverged")
    ends = _ends(model, tokenizer)
    rows = rows[:answered]
    ids = generate(model, [prompt for prompt, _ in encoded[:answered]], ends, max_new_tokens, batch_size)
    answers = [
        Answer(
            rows=name,
            prompt=row.question,
            reference=row.answer,
            answer=tokenizer.decode(own, skip_special_tokens=True).strip(),
            length=len(own) - (own[-1] in ends),
            finished=own[-1] in ends,
        )
        for row, own in zip(rows, ids, strict=True)
    ]
    texts = [answer.answer for answer in answers]
    values["length"] = sum(answer.length for answer in answers) / len(answers)
    values["unfinished"] = sum(not answer.finished for answer in answers) / len(answers)
    values |= diversity(texts, chunk) | similarity(texts, [row.answer for row in rows])
    return {f"{name}_{key}": value for key, value in values.items()}, answers


@torch.no_grad()
def loss(model: Any, encoded: Sequence[Encoded], batch_size: int = BATCH_SIZE) -> float:
    """Mean cross-entropy per token of all answers, in nats."""
    total, tokens = 0.0, 0
    for batch in _batches(encoded, batch_size):
        ids_BL, mask_BL = _padded([prompt + answer for prompt, answer in batch], "right", model.device)
        logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL).logits
        for logits_LV, (prompt, answer) in zip(logits_BLV, batch, strict=True):
            # The logits of a token predict the next one; in float32, whatever dtype the model computes in.
            told_AV = logits_LV[len(prompt) - 1 : len(prompt) + len(answer) - 1].float()
            target_A = torch.tensor(answer, device=told_AV.device)
            total += torch.nn.functional.cross_entropy(told_AV, target_A, reduction="sum").item()
            tokens += len(answer)
    return total / tokens


@torch.no_grad()
def generate(
    model: Any, prompts: Sequence[Sequence[int]], ends: set[int], max_new_tokens: int, batch_size: int = BATCH_SIZE
) -> list[list[int]]:
    """The greedy answers, each up to the first of the tokens `ends`, that one included."""
    # Replaces the model's own, which may sample or have another penalty.
    model.generation_config = GenerationConfig(
        do_sample=False,
        repetition_penalty=REPETITION_PENALTY,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
    )
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: dict[int, list[int]] = {}
    for batch in _batches(order, batch_size):
        ids_BL, mask_BL = _padded([prompts[number] for number in batch], "left", model.device)
        output_BL = model.generate(input_ids=ids_BL, attention_mask=mask_BL)
        for number, row in zip(batch, output_BL[:, ids_BL.shape[1] :].tolist(), strict=True):
            end = next((position for position, token in enumerate(row, 1) if token in ends), len(row))
            answers[number] = row[:end]
    return [answers[number] for number in range(len(prompts))]


def _batches(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _padded(rows: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, L) ids and mask.

    A row is padded with its own first token: up to transformers 5.20 the repetition penalty does not look at the mask,
    and any other token, such as the one that ends an answer, would become less likely in padded rows.
    """
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = [row[0]] * (width - len(row))
        ids.append([*padding, *row] if side == "left" else [*row, *padding])
        real, none = [1] * len(row), [0] * len(padding)
        mask.append([*none, *real] if side == "left" else [*real, *none])
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: a model that was trained on another template than its own has two kinds."""
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


def _fits(encoded: Sequence[Encoded], config: Any, max_new_tokens: int) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    for number, (prompt, answer) in enumerate(encoded, 1):
        needed = len(prompt) + max(len(answer), max_new_tokens)
        if longest is not None and needed > longest:
            raise NEFTuneError(
                f"row {number} takes {len(prompt)} tokens for its prompt and up to {needed - len(prompt)} for the "
                f"answer, but the model has {longest} positions; leave it out, or lower --max-new-tokens"
            )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, or of the model that the adapter in it was trained on."""
    if not (folder / "tokenizer_config.json").exists() and (base := _base(folder)) is not None:
        return AutoTokenizer.from_pretrained(base)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError):
        raise NEFTuneError(f"{folder}: there is no tokenizer in it; name its folder with --tokenizer") from None


def load_model(folder: Path) -> Any:
    """The model in a folder, or an adapter with the model that it was trained on, in evaluation mode: on a GPU in the
    type in which it was saved, on a CPU in float32.

    Raises NEFTuneError for an adapter where PEFT is not installed.
    """
    cuda = torch.cuda.is_available()
    dtype = "auto" if cuda else torch.float32
    model: Any
    if _base(folder) is None:
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype)
    elif importlib.util.find_spec("peft") is None:
        raise NEFTuneError(f"{folder} holds an adapter, and needs PEFT: pip install peft")
    else:
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(folder, torch_dtype=dtype)
    return (model.cuda() if cuda else model).eval()


def _base(folder: Path) -> str | None:
    """The model of the adapter in a folder; None where there is no adapter in it."""
    adapter = folder / "adapter_config.json"
    return str(json.loads(adapter.read_text())["base_model_name_or_path"]) if adapter.exists() else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 1 and a message on standard error where it cannot do what it was asked for."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except NEFTuneError as error:
        sys.exit(f"neftune: {error}")


def _run(options: argparse.Namespace) -> None:
    sets = {"held_out": read(options.rows, options.instructions)[: options.limit]}
    if options.train is not None:
        sets["trained_on"] = read(options.train, options.instructions)[: options.limit]
    if not (options.model / "config.json").exists() and _base(options.model) is None:
        raise NEFTuneError(f"{options.model}: there is neither config.json nor adapter_config.json in it")
    tokenizer = load_tokenizer(options.tokenizer or options.model)
    model = load_model(options.model)
    values: dict[str, float] = {}
    answers: list[Answer] = []
    for name, rows in sets.items():
        found, given = measure(
            model,
            tokenizer,
            rows,
            name,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            chunk=options.chunk,
            answered=options.answers,
        )
        values |= found
        answers += given
    result = values | {"answers": list(map(asdict, answers))}
    options.result.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    print(table([(name, f"{value:.4f}") for name, value in values.items()], right=[1]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m neftune_plugins.sweep.measure", description="Measures a trained model: docs/sweep-report.md."
    )
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="with the trained model, or a LoRA adapter")
    parser.add_argument("rows", type=Path, metavar="ROWS", help="held-out rows, JSON lines or a JSON list")
    parser.add_argument("result", type=Path, metavar="RESULT.json", help="where values and answers are written")
    parser.add_argument("--train", type=Path, metavar="ROWS", help="rows of the training data, measured alike")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of the tokenizer, if not the model's")
    parser.add_argument(
        "--instructions",
        choices=("alpaca", "chat"),
        default="alpaca",
        help="how rows of instruction and output are put to the model (default: %(default)s)",
    )
    for option, least, default, help in (
        ("--max-new-tokens", 1, MAX_NEW_TOKENS, "longest answer"),
        ("--batch-size", 1, BATCH_SIZE, "rows at a time"),
        ("--chunk", 4, CHUNK, "number of words of an answer that repetition is measured in"),
        ("--limit", 1, None, "so many rows of each file, its first"),
        ("--answers", 1, None, "so many of these are answered, the first; the loss is of all"),
    ):
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(option, type=partial(_number, least), default=default, metavar="N", help=help + shown)
    return parser


def _number(least: int, text: str) -> int:
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return int(text)


if __name__ == "__main__":
    main()
