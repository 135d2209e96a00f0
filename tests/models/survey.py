"""Which noise enters the first block of every architecture of transformers, with the native hook and with ours.

python -m tests.models.survey --only llama bart       # prints rows
python -m tests.models.survey --write docs/models.md  # the page
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported once here rather than in each child
import transformers
from torch import Tensor, nn

from benchmarks.noise import ALPHA, noise_natively
from neftune_plugins import NoiseConfig, NoiseNotAppliedError, install
from tests.models.families import EXPECTED
from tests.models.tiny import WORDS, batch, model_classes, tiny_model

SECONDS = 120
STANDARD_ERRORS = 5

# Verdicts from bad to good; those of a row begin with one of them.
KINDS = ("error", "refused", "silent", "other", "scaled", "padded L", "right", "no text")


@dataclass
class Stack:
    """What is seen of the encoder or the decoder in one forward.

    ids (B, L): its tokens.
    lookup: name of the module that looked them up, and embedded (B, L, d) what it gave; node is where autograd has it.
    entered: name of the module that got the embeddings first, and hidden (B, L, ...) what it got.
    """

    ids: Tensor
    lookup: str | None = None
    embedded: Tensor | None = None
    node: Any = None
    entered: str | None = None
    hidden: Tensor | None = None


class Witness:
    """Sees in `stacks` what the first block of each stack gets: the first module with weights, or the first norm, that
    is called with floats which stem from the embeddings. Tables of positions are none, nor are lists of blocks and what
    the embedding is in: these may scale what they got.

    lookups: the names of the modules that look the tokens up, by stack, where they are known.
    """

    def __init__(self, model: nn.Module, ids: Mapping[str, Tensor], lookups: Mapping[str, str | None]) -> None:
        self.stacks = {name: Stack(tokens) for name, tokens in ids.items()}
        self._lookups = lookups
        self._handles = []
        for name, module in model.named_modules():
            if module is not model:
                if _may_be_first(module):
                    self._handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for stack in self.stacks.values():
                if stack.lookup is None or stack.hidden is not None or stack.lookup.startswith(f"{name}."):
                    continue
                for value in _tensors(args, kwargs):
                    hidden = _rows(value, stack.ids) if value.is_floating_point() else None
                    if hidden is not None and _stems_from(value, stack.node):
                        stack.entered, stack.hidden = name, hidden.detach().clone()
                        break

        return enter

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            for key, stack in self.stacks.items():
                if stack.lookup is not None or self._lookups.get(key, name) != name:
                    continue
                if not any(_are_tokens(value, stack.ids) for value in _tensors(args, kwargs)):
                    continue
                embedded = _rows(output, stack.ids) if isinstance(output, Tensor) else None
                if embedded is not None and (self._lookups or _is_by_token(embedded, stack.ids)):
                    stack.lookup, stack.embedded, stack.node = name, embedded.detach().clone(), output.grad_fn

        return leave


def _may_be_first(module: nn.Module) -> bool:
    has_weights = next(module.parameters(), None) is not None or "norm" in type(module).__name__.lower()
    holds_blocks = any(isinstance(child, nn.ModuleList) for child in module.children())
    return has_weights and not holds_blocks and not isinstance(module, nn.Embedding)


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    return (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _are_tokens(value: Tensor, ids_BL: Tensor) -> bool:
    """Whether these are the ids, a few of which the model may have replaced."""
    if value.is_floating_point() or value.dtype == torch.bool:
        return False
    rows = _rows(value[..., None], ids_BL)
    return rows is not None and rows.dim() == 3 and bool((rows[..., 0] == ids_BL).float().mean() > 0.5)


def _is_by_token(embedded_BLD: Tensor, ids_BL: Tensor) -> bool:
    """Whether the same id has the same vector wherever it stands; it has not in a table of positions."""
    ids, vectors = ids_BL.flatten().tolist(), embedded_BLD.flatten(0, 1)
    first = {token: place for place, token in reversed(list(enumerate(ids)))}
    return all(torch.equal(vectors[place], vectors[first[token]]) for place, token in enumerate(ids) if token in WORDS)


def _stems_from(value: Tensor, node: Any) -> bool:
    """Whether autograd knows of a way from `node` to `value`; it is believed where autograd does not look."""
    if not torch.is_grad_enabled():
        return True
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        current = waiting.pop()
        if current is node:
            return True
        if current is not None and current not in seen:
            seen.add(current)
            waiting.extend(before for before, _ in current.next_functions)
    return False


def _rows(value: Tensor, ids_BL: Tensor) -> Tensor | None:
    """`value` as (B, L, ...): of several streams behind one another the first, or what comes behind a prompt. None
    where it has another form."""
    B, L = ids_BL.shape
    if value.dim() >= 3 and value.shape[0] == B and value.shape[1] >= L:
        return value[:, :L] if value.shape[1] % L == 0 else value[:, -L:]
    if value.dim() == 3 and value.shape[:2] == (L, B):
        return value.transpose(0, 1)
    if value.dim() == 2 and value.shape[0] == B * L:
        return value.view(B, L, -1)
    return None


Way = Callable[[nn.Module], AbstractContextManager[Any]]


@contextmanager
def native(model: nn.Module) -> Iterator[None]:
    handle = noise_natively(model)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ours(model: nn.Module) -> Iterator[None]:
    with install(model, NoiseConfig(alpha=ALPHA)) as handle:
        handle.step = 0
        yield


def train(
    model: nn.Module,
    given: Mapping[str, Tensor],
    way: Way = nullcontext,
    lookups: Mapping[str, str | None] | None = None,
) -> dict[str, Stack]:
    """One training forward and backward; what "encoder" and "decoder" got. A model of one stack is a decoder."""
    names = {"input_ids": "encoder", "decoder_input_ids": "decoder"}
    if "decoder_input_ids" not in given:
        names = {"input_ids": "decoder"}
    ids = {stack: given[name] for name, stack in names.items() if name in given and given[name].dim() == 2}
    with way(model):
        witness = Witness(model, ids, lookups or {})
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


def judge(got: Stack, clean: Stack, mask_BL: Tensor) -> str:
    """The noise of each example against alpha / sqrt(3 L d): a verdict, and its factor."""
    if clean.hidden is None:
        return "no text"
    noise = (got.hidden - clean.hidden).double()
    if not noise.any():
        return "silent"
    real_BL = mask_BL.bool()
    # What an image replaces has no noise, and counts in L.
    text_BL = real_BL & (clean.ids >= WORDS.start) & (clean.ids < WORDS.stop)
    d = clean.embedded.shape[-1]
    if noise.shape[-1] > d and noise.shape[-1] % d == 0:  # copies of the embedding, or other features beside it
        noise = noise.unflatten(-1, (-1, d))
        noise = noise[..., noise.flatten(0, -3).any(-1).any(0), :]
    lengths = real_BL.sum(1).tolist()
    sizes = [n * d for n in text_BL.sum(1).tolist()]
    rms = [row[text].square().mean().sqrt().item() for row, text in zip(noise, text_BL, strict=True)]
    ratios = [value / (ALPHA / math.sqrt(3 * length * d)) for value, length in zip(rms, lengths, strict=True)]
    of_width = [math.sqrt(length / mask_BL.shape[1]) for length in lengths]

    added = (got.embedded - clean.embedded).double()
    scale = 1.0
    if noise.shape == added.shape and added.any():
        scale = ((noise * added)[text_BL].sum() / added[text_BL].square().sum()).item()

    for factor, scaled in ((1.0, ""), (scale, f"scaled {scale:.4g}")):
        if _agree([ratio / factor for ratio in ratios], [1.0] * len(ratios), sizes):
            padded = "padding noised" if noise[~real_BL].any() else ""
            return ", ".join(part for part in (scaled, padded) if part) or "right"
        if _agree([ratio / factor for ratio in ratios], of_width, sizes):
            return ", ".join(part for part in ("padded L", scaled) if part)
    return "other " + " ".join(f"{ratio:.2f}" for ratio in ratios)


def _agree(ratios: list[float], expected: list[float], sizes: list[int]) -> bool:
    """Whether root mean squares of so many uniform numbers are as expected, each of them and all together."""
    relative = [ratio / want for ratio, want in zip(ratios, expected, strict=True)]
    total = math.sqrt(sum(n * r * r for n, r in zip(sizes, relative, strict=True)) / sum(sizes))

    def is_one(value: float, size: int) -> bool:
        # The standard error of the root mean square of n uniform numbers: sqrt(9/5 - 1) / (2 sqrt(n)).
        return abs(value - 1) < STANDARD_ERRORS * math.sqrt((9 / 5 - 1) / size) / 2

    return is_one(total, sum(sizes)) and all(map(is_one, relative, sizes))


@dataclass
class Row:
    """What was found about one class of models.

    native, ours: the verdicts by stack, or one of the whole model under "".
    message: of the error, where there was one.
    """

    model_type: str
    class_name: str
    mappings: list[str]
    native: dict[str, str] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    message: str = ""


def shown(verdicts: Mapping[str, str]) -> str:
    """Encoder / decoder, one of them where there is no other."""
    return " / ".join(verdicts[stack] for stack in ("", "encoder", "decoder") if stack in verdicts)


def kind(verdicts: Mapping[str, str]) -> str:
    """Of encoder and decoder the worse, without its factor."""
    return next(word for word in KINDS if any(word in verdict for verdict in verdicts.values()))


def examine(model_type: str, class_name: str, mappings: list[str]) -> Row:
    row = Row(model_type, class_name, mappings)
    try:
        model = tiny_model(model_type, class_name)
        given = batch(model, model_type)
        clean = train(model, given)
    except Exception as error:
        row.message = _first_line(error)
        return row
    lookups = {stack: seen.lookup for stack, seen in clean.items()}
    mask_of = {"encoder": "attention_mask", "decoder": "decoder_attention_mask"}
    if "decoder_input_ids" not in given:
        mask_of["decoder"] = "attention_mask"
    masks = {stack: given.get(mask_of[stack], torch.ones_like(seen.ids)) for stack, seen in clean.items()}
    for way, verdicts in ((native, row.native), (ours, row.ours)):
        try:
            got = train(model, given, way, lookups)
        except NoiseNotAppliedError as error:
            verdicts[""], row.message = "refused", _first_line(error)
        except Exception as error:
            verdicts[""], row.message = "error", _first_line(error)
        else:
            verdicts |= {stack: judge(got[stack], seen, masks[stack]) for stack, seen in clean.items()} or {
                "": "no text"
            }
    return row


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


def examine_apart(model_type: str, class_name: str, mappings: list[str]) -> Row:
    """`examine` in a process of its own, which may crash or take too long."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def child() -> None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        there.send(examine(model_type, class_name, mappings))

    process = context.Process(target=child)
    process.start()
    there.close()
    try:
        if here.poll(SECONDS):
            return here.recv()
        return Row(model_type, class_name, mappings, message=f"took more than {SECONDS} s")
    except EOFError:
        process.join()
        return Row(model_type, class_name, mappings, message=f"ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


HEAD = """# Model families

Look up whether your model gets the right noise, with this package and with the native hook.

The table covers the architectures of transformers {version}: each class of its mappings for causal LM, sequence to
sequence, image-text-to-text and speech-to-text, as a tiny model with random weights. Each class runs one forward and
backward pass in training with the native hook (`transformers.integrations.neftune`) and one with this package. The
survey compares the noise that enters the first block, of encoder and decoder separately, with the paper's
alpha / sqrt(3 L d) in each of three padded examples.

```bash
tox run -e models --notest
.tox/models/bin/python -m tests.models.survey --write docs/models.md
```

- *right*: within {errors} standard errors of the paper's noise in every example, and no noise on padding.
- *padded L*: L is the width of the batch, and padding is noised.
- *scaled n*: the model multiplies the noised embedding by n. The survey sets embedding multipliers to 3 and turns on
  scaled embeddings; a width of 64 gives a factor of 8.
- *silent*: the model trains without noise, without an error or a warning.
- *refused*: installation or the first forward pass in training raises an error that names the reason. *error*: it
  raises another error.
- *no text*: the ids are audio codes, several per frame.

{total} classes; {ran} of them could be made tiny and trained. Of encoder and decoder, the worse result counts.
"""


def page(rows: list[Row]) -> str:
    """docs/models.md."""
    ran = [row for row in rows if row.ours]
    counts = {"native": Counter(kind(row.native) for row in ran), "ours": Counter(kind(row.ours) for row in ran)}
    kinds = [word for word in reversed(KINDS) if any(word in count for count in counts.values())]
    lines = [HEAD.format(version=transformers.__version__, errors=STANDARD_ERRORS, total=len(rows), ran=len(ran))]
    lines += [f"| | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    lines += [f"| {way} | {' | '.join(str(count[word]) for word in kinds)} |" for way, count in counts.items()]
    lines += ["", "| model type | class | mapping | native | ours | remark |", "|---|---|---|---|---|---|"]
    for row in rows:
        remark = EXPECTED.get(row.class_name, ("", ""))[1]
        cells = [row.model_type, row.class_name, ", ".join(row.mappings), shown(row.native), shown(row.ours), remark]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="model types")
    parser.add_argument("--write", type=Path, help="file for the page")
    arguments = parser.parse_args()
    rows = []
    for (model_type, class_name), mappings in model_classes().items():
        if arguments.only is None or model_type in arguments.only:
            row = examine_apart(model_type, class_name, mappings)
            print(" | ".join([model_type, class_name, shown(row.native), shown(row.ours), row.message]), flush=True)
            rows.append(row)
    if arguments.write:
        arguments.write.write_text(page(rows))


if __name__ == "__main__":
    main()
