"""Where a kernel differs from the plain path on a few rows: empty if nowhere. Each waits for the device.

Shape suffixes: B rows of the batch, L tokens of a row, N tokens in any arrangement, D channels of the embedding.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from neftune_plugins.noise.kernels.form import Add, Arrange, Before, ByIds, Draw, Key

_PAD = 3
# One of them is wider than a block of a kernel.
WIDTHS = (1, 7, 60, 2100)


def of_add(add: Add, plain: Add, device: torch.device, dtype: torch.dtype) -> str:
    for dim in (1, 5, 64, 1003):
        index = torch.arange(7 * dim, device=device, dtype=torch.float32)
        x_ND = ((index * 0.618) % 4 - 2).view(7, dim).to(dtype)
        keys_N = torch.arange(1, 8, device=device) * 0x1F3A5C7E9B2D4680 + 12345
        scales_N = torch.tensor([0.5, 0, 1e-3, 3, 1e-9, 0, 7], device=device)
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


def of_before(before: Before, plain: Before, device: torch.device) -> str:
    for real_BL, _, _ in _rows(device):
        if not torch.equal(before(real_BL), plain(real_BL)):
            return f"the last real tokens of rows of {real_BL.shape[1]}"
    return ""


def of_arrange(arrange: Arrange, plain: Arrange, device: torch.device) -> str:
    for real_BL, start_BL, ids_BL in _rows(device):
        forms = [None, ByIds(ids_BL, _PAD)]
        forms += [ByIds(ids_BL, _PAD, tails, ends=ends) for tails in (1, 2) for ends in (False, True)]
        forms += [ByIds(ids_BL, _PAD, 2, True, untrained_BL, True) for untrained_BL in (None, ids_BL % 2 == 0)]
        for by_ids in forms:
            for starts in (None, start_BL):
                one, other = arrange(real_BL, starts, by_ids), plain(real_BL, starts, by_ids)
                # The numbers of padding are free.
                is_equal = torch.equal(one[0], other[0]) and all(
                    torch.equal(a[other[0]], b[other[0]]) for a, b in zip(one[1:], other[1:], strict=True)
                )
                if not is_equal:
                    return f"the layout of rows of {real_BL.shape[1]}"
    return ""


def of_key(key: Key, plain: Key, device: torch.device) -> str:
    for real_BL, start_BL, ids_BL in _rows(device):
        position_BL = ids_BL * 5 % 7
        layout = (real_BL, start_BL.cumsum(-1), position_BL, position_BL + ids_BL)
        step, alpha = torch.tensor(2**40 + 3, device=device), torch.tensor(5.3, device=device)
        for draw in (
            Draw(-(2**61) - 7, step, alpha, 577, energy=0.3),
            Draw(12345, step, alpha, 4096, padded_length=True, energy=2.0),
        ):
            one, other = key(ids_BL, layout, draw), plain(ids_BL, layout, draw)
            if one is None or other is None or one[2] is None or other[2] is None:
                return "it gives nothing"
            if not torch.equal(one[0][real_BL], other[0][real_BL]) or not torch.equal(one[1], other[1]):
                return f"the keys or scales of rows of {real_BL.shape[1]}"
            if not torch.allclose(one[2], other[2], rtol=1e-3, atol=0):
                return f"its sums are {one[2]}, not {other[2]}"
    return ""


def _rows(device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """real_BL, start_BL and ids_BL of rows with padding in many places."""
    for width in WIDTHS:
        generator = torch.Generator().manual_seed(width)
        ids_BL = torch.randint(0, 9, (12, width), generator=generator)
        real_BL = torch.rand(12, width, generator=generator) < torch.tensor([0.5, 0.9, 1.0, 1.0]).repeat(3)[:, None]
        start_BL = torch.rand(12, width, generator=generator) < torch.tensor([0.0, 0.02, 0.2]).repeat(4)[:, None]
        ids_BL[4:, width // 2 :] = _PAD
        ids_BL[6:8, width - width // 4 :] = 0
        ids_BL[11] = _PAD
        real_BL[3], real_BL[8, : width // 3] = False, False
        yield real_BL.to(device), start_BL.to(device), ids_BL.to(device)
