"""Read, from outside, what noise entered a causal language model: a witness that shares no code with the project.

Shapes: B rows, L columns of a batch, d width of the embedding, L_i tokens of example i.

    probe = Probe().attach(model)      # last, so that its hooks run behind everyone else's
    trainer.train()
    for call in probe.calls:
        for example in per_example(call, pad_id):
            print(call.training, example.row, len(example.ids), ratio(example, alpha=5))
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import specification


@dataclass
class Call:
    """One forward pass of the model; all tensors are copies on the CPU.

    input_ids, attention_mask, position_ids: as the model got them, usually (B, L); None where absent or not a tensor.
    noise (B, L, d) fp32: what entered the first block minus the clean embedding; None if no block ran or no ids came.
    training, grad_enabled: of the model, when its forward began.
    recomputes: the same difference, once for each time that gradient checkpointing ran the first block again.
    """

    input_ids: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    training: bool
    grad_enabled: bool
    global_step: int | None = None
    noise: Tensor | None = None
    recomputes: list[Tensor] = field(default_factory=list)


@dataclass
class Example:
    """One example of a batch: `index` (L_i,) are its columns in `row`, `ids` (L_i,) its tokens, `noise` (L_i, d)."""

    row: int
    index: Tensor
    ids: Tensor
    noise: Tensor


class Probe:
    """Records in `calls` each forward pass of the model it is attached to. Touches no random state, holds no graph.

    `clean(ids) -> (B, L, d)` gives the embedding without noise; left out, it is the forward of the embedding's class
    with every hook disabled, which is right for LoRA on the embedding and for embeddings that scale their output.
    Set `global_step` to have it noted in the calls that follow.
    """

    def __init__(self, clean: Callable[[Tensor], Tensor] | None = None) -> None:
        self.calls: list[Call] = []
        self.global_step: int | None = None
        self._clean = clean
        self._handles: list[Any] = []
        self._open: list[Call] = []  # one frame for each watched forward now running, all with the outermost's call
        self._ids: Tensor | None = None  # of the open call, on their own device
        self._inputs: list[tuple[Call, Tensor, int]] = []  # this step's calls, their ids, address of the block's input

    def attach(self, model: nn.Module) -> Probe:
        """Put the hooks on `model`, which may be wrapped (PEFT, DDP); the innermost causal model in it is watched."""
        self._model = find_causal_model(model)
        self._embedding = self._model.get_input_embeddings()
        for owner in (self._model, self._model.model):  # some trainers call the decoder alone
            self._handles += [
                owner.register_forward_pre_hook(self._enter, with_kwargs=True),
                owner.register_forward_hook(self._leave, always_call=True),
            ]
        # The first block's first norm gets what the block gets. A hook on the block itself would miss the recomputes
        # of gradient checkpointing: transformers 5.23 keeps it outside the checkpoint.
        block = self._model.model.layers[0]
        first = getattr(block, "input_layernorm", block)
        self._handles.append(first.register_forward_pre_hook(self._block, with_kwargs=True))
        return self

    def detach(self) -> None:
        """Take all hooks off again; the records stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()
        self._inputs.clear()
        self._ids = None

    def save(self, path: Path | str) -> None:
        """Write the records as plain dicts, for a probe in a subprocess."""
        torch.save([asdict(call) for call in self.calls], path)

    @classmethod
    def load(cls, path: Path | str) -> Probe:
        """The records of `save`, in a probe that is attached to nothing."""
        probe = cls()
        probe.calls = [Call(**record) for record in torch.load(path, weights_only=True)]
        return probe

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open and module is not self._model:
            self._open.append(self._open[0])
            return
        self._open.clear()  # an interrupted forward leaves its frames behind

        def argument(position: int, name: str) -> Tensor | None:
            value = args[position] if len(args) > position else kwargs.get(name)
            return value.detach() if isinstance(value, Tensor) else None

        self._ids = argument(0, "input_ids")
        call = Call(
            input_ids=_copy(self._ids),
            attention_mask=_copy(argument(1, "attention_mask")),
            position_ids=_copy(argument(2, "position_ids")),
            training=module.training,
            grad_enabled=torch.is_grad_enabled(),
            global_step=self.global_step,
        )
        if self._inputs and self._inputs[-1][0].global_step != self.global_step:
            self._inputs.clear()
        self.calls.append(call)
        self._open.append(call)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._open:
            return
        call = self._open.pop()
        # The audit stops its own half forwards, without gradients, before the first block.
        if output is None and not self._open and call.noise is None and not call.grad_enabled:
            self.calls[:] = [other for other in self.calls if other is not call]

    def _block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach()
        if self._open:
            call, ids = self._open[0], self._ids
            if ids is not None and call.noise is None:  # without ids (inputs_embeds) there is nothing to compare with
                call.noise = self._noise(hidden, ids)
                self._inputs.append((call, ids, hidden.data_ptr()))
            return
        # Backward runs the block again. Its saved input has kept its address, unless it was offloaded.
        likely = [entry for entry in self._inputs if entry[0].grad_enabled and entry[1].shape == hidden.shape[:2]]
        same = [entry for entry in likely if entry[2] == hidden.data_ptr()]
        if not likely:
            raise RuntimeError("the first block ran outside any forward that this probe has seen")
        call, ids, _ = (same or likely)[-1]
        call.recomputes.append(self._noise(hidden, ids))

    @torch.no_grad()
    def _noise(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden (B, L, d), ids (B, L) -> hidden minus clean embedding (B, L, d), fp32 on the CPU."""
        with torch.random.fork_rng(devices=[]), without_hooks(self._embedding):
            clean = self._clean or (lambda ids: type(self._embedding).forward(self._embedding, ids))
            return (hidden.float() - clean(ids).float()).cpu()


def find_causal_model(model: nn.Module) -> Any:
    """The innermost module of `model` whose `.model.layers` is a list of blocks.

    Raises:
        LookupError: there is none.
    """
    found = None
    for module in model.modules():  # outer ones first
        if isinstance(getattr(getattr(module, "model", None), "layers", None), nn.ModuleList):
            found = module
    if found is None:
        raise LookupError(f"no module with `.model.layers` in {type(model).__name__}")
    return found


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Disable all forward hooks of `module` and of the modules in it."""
    saved = [(m, m._forward_hooks, m._forward_pre_hooks) for m in module.modules()]
    try:
        for m, _, _ in saved:
            m._forward_hooks, m._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for m, hooks, pre_hooks in saved:
            m._forward_hooks, m._forward_pre_hooks = hooks, pre_hooks


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to("cpu", copy=True)


def per_example(call: Call, pad_id: int | None) -> list[Example]:
    """The examples of a batch, row by row, each in the order of its tokens: as the specification tells them."""
    assert call.input_ids is not None and call.noise is not None, "this call has no ids or no noise"
    found = []
    for row, examples in enumerate(specification.examples_of({**vars(call), "pad_token_id": pad_id})):
        for columns in examples:
            index = torch.tensor(columns)
            found.append(Example(row, index, call.input_ids[row, index], call.noise[row, index]))
    return found


def padding_noise(call: Call, pad_id: int | None) -> Tensor:
    """Noise (N, d) on the N tokens that belong to no example; the paper puts none there."""
    assert call.input_ids is not None and call.noise is not None, "this call has no ids or no noise"
    is_padding = torch.ones(call.input_ids.shape, dtype=torch.bool)
    for example in per_example(call, pad_id):
        is_padding[example.row, example.index] = False
    return call.noise[is_padding]


def ratio(example: Example, alpha: float) -> float:
    """Root mean square of the noise over the paper's: alpha / sqrt(L_i d), times 1 / sqrt(3) for uniform in [-1, 1)."""
    length, width = example.noise.shape
    expected = alpha / math.sqrt(3) / math.sqrt(length * width)
    return example.noise.double().square().mean().sqrt().item() / expected
