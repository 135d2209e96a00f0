"""What the noise asks of an accelerator: bytes and launches, counted without one.

`Counts` sees every operation on tensors of its device. An operation reads each tensor that it is given once and writes
each that it gives once, and is one launch; views and allocations are none. (PyTorch may need more than one launch for a
scan: a count is the least.) A Triton kernel counts by its arguments.

`accelerator` is a device that this machine does not have: tensors on it have shapes and no values.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.record import table
from neftune_plugins import NoiseConfig, install
from neftune_plugins.model import adding
from neftune_plugins.noise import draw, kernels

ROWS, WIDTH, DIM = 4, 512, 2048
DTYPES = ("float32", "bfloat16", "float16")
PAD = 0
ALPHA = 5.0

_ALLOCATES = (
    "aten::empty",
    "aten::new_empty",
    "aten::lift_fresh",
    "aten::resize_",
    "aten::set_",
    "prim::",
    "profiler::",
)
# Fills, and then copies.
_TWO_LAUNCHES = ("aten::constant_pad_nd",)
# Do not read the tensor that they write, or whose shape they take.
_ONLY_WRITES = (
    *("aten::uniform_", "aten::fill_", "aten::zero_", "aten::copy_"),
    *("aten::zeros_like", "aten::full_like", "aten::new_zeros"),
)
# The tensor that a Triton kernel changes in place has this name; it reads or writes each of the others once.
_IN_PLACE = "x_ptr"


class Counts(TorchDispatchMode):
    """Counts the operations on one type of device inside of it.

    dim: bytes that are read and written in tables with rows of this many elements count as `large`.
    launches: names of the operations, in order. waits: those that make the host wait for the device.
    peak: the most bytes that tensors made inside held at once.
    """

    def __init__(self, dim: int = 0, device: str = "cuda") -> None:
        super().__init__()
        self.dim, self.device = dim, device
        self.large = self.small = self.held = self.peak = 0
        self.launches: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        given, made = _tensors((args, kwargs)), _tensors(result)
        devices = {tensor.device.type for tensor in (*given, *made)}
        if name == "aten::_local_scalar_dense" or (len(devices) > 1 and name in ("aten::_to_copy", "aten::copy_")):
            self.waits.append(name)
        if self.device in devices and not name.startswith(_ALLOCATES) and not _is_view(func):
            self.launches += [name] * (2 if name in _TWO_LAUNCHES else 1)
            reads = given[1:] if name in _ONLY_WRITES else given
            for tensor in (*reads, *made):
                self._moved(tensor)
        for tensor in made:
            self._hold(tensor, is_new=all(tensor is not other for other in given) and not _is_view(func))
        return result

    def _hold(self, tensor: Tensor, *, is_new: bool) -> None:
        if not is_new or tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.held -= size

    def _moved(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            return
        held = 1  # an expanded tensor has fewer values than elements
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            held *= size if stride else 1
        if self.dim and tensor.dim() > 1 and tensor.shape[-1] == self.dim:
            self.large += held * tensor.element_size()
        else:
            self.small += held * tensor.element_size()

    def launched(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        """A Triton kernel was launched."""
        self.launches.append(kernel.fn.__name__)
        for name, value in (*zip(kernel.arg_names, args, strict=False), *kwargs.items()):
            if isinstance(value, Tensor):
                for _ in range(2 if name == _IN_PLACE else 1):
                    self._moved(value)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _is_view(func: Any) -> bool:
    return any(found.alias_info is not None and not found.alias_info.is_write for found in func._schema.returns)


@contextlib.contextmanager
def accelerator(*, with_kernels: bool = True) -> Iterator[None]:
    """Inside, tensors are made on a device "cuda" that need not exist, and the noise is added as on an accelerator on
    which every kernel works, or on which none does."""

    def choose(path: str, make: Callable[[], Any], differs: object) -> kernels.Choice:
        return kernels.Choice(path, "counted", make())

    draw._kept_codes.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.callback(draw._kept_codes.cache_clear)
        stack.enter_context(patch.dict(os.environ, {kernels.VARIABLE: str(int(with_kernels))}))
        stack.enter_context(patch.object(kernels, "_choices", {}))
        stack.enter_context(patch.object(kernels, "_choose", choose))
        stack.enter_context(patch.object(kernels, "Tensor", FakeTensor))
        stack.enter_context(patch.object(torch.cuda, "is_current_stream_capturing", lambda: False))
        if with_kernels:
            from triton.runtime.jit import JITFunction

            stack.enter_context(patch.object(JITFunction, "run", _launch))
        # A tensor without values is of another type, which is never overwritten.
        stack.enter_context(patch.object(adding, "Tensor", FakeTensor))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def _launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    for mode in reversed(torch.utils._python_dispatch._get_current_dispatch_mode_stack()):
        if isinstance(mode, Counts):
            mode.launched(kernel, *args, **kwargs)


def batches() -> dict[str, dict[str, Tensor]]:
    """One batch of each form, on the accelerator."""
    ids = torch.randint(1, 100, (ROWS, WIDTH), device="cuda")
    ones = torch.ones_like(ids)
    return {
        "ids alone": {"input_ids": ids},
        "mask of 0 and 1": {"input_ids": ids, "attention_mask": ones},
        "positions (packed)": {"input_ids": ids, "position_ids": ones},
        "mask and positions": {"input_ids": ids, "attention_mask": ones, "position_ids": ones},
        "mask of 4 dimensions": {
            "input_ids": ids,
            "attention_mask": ones.bool()[:, None, None].expand(-1, 1, WIDTH, -1),
        },
    }


class Lookup(nn.Module):
    """A model that is its embedding alone, with a padding id, as language models have one."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=PAD)
        self.embed_tokens = nn.Embedding(100, DIM, device="cuda", dtype=getattr(torch, dtype))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        return self.embed_tokens(input_ids)


def forward(kind: str, dtype: str, form: str, *, metrics: bool, with_kernels: bool = True) -> dict[str, Any]:
    """The counts of what noise adds to one lookup. kind: a noise type, "native" or "add"."""
    elements = ROWS * WIDTH * DIM
    with accelerator(with_kernels=with_kernels):
        model, batch = Lookup(dtype).train(), batches()[form]
        run: Callable[[], object] = partial(model, **batch)
        with contextlib.ExitStack() as stack:
            if kind == "add":
                constant = model(**batch).detach()
                run = partial(constant.add_, 1.0)
            elif kind == "native":
                from benchmarks.noise import noise_natively

                stack.callback(noise_natively(model).remove)
            else:
                handle = stack.enter_context(
                    install(model, NoiseConfig(alpha=ALPHA, seed=0, type=kind, metrics=metrics))
                )
                handle.step = 0
                run()  # what is done once in a run
                handle.step = 1
            with Counts(DIM) as counts:
                run()
    launches = [name for name in counts.launches if name != "aten::embedding"]
    output = elements * getattr(torch, dtype).itemsize
    # Beside the noise, the lookup reads the ids and the weight, which is small here, and writes the output.
    weight = 100 * DIM * getattr(torch, dtype).itemsize
    large, small = (0, 0) if kind == "add" else (output + weight, ROWS * WIDTH * 8)
    return {
        "noise": kind,
        "dtype": dtype,
        "batch": form,
        "metrics": metrics,
        "kernels": with_kernels,
        "bytes an element": (counts.large - large) / elements,
        "bytes a token": (counts.small - small) / (ROWS * WIDTH),
        "launches": len(launches),
        "scratch": max(0, counts.peak - (0 if kind == "add" else output)) / output,
        "waits": len(counts.waits),
    }


def counted() -> dict[str, Any]:
    """Everything, as it is written to JSON."""
    mask = "mask of 0 and 1"
    rows = []
    for dtype in DTYPES:
        rows += [forward(kind, dtype, mask, metrics=False) for kind in ("add", "native")]
        for kind in ("uniform", "bernoulli", "gaussian"):
            rows += [forward(kind, dtype, mask, metrics=metrics) for metrics in (False, True)]
    for form in batches_by_name():
        for with_kernels in (True, False):
            rows += [
                forward("uniform", "bfloat16", form, metrics=metrics, with_kernels=with_kernels)
                for metrics in (False, True)
            ]
    return {"torch": torch.__version__, "shape": f"{ROWS}x{WIDTH}x{DIM}", "counts": rows}


def batches_by_name() -> Sequence[str]:
    with accelerator():
        return list(batches())


def tables(result: dict[str, Any]) -> str:
    rows = result["counts"]
    by_type = [row for row in rows if row["kernels"] and row["batch"] == "mask of 0 and 1"]
    unique = {(row["noise"], row["dtype"], row["metrics"]): row for row in by_type}.values()
    shown = [
        [
            row["noise"],
            row["dtype"],
            "" if row["noise"] in ("add", "native") else "on" if row["metrics"] else "off",
            f"{row['bytes an element']:.2f}",
            f"{row['bytes a token']:.0f}",
            str(row["launches"]),
            f"{row['scratch']:.2f}",
        ]
        for row in unique
    ]
    forms: dict[str, dict[tuple[bool, bool], int]] = {}
    for row in rows:
        if (row["noise"], row["dtype"]) == ("uniform", "bfloat16"):
            forms.setdefault(row["batch"], {})[row["kernels"], row["metrics"]] = row["launches"]
    order = [(True, False), (True, True), (False, False), (False, True)]
    launches = [[form, *(str(found[key]) for key in order)] for form, found in forms.items()]
    return "\n\n".join(
        [
            f"Counted with tensors that have no values, on a device that the machine does not have (torch "
            f"{result['torch']}, {result['shape']}); no time was measured.",
            table(["noise", "type", "metrics", "bytes an element", "bytes a token", "launches", "scratch"], shown),
            table(
                ["batch", "launches", "with metrics", "launches without kernels", "with metrics, without kernels"],
                launches,
            ),
        ]
    )
