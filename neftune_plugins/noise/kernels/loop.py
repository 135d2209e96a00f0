"""The C loops for CPUs. ctypes sees addresses alone: what they point to has to be what a loop takes it for."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from neftune_plugins.noise.kernels.build import library
from neftune_plugins.noise.kernels.form import Add, Arrange, Arranged, Before, ByIds, Draw, Key

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Fewer elements are not worth starting a thread.
_PER_THREAD = 1 << 17
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double


@cache
def c_loop(draw: str, unit: float, mean_square: float) -> Add:
    """The loop for a C expression, see `KernelDraw.c`. Raises CannotBuildError.

    unit, mean_square: of the noise type.
    """
    function = library("draw", f"DRAW(bits)=({draw})").neftune_add
    function.argtypes = [*[_POINTER] * 4, _FLOAT, _LONG, _LONG, _INT, _INT, _DOUBLE, _POINTER]
    function.restype = _INT

    def add(x_ND: Tensor, keys_N: Tensor, scales_N: Tensor, code_D: Tensor, measures: bool) -> Tensor | None:
        rows, dim = x_ND.shape
        keys_N, code_D = keys_N.contiguous(), code_D.contiguous()
        scales_N = scales_N.to(torch.float32).contiguous()
        assert (keys_N.dtype, code_D.dtype) == (torch.int64, torch.int32)
        assert (len(keys_N), len(scales_N), len(code_D)) == (rows, rows, dim)
        threads = max(1, min(torch.get_num_threads(), x_ND.numel() // _PER_THREAD))
        energy_3 = torch.empty(3, dtype=torch.float32) if measures else None
        addresses = (x_ND.data_ptr(), keys_N.data_ptr(), scales_N.data_ptr(), code_D.data_ptr())
        sizes = (rows, dim, _DTYPES[x_ND.dtype], threads)
        if function(*addresses, unit, *sizes, dim * mean_square, None if energy_3 is None else energy_3.data_ptr()):
            raise RuntimeError(f"the compiler of the loop has no {x_ND.dtype}")
        return energy_3

    return add


@cache
def before() -> Before:
    """Raises CannotBuildError."""
    function = library("tokens").neftune_before
    function.argtypes = [_POINTER, _POINTER, _LONG, _LONG]

    def before(real_BL: Tensor) -> Tensor:
        real_BL = real_BL.contiguous()
        column_BL = torch.empty(real_BL.shape, dtype=torch.int64)
        function(real_BL.data_ptr(), column_BL.data_ptr(), *real_BL.shape)
        return column_BL

    return before


@cache
def arrange() -> Arrange:
    """Raises CannotBuildError."""
    function = library("tokens").neftune_layout
    function.argtypes = [*[_POINTER] * 4, _LONG, _INT, _INT, _INT, _LONG, _LONG, *[_POINTER] * 4]

    def arrange(real_BL: Tensor, start_BL: Tensor | None, by_ids: ByIds | None) -> Arranged:
        given = [real_BL, start_BL]
        given += [None, None] if by_ids is None else [by_ids.ids_BL, by_ids.untrained_BL]
        held = [None if tensor is None else tensor.contiguous() for tensor in given]
        pad, tails, zeros, ends = (
            (0, 0, 0, 0) if by_ids is None else (by_ids.pad, by_ids.tails, by_ids.zeros, by_ids.ends)
        )
        shape = real_BL.shape
        example_BL, position_BL, length_BL = (torch.empty(shape, dtype=torch.int64) for _ in range(3))
        made = (torch.empty(shape, dtype=torch.bool), example_BL, position_BL, length_BL)
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in (*held, *made)]
        function(*addresses[:4], pad, tails, zeros, ends, *shape, *addresses[4:])
        return made

    return arrange


@cache
def key() -> Key:
    """Raises CannotBuildError."""
    function = library("tokens").neftune_keys
    function.argtypes = [
        *[_POINTER] * 6,
        *(_LONG, _POINTER, _LONG, _INT, _DOUBLE, _LONG, _LONG),
        *[_POINTER] * 3,
    ]
    function.restype = _INT

    def key(ids_BL: Tensor, layout: Arranged, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None] | None:
        given = [tensor.contiguous() for tensor in (ids_BL, *layout)]
        keys_BL = torch.empty(ids_BL.shape, dtype=torch.int64)
        scales_BL = torch.empty(ids_BL.shape, dtype=torch.float32)
        sums_3 = None if draw.energy is None else torch.empty(3, dtype=torch.float32)
        is_outside = function(
            *(tensor.data_ptr() for tensor in (*given, draw.step)),
            *(draw.key, draw.alpha.data_ptr(), draw.dim, draw.padded_length, draw.energy or 0.0, *ids_BL.shape),
            *(keys_BL.data_ptr(), scales_BL.data_ptr(), None if sums_3 is None else sums_3.data_ptr()),
        )
        return None if is_outside else (keys_BL, scales_BL, sums_3)

    return key
