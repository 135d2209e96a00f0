"""Faster implementations of the noise than the plain one: one pass over each tensor, with the same bits. They are C
loops on CPUs, Triton kernels on accelerators.

A kernel is used only after it has given the bits of the plain path on a few rows of this process's device. Without
one the plain path is used; `chosen` says which and why, and one warning is logged for each reason why a kernel failed.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from neftune_plugins.noise.kernels import trials
from neftune_plugins.noise.kernels.form import Add, Arrange, Before, KernelDraw, Key

VARIABLE = "NEFTUNE_KERNELS"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


@dataclass(frozen=True)
class Choice:
    """What does a part of the noise on a device: `path` is "C loop", "Triton kernel" or "plain", and `reason` why."""

    path: str
    reason: str
    kernel: Any = None


_choices: dict[tuple[torch.device, str, torch.dtype], Choice] = {}
_warned: set[str] = set()


def chosen() -> dict[tuple[str, str, torch.dtype], Choice]:
    """The choices of this process so far: by device, the noise type or the part of the noise, and dtype."""
    return {(str(device), name, dtype): choice for (device, name, dtype), choice in _choices.items()}


def kernel_for(
    x_ND: Tensor, name: str, draw: KernelDraw | None, unit: float, mean_square: float, plain: Add
) -> Add | None:
    """What adds noise of this type to x_ND in one pass; None if the plain path has to.

    name, draw, unit, mean_square: of the noise type. plain: the plain path, which a kernel has to equal.
    """
    if draw is None or x_ND.dtype not in DTYPES or not has_memory(x_ND) or not x_ND.is_contiguous():
        return None

    def make() -> Add:
        if x_ND.device.type == "cpu":
            from neftune_plugins.noise.kernels.loop import c_loop

            return c_loop(draw.c, unit, mean_square)
        from neftune_plugins.noise.kernels.accelerator import triton_kernel

        return triton_kernel(draw, unit, mean_square)

    def differs(add: Add) -> str:
        return trials.of_add(add, plain, x_ND.device, x_ND.dtype)

    return _chosen(x_ND.device, name, x_ND.dtype, make, differs)


def before_for(*given: Tensor | None, plain: Before) -> Before | None:
    """What finds the last real token before each; given: the tensors that it would get."""
    found: Before | None = _of_tokens("before", given, lambda kernel, device: trials.of_before(kernel, plain, device))
    return found


def arrange_for(*given: Tensor | None, plain: Arrange) -> Arrange | None:
    """What numbers the examples and measures their lengths."""
    found: Arrange | None = _of_tokens(
        "arrange", given, lambda kernel, device: trials.of_arrange(kernel, plain, device)
    )
    return found


def key_for(*given: Tensor | None, plain: Key) -> Key | None:
    """What computes keys and scales."""
    found: Key | None = _of_tokens("key", given, lambda kernel, device: trials.of_key(kernel, plain, device))
    return found


def _of_tokens(name: str, given: tuple[Tensor | None, ...], differs: Callable[[Any, torch.device], str]) -> Any:
    tensors = [tensor for tensor in given if tensor is not None]
    first = tensors[0]
    if not has_memory(first) or first.numel() == 0:
        return None
    device = first.device
    if any(type(other) is not Tensor or other.device != device for other in tensors):
        return None

    def make() -> Any:
        if device.type == "cpu":
            from neftune_plugins.noise.kernels import loop

            return getattr(loop, name)()
        from neftune_plugins.noise.kernels import scans

        return getattr(scans, name)()

    return _chosen(device, name, torch.int64, make, lambda kernel: differs(kernel, device))


def has_memory(tensor: Tensor) -> bool:
    """Whether a kernel could work on the memory of this tensor, and may."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.device.type == "meta":
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and os.environ.get(VARIABLE) != "0"


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _chosen(
    device: torch.device, name: str, dtype: torch.dtype, make: Callable[[], Kernel], differs: Callable[[Kernel], str]
) -> Kernel | None:
    """The kernel that `make` gives, once it has been compared: `differs` says where it is another than the plain path.
    None if the plain path has to serve."""
    key = (device, name, dtype)
    choice = _choices.get(key)
    if choice is None:
        if is_capturing(device):
            return None  # the comparison waits for the device, which a CUDA graph cannot hold
        choice = _choices[key] = _choose("C loop" if device.type == "cpu" else "Triton kernel", make, differs)
        if choice.kernel is None and choice.reason not in _warned:
            _warned.add(choice.reason)
            logging.getLogger("neftune_plugins").warning(
                "neftune-plugins: noise on %s is added by the plain path, which is slower: %s. %s=0 silences this.",
                device,
                choice.reason,
                VARIABLE,
            )
    kernel: Kernel | None = choice.kernel
    return kernel


def _choose(path: str, make: Callable[[], Kernel], differs: Callable[[Kernel], str]) -> Choice:
    try:
        kernel = make()
        difference = differs(kernel)
    except Exception as error:  # a kernel may never stop a run that the plain path can do
        return Choice("plain", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if difference:
        return Choice("plain", f"the {path} differs from it: {difference}")
    return Choice(path, "it gave the bits of the plain path on this device", kernel)
