#!/usr/bin/env bash
# Which tokens context_parallel gives to a rank depends on the length of the row
#
# Guess:   context_parallel balances causal attention by giving each rank a piece from the head and one from the tail
#          of the row, and rejects a length that it cannot divide so.
# Happens: It does so if the length is a multiple of twice the number of ranks. Any other length is cut into
#          contiguous slices, uneven if the length is odd, without a message.
# Matters: To anybody who computes a token's position from rank and length, or puts slices together again: with
#          padding to the longest row, the order changes from batch to batch. Pass the position ids as a buffer too.
# With:    torch==2.14.1 numpy==2.4.6
# Seen:    2026-11-27
# | length 8: [0, 1, 6, 7] and [2, 3, 4, 5]
# | length 10: [0, 1, 2, 3, 4] and [5, 6, 7, 8, 9]
# | length 11: [0, 1, 2, 3, 4, 5] and [6, 7, 8, 9, 10]
# | length 12: [0, 1, 2, 9, 10, 11] and [3, 4, 5, 6, 7, 8]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel


def rank_main(rank, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("cp",))
    for length in (8, 10, 11, 12):
        row = torch.arange(length).unsqueeze(0)
        with context_parallel(mesh, buffers=[row], buffer_seq_dims=[1]):
            mine = row[0].tolist()
        slices = [None, None]
        dist.all_gather_object(slices, mine)
        if rank == 0:
            print(f"length {length}: {slices[0]} and {slices[1]}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_main, (f"{folder}/meeting",), nprocs=2)
PYTHON
