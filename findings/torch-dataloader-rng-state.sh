#!/usr/bin/env bash
# Each iter() over a DataLoader changes the global RNG state, even without shuffling and workers
#
# Guess:   A DataLoader without shuffling, workers and augmentation draws no random numbers, so evaluating more or
#          less often does not affect training.
# Happens: Each iter() draws a seed for workers from the global generator, even without workers. A loader that was
#          given its own generator draws from that one.
# Matters: To anybody who compares runs: another eval_steps, or one more look at a batch, changes every later dropout
#          mask, and the order of every sampler that draws from the global generator. In a Trainer, a model with
#          dropout ends with other weights if it is evaluated during training.
# With:    torch==2.14.1
# Seen:    2026-11-27
# | plain: global RNG state moved yes, the dropout mask after it is another
# | with a generator of its own: global RNG state moved no, the dropout mask after it is the same
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from torch.utils.data import DataLoader

rows = list(range(8))
values = torch.ones(1000)
torch.manual_seed(0)
usual = torch.dropout(values, 0.5, train=True)

for name, options in {"plain": {}, "with a generator of its own": {"generator": torch.Generator()}}.items():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(DataLoader(rows, batch_size=4, shuffle=False, **options))  # in place of an evaluation
    moved = not torch.equal(before, torch.get_rng_state())
    same = torch.equal(torch.dropout(values, 0.5, train=True), usual)
    print(
        f"{name}: global RNG state moved {'yes' if moved else 'no'}, "
        f"the dropout mask after it is {'the same' if same else 'another'}"
    )
PYTHON
