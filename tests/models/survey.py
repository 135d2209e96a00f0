"""Which noise enters the first block of every architecture of transformers, with the native hook and with ours.

python -m tests.models.survey --only llama bart      # prints rows
python -m tests.models.survey --write docs/models.md # the page
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import transformers
from torch import Tensor, nn
from transformers.integrations.neftune import neftune_post_forward_hook

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, install
from tests.models.tiny import WORDS, batch, model_classes, tiny_model

ALPHA = 5.0
SECONDS = 120


@dataclass
class Stack:
    """What is seen of the encoder or the decoder in one forward.

    lookup: name of the module that was called with the ids, or None.
    entered: name of the module that got the embeddings first.
    embedded (B, L, d): what the first gave.
    hidden (B, L, d): what the second got.
    """

    ids: Tensor
    lookup: str | None = None
    entered: str | None = None
    embedded: Tensor | None = None
    hidden: Tensor | None = None


class Witness:
    """Sees what the first block of each stack of a model gets: the first module with parameters that is called with
    (B, L, d) floats after the ids were looked up. Embeddings of positions are none."""

    def __init__(self, model: nn.Module, ids: dict[str, Tensor], reference: dict[str, Stack]) -> None:
        self.stacks = {name: Stack(ids) for name, ids in ids.items()}
        self.lookups = {id(self.stacks[name]): stack.lookup for name, stack in reference.items()}
        self.handles = []
        for name, module in model.named_modules():
            if module is model:
                continue
            self.handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(module, nn.Embedding):
                return
            if not any(True for _ in module.parameters()) and "norm" not in type(module).__name__.lower():
                return
            if any(isinstance(child, nn.ModuleList) for child in module.children()):
                return
            for value in _tensors(args, kwargs):
                for stack in self.stacks.values():
                    if stack.lookup is None or stack.lookup.startswith(f"{name}."):
                        continue
                    if stack.hidden is None and value.is_floating_point():
                        hidden = _as_batch(value, stack.ids)
                        if hidden is not None:
                            stack.entered, stack.hidden = name, hidden.detach().clone()

        return enter

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            for value in _tensors(args, kwargs):
                for stack in self.stacks.values():
                    known = self.lookups.get(id(stack), name) if self.lookups else name
                    if stack.lookup is None and known == name and _are(value, stack.ids):
                        embedded = _as_batch(output, stack.ids) if isinstance(output, Tensor) else None
                        if embedded is not None and (self.lookups or _are_embeddings(embedded, stack.ids)):
                            stack.lookup, stack.embedded = name, embedded.detach().clone()

        return leave


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    return (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _are(value: Tensor, ids_BL: Tensor) -> bool:
    """Whether these are the ids, a few of which the model may have replaced."""
    if value.is_floating_point() or value.numel() != ids_BL.numel() or value.dtype == torch.bool:
        return False
    rows = value.T if value.dim() == 2 and value.shape == ids_BL.T.shape else value.reshape(ids_BL.shape)
    return bool((rows == ids_BL).float().mean() > 0.5)


def _are_embeddings(embedded_BLD: Tensor, ids_BL: Tensor) -> bool:
    """Whether the same id has the same vector wherever it stands; it has not in a table of positions."""
    ids, vectors = ids_BL.flatten().tolist(), embedded_BLD.flatten(0, 1)
    first = {word: place for place, word in reversed(list(enumerate(ids)))}
    return all(torch.equal(vectors[place], vectors[first[word]]) for place, word in enumerate(ids) if word in WORDS)


def _as_batch(value: Tensor, ids_BL: Tensor) -> Tensor | None:
    B, L = ids_BL.shape
    if value.dim() >= 3 and value.shape[:2] == (B, L):
        return value
    if value.dim() == 3 and value.shape[:2] == (L, B):
        return value.transpose(0, 1)
    if value.dim() == 2 and value.shape[0] == B * L:
        return value.view(B, L, -1)
    return None


def forward(
    model: nn.Module,
    given: dict[str, Tensor],
    noise: Callable[[nn.Module], Any],
    reference: dict[str, Stack] | None = None,
) -> dict[str, Stack]:
    """One training forward and backward; what each stack got. `reference` is of a forward without noise."""
    ids = {"decoder": given["decoder_input_ids"]} if "decoder_input_ids" in given else {}
    if "input_ids" in given:
        ids["encoder" if ids else "decoder"] = given["input_ids"]
    with noise(model):
        witness = Witness(model, ids, reference or {})
        try:
            torch.manual_seed(0)
            output = model(**given)
            loss = getattr(output, "loss", None)
            if loss is None:
                loss = next(value for value in output.values() if isinstance(value, Tensor)).float().sum()
            loss.backward()
        finally:
            witness.close()
            model.zero_grad(set_to_none=True)
    return witness.stacks


@contextmanager
def clean(model: nn.Module) -> Iterator[None]:
    yield


@contextmanager
def native(model: nn.Module) -> Iterator[None]:
    """The hook as transformers' Trainer puts it."""
    embedding = model.get_input_embeddings()
    embedding.neftune_noise_alpha = ALPHA
    handle = embedding.register_forward_hook(neftune_post_forward_hook)
    try:
        yield
    finally:
        handle.remove()
        del embedding.neftune_noise_alpha


@contextmanager
def ours(model: nn.Module) -> Iterator[None]:
    with install(model, NoiseConfig(alpha=ALPHA)) as handle:
        handle.step = 0
        yield


@dataclass
class Verdict:
    """right, padded L, scaled, silent, refused, error or no text, with the factor or the message."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail}".strip()


def judge(got: Stack, clean: Stack, mask_BL: Tensor) -> Verdict:
    """Compares the noise of each example with alpha / sqrt(3 L d)."""
    if clean.lookup is None or clean.hidden is None:
        return Verdict("no text")
    assert got.hidden is not None
    difference = (got.hidden - clean.hidden).double()
    if not difference.any():
        return Verdict("silent")
    real_BL = mask_BL.bool()
    lengths = real_BL.sum(1).tolist()
    d = difference.shape[-1]
    ratios, errors = [], []
    for row, real_L, length in zip(difference, real_BL, lengths, strict=True):
        rms = row[real_L].square().mean().sqrt().item()
        ratios.append(rms / (ALPHA / math.sqrt(3 * length * d)))
        errors.append(math.sqrt(9 / 5 - 1) / (2 * math.sqrt(length * d)))
    padding = difference[~real_BL].any().item()
    width = mask_BL.shape[1]
    shrunk = [math.sqrt(length / width) for length in lengths]

    def factor(expected: list[float]) -> float | None:
        """What all ratios are this times of `expected`, if there is such a number."""
        weights = [length * d for length in lengths]
        relative = [ratio / want for ratio, want in zip(ratios, expected, strict=True)]
        mean = math.sqrt(sum(w * r * r for w, r in zip(weights, relative, strict=True)) / sum(weights))
        same = all(abs(r / mean - 1) < 5 * error for r, error in zip(relative, errors, strict=True))
        return mean if same else None

    embedded = (got.embedded - clean.embedded).double()
    if difference.shape == embedded.shape and embedded.any():
        scale = ((difference * embedded).sum() / embedded.square().sum()).item()
    else:
        scale = None
    overall = 5 * math.sqrt(9 / 5 - 1) / (2 * math.sqrt(sum(lengths) * d))
    for expected, kind in (([1.0] * len(ratios), "right"), (shrunk, "padded L")):
        found = factor(expected)
        if found is not None:
            if abs(found - 1) > overall:
                kind = f"{'' if kind == 'right' else kind + ', '}scaled {scale or found:.4g}"
            return Verdict(kind, "padding noised" if padding and "padded" not in kind else "")
    return Verdict("other", " / ".join(f"{ratio:.3g}" for ratio in ratios))


@dataclass
class Row:
    """What was found about one class of models."""

    model_type: str
    class_name: str
    mappings: list[str]
    native: dict[str, Verdict] = field(default_factory=dict)
    ours: dict[str, Verdict] = field(default_factory=dict)
    remark: str = ""
    debug: str = ""


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def examine(model_type: str, class_name: str, mappings: list[str]) -> Row:
    row = Row(model_type, class_name, mappings)
    try:
        model = tiny_model(model_type, class_name)
    except Exception as error:
        row.remark, row.debug = f"not built: {first_line(error)}", traceback.format_exc()
        return row
    try:
        given = batch(model, model_type)
        reference = forward(model, given, clean)
    except Exception as error:
        row.remark, row.debug = f"not run: {first_line(error)}", traceback.format_exc()
        return row
    masks = {name: given.get("attention_mask", torch.ones_like(stack.ids)) for name, stack in reference.items()}
    if "decoder_attention_mask" in given:
        masks["decoder"] = given["decoder_attention_mask"]
    for way, verdicts in ((native, row.native), (ours, row.ours)):
        try:
            got = forward(model, given, way, reference)
        except NoiseNotAppliedError as error:
            verdicts[""] = Verdict("refused", first_line(error))
            continue
        except Exception as error:
            verdicts[""] = Verdict("error", first_line(error))
            row.debug += traceback.format_exc()
            continue
        for name, stack in reference.items():
            verdicts[name] = judge(got[name], stack, masks[name])
    row.remark = "; ".join(f"{name}: {stack.lookup} -> {stack.entered}" for name, stack in reference.items())
    return row


def _child(pipe: Any, arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")
    pipe.send(examine(*arguments))
    pipe.close()


def examine_apart(model_type: str, class_name: str, mappings: list[str]) -> Row:
    """`examine` in a process of its own, which may crash or take too long."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, (model_type, class_name, mappings)))
    process.start()
    there.close()
    try:
        if here.poll(SECONDS):
            return here.recv()
        return Row(model_type, class_name, mappings, remark=f"not run: took more than {SECONDS} s")
    except EOFError:
        process.join()
        return Row(model_type, class_name, mappings, remark=f"not run: crashed with {process.exitcode}")
    finally:
        process.kill()
        process.join()


NOTE = """# Model families

Where the noise of `neftune_noise_alpha` goes in every architecture of transformers {version} that reads text: tiny models
with random weights, made from their configurations, one training forward and backward with the native hook
(`transformers.integrations.neftune`) and one with ours. Measured is what enters the first block, beyond what enters it
without noise, for encoder and decoder apart, against the paper's alpha / sqrt(3 L d) for each of three padded examples.

```bash
tox run -e models
.tox/models/bin/python -m tests.models.survey --write docs/models.md
```

- *right*: within the statistical tolerance, 5 standard errors.
- *padded L*: L is the width of the batch, and padding is noised.
- *scaled n*: the model multiplies the embedding by n after the noise went in.
- *silent*: it trains without noise and without a word.
- *refused*: the first training forward is an error.
"""


def _shown(verdicts: dict[str, Verdict]) -> str:
    both = [verdicts[name].kind for name in ("encoder", "decoder", "") if name in verdicts]
    return " / ".join(both)


def page(rows: list[Row]) -> str:
    """docs/models.md."""
    lines = [NOTE.format(version=transformers.__version__)]
    ran = [row for row in rows if row.ours]
    for row in ran:
        assert row.native
    totals: dict[str, dict[str, int]] = {"native": {}, "ours": {}}
    for row in ran:
        for way in totals:
            kind = worst(getattr(row, way))
            totals[way][kind] = totals[way].get(kind, 0) + 1
    kinds = [kind for kind in ORDER if any(kind in count for count in totals.values())]
    lines += [f"Of {len(rows)} classes of models {len(ran)} could be built and trained.", ""]
    lines += ["| | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for way, count in totals.items():
        lines.append(f"| {way} | " + " | ".join(str(count.get(kind, 0)) for kind in kinds) + " |")
    lines += ["", "Encoder / decoder where a model has both.", ""]
    lines += ["| model type | class | mappings | native | ours | remark |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row.model_type, row.class_name, ", ".join(row.mappings), _shown(row.native), _shown(row.ours)]
        remark = row.remark.replace("|", "\\|") if not row.ours else ""
        lines.append("| " + " | ".join([*cells, remark]) + " |")
    return "\n".join(lines) + "\n"


ORDER = ["error", "refused", "silent", "other", "scaled", "padded L", "no text", "right"]


def worst(verdicts: dict[str, Verdict]) -> str:
    """Of encoder and decoder the one that is less right, without the factor."""
    kinds = [next(kind for kind in ORDER if kind in verdict.kind) for verdict in verdicts.values()]
    return min(kinds, key=ORDER.index)


def survey(only: list[str] | None) -> Iterator[Row]:
    """All rows, in the order of the alphabet."""
    examine("llama", "LlamaForCausalLM", [])  # imports, once for all children
    for (model_type, class_name), mappings in sorted(model_classes().items()):
        if not only or model_type in only:
            yield examine_apart(model_type, class_name, mappings)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--debug", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in survey(arguments.only):
        rows.append(row)
        show = lambda verdicts: " / ".join(f"{n}: {v}" for n, v in sorted(verdicts.items(), reverse=True))
        print(f"{row.model_type} | {row.class_name} | {show(row.native)} | {show(row.ours)} | {row.remark}", flush=True)
        if arguments.debug and row.debug:
            print("#" * 9, row.model_type, row.class_name, row.debug, file=sys.stderr, flush=True)
    if arguments.write:
        arguments.write.write_text(page(rows))


if __name__ == "__main__":
    main()
