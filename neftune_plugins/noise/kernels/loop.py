"""The C loop for CPUs."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from neftune_plugins.noise.kernels.build import library
from neftune_plugins.noise.kernels.form import Add

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Fewer elements are not worth starting a thread.
_PER_THREAD = 1 << 17


@cache
def c_loop(draw: str) -> Add:
    """The loop for a C expression, see `KernelDraw.c`. Raises CannotBuildError."""
    function = library(draw).neftune_add
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [*[pointer] * 4, integer, integer, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_double)]
    function.restype = ctypes.c_int

    def add(x_ND: Tensor, keys_N: Tensor, unit_scales_N: Tensor, code_D: Tensor, measures: bool) -> Tensor | None:
        rows, dim = x_ND.shape
        # ctypes sees addresses alone: what they point to has to be what the loop takes it for.
        keys_N, code_D = keys_N.contiguous(), code_D.contiguous()
        unit_scales_N = unit_scales_N.to(torch.float32).contiguous()
        assert (keys_N.dtype, code_D.dtype) == (torch.int64, torch.int32)
        assert (len(keys_N), len(unit_scales_N), len(code_D)) == (rows, rows, dim)
        threads = max(1, min(torch.get_num_threads(), x_ND.numel() // _PER_THREAD))
        energy = (ctypes.c_double * 2)() if measures else None
        addresses = (x_ND.data_ptr(), keys_N.data_ptr(), unit_scales_N.data_ptr(), code_D.data_ptr())
        if function(*addresses, rows, dim, _DTYPES[x_ND.dtype], threads, energy):
            raise RuntimeError(f"the compiler of the loop has no {x_ND.dtype}")
        return torch.tensor([*energy], dtype=torch.float32) if energy is not None else None

    return add
