#!/usr/bin/env bash
# A run resumed by accelerate repeats the order of epoch 0
#
# Guess:   With use_seedable_sampler=True, load_state() restores the order of the data: after a state saved at the end
#          of epoch 0, the loader continues with the order of epoch 1.
# Happens: load_state() restores the sampler's epoch and the loader resets it: it counts epochs from 0 in each process
#          and gives its own count to the sampler at iter(). The resumed run repeats the order of epoch 0. In the
#          middle of epoch 1, skip_first_batches skips in that wrong order, so some rows occur twice in the epoch and
#          others never. Calling loader.set_epoch(n) after loading fixes both.
# Matters: To anybody who resumes their own loop: nothing fails, but the data is not that of an uninterrupted run.
# With:    accelerate==1.15.0 torch==2.14.1
# Seen:    2026-11-27
# | resumed after epoch 0: the order of epoch 0
# | resumed after epoch 0, set_epoch(1): the order of epoch 1
# | resumed in epoch 1, skip_first_batches: rows of that epoch twice 4, never 4
# | resumed in epoch 1, set_epoch(1) and skip_first_batches: rows of that epoch twice 0, never 0
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

ROWS = 16


def start(state=None, epoch=None):
    set_seed(0)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    loader = accelerator.prepare(DataLoader(list(range(ROWS)), batch_size=2, shuffle=True))
    if state:
        accelerator.load_state(state)
    if epoch is not None:
        loader.set_epoch(epoch)
    return accelerator, loader


def rows(loader):
    return [row for batch in loader for row in batch.tolist()]


accelerator, loader = start()
epochs = [rows(loader)]
accelerator.save_state("after-0")
seen = []
for number, batch in enumerate(loader):
    seen += batch.tolist()
    if number == 3:
        accelerator.save_state("in-1")
        before = list(seen)
epochs.append(seen)

for note, epoch in (("", None), (", set_epoch(1)", 1)):
    print(f"resumed after epoch 0{note}: the order of epoch {epochs.index(rows(start('after-0', epoch)[1]))}")
for note, epoch in (("", None), ("set_epoch(1) and ", 1)):
    found = before + rows(skip_first_batches(start("in-1", epoch)[1], 4))
    twice, never = len(found) - len(set(found)), ROWS - len(set(found))
    print(f"resumed in epoch 1, {note}skip_first_batches: rows of that epoch twice {twice}, never {never}")
PYTHON
