#!/usr/bin/env bash
# Triton's interpreter adds and multiplies the bit patterns of bf16 values
#
# Guess:   TRITON_INTERPRET=1 computes a kernel's numbers on a CPU; at most the last bit differs from a GPU.
# Happens: numpy has no bf16, so the interpreter stores bf16 values as 16-bit integers. It adds and multiplies loaded
#          bf16 values as these integers: 1 + 1 is 1.7e38. It converts fp32 to bf16 by truncation, where torch rounds
#          to nearest. fp16 is right in all of these.
# Matters: To anybody who tests kernels without a GPU: a kernel in bf16 must convert to fp32 before it computes, and
#          its rounded output cannot be compared bit by bit.
# With:    triton==3.8.0 torch==2.14.1 numpy==2.4.6
# Seen:    2026-11-27
# | torch.float16: 1 + 1 = 2.0, 3 x 2 = 6.0; 1.00390625 + 2^-9 rounds as in torch: yes
# | torch.bfloat16: 1 + 1 = 1.7014118346046923e+38, 3 x 2 = 0.0; 1.00390625 + 2^-9 rounds as in torch: no
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl


@triton.jit
def compute(first, second, sums, products):
    a, b = tl.load(first), tl.load(second)
    tl.store(sums, a + b)
    tl.store(products, a * b)


@triton.jit
def convert(source, target):
    tl.store(target, tl.load(source).to(target.dtype.element_ty))


def computed(dtype, a, b):
    tensors = [torch.tensor([value], dtype=dtype) for value in (a, b, 0.0, 0.0)]
    compute[(1,)](*tensors)
    return tensors[2].item(), tensors[3].item()


value = torch.tensor([1.00390625 + 2**-9])
for dtype in (torch.float16, torch.bfloat16):
    converted = torch.zeros(1, dtype=dtype)
    convert[(1,)](value, converted)
    print(
        f"{dtype}: 1 + 1 = {computed(dtype, 1.0, 1.0)[0]}, 3 x 2 = {computed(dtype, 3.0, 2.0)[1]}; "
        f"1.00390625 + 2^-9 rounds as in torch: "
        f"{'yes' if torch.equal(converted, value.to(dtype)) else 'no'}"
    )
PYTHON
