"""Faster implementations of the draw than the plain one: one pass over x, with the same bits. A C loop on
CPUs, a Triton kernel on accelerators.

A kernel is used only after it has given the bits of the plain path on a few rows of this process's device. Without
one the plain path is used; `chosen` says which and why, and one warning is logged if a kernel failed.
"""

import logging
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from neftune_plugins.noise.kernels.form import Add, KernelDraw

VARIABLE = "NEFTUNE_KERNELS"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Choice:
    """What adds the noise on a device: `path` is "C loop", "Triton kernel" or "plain", and `reason` why."""

    path: str
    reason: str
    add: Add | None = None


_choices: dict[tuple[str, str, torch.dtype], Choice] = {}


def chosen() -> dict[tuple[str, str, torch.dtype], Choice]:
    """The choices of this process so far, by device, noise type and dtype."""
    return dict(_choices)


def kernel_for(x_ND: Tensor, name: str, draw: KernelDraw | None, plain: Add) -> Add | None:
    """What adds noise of this type to x_ND in one pass; None if the plain path has to.

    name, draw: of the noise type. plain: the plain path, which a kernel has to equal.
    """
    if draw is None or type(x_ND) is not Tensor or x_ND.dtype not in DTYPES or not x_ND.is_contiguous():
        return None
    if os.environ.get(VARIABLE) == "0":
        return None
    key = (str(x_ND.device), name, x_ND.dtype)
    if key not in _choices:
        _choices[key] = choice = _choose(x_ND.device, x_ND.dtype, draw, plain)
        if choice.add is None:
            logging.getLogger("neftune_plugins").warning(
                "neftune-plugins: noise on %s is added by the plain path, which is slower: %s. %s=0 silences this.",
                x_ND.device,
                choice.reason,
                VARIABLE,
            )
    return _choices[key].add


def _choose(device: torch.device, dtype: torch.dtype, draw: KernelDraw, plain: Add) -> Choice:
    try:
        if device.type == "cpu":
            from neftune_plugins.noise.kernels.loop import c_loop

            path, add = "C loop", c_loop(draw.c)
        else:
            from neftune_plugins.noise.kernels.accelerator import triton_kernel

            path, add = "Triton kernel", triton_kernel(draw)
        difference = _differs(add, plain, device, dtype)
    except Exception as error:  # a kernel may never stop a run that the plain path can do
        return Choice("plain", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if difference:
        return Choice("plain", f"the {path} differs from it: {difference}")
    return Choice(path, "it gave the bits of the plain path on this device", add)


def _differs(add: Add, plain: Add, device: torch.device, dtype: torch.dtype) -> str:
    """Where the kernel differs from the plain path on a few rows; empty if nowhere."""
    for dim in (1, 5, 64, 1003):
        index = torch.arange(7 * dim, device=device, dtype=torch.float32)
        x_ND = ((index * 0.618) % 4 - 2).view(7, dim).to(dtype)
        keys_N = torch.arange(1, 8, device=device) * 0x1F3A5C7E9B2D4680 + 12345
        scales_N = torch.tensor([0.5, 0, 1e-3, 3, 1e-9, 0, 7], device=device) * 2.0**-23
        code_D = torch.arange(dim, device=device, dtype=torch.int32) * 0x3C6EF35F
        one, other = x_ND.clone(), x_ND.clone()
        add(one, keys_N, scales_N, code_D, False)
        plain(other, keys_N, scales_N, code_D, False)
        if not torch.equal(one, other):
            return f"{int((one != other).sum())} of {one.numel()} values of {str(dtype)[6:]}, width {dim}"
        measured, want = add(x_ND.clone(), keys_N, scales_N, code_D, True), plain(x_ND, keys_N, scales_N, code_D, True)
        if measured is None or want is None or not torch.allclose(measured, want, rtol=1e-3, atol=0):
            return f"its sums of squares are {measured}, not {want}"
    return ""
