#!/usr/bin/env bash
# A hook added after the first compiled call takes effect at the next recompilation, whenever that is
#
# Guess:   torch.compile guards what it traced, so a hook that is added later is noticed at once, or never.
# Happens: The compiled model silently ignores the first hook that is added to a module after the first call, while
#          the model itself calls it. As soon as a batch of another length causes a recompilation, the hook takes
#          effect, for the old length too. Removing a hook, or adding one to a module that already had one when it was
#          traced, is noticed at once.
# Matters: To anybody who installs hooks (noise, statistics, clipping) after a warm-up or an evaluation: they take
#          effect in the middle of the training, with the first batch of another length.
# With:    torch==2.14.1
# Seen:    2026-11-27
# | hook added after the first call: the model calls it yes, the compiled model no
# | after a batch of another length: for that length yes, for the first length yes
# | hook removed: the compiled model notices yes
# | second hook added to a traced one: the compiled model notices yes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from torch import nn


def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(16, 4), nn.Linear(4, 4)).requires_grad_(False)


def shifted(module, args, output):
    return output + 100


def answer(yes):
    return "yes" if yes else "no"


short, long = torch.tensor([1, 2]), torch.tensor([1, 2, 3])

model = fresh()
compiled = torch.compile(model, backend="eager")
before = compiled(short)
model[0].register_forward_hook(shifted)
eager, late = (not torch.allclose(call(short), before) for call in (model, compiled))
print(f"hook added after the first call: the model calls it {answer(eager)}, the compiled model {answer(late)}")
new = not torch.allclose(compiled(long)[:2], before)
old = not torch.allclose(compiled(short), before)
print(f"after a batch of another length: for that length {answer(new)}, for the first length {answer(old)}")

model = fresh()
handle = model[0].register_forward_hook(shifted)
compiled = torch.compile(model, backend="eager")
before = compiled(short)
handle.remove()
print(f"hook removed: the compiled model notices {answer(not torch.allclose(compiled(short), before))}")

model = fresh()
model[0].register_forward_hook(shifted)
compiled = torch.compile(model, backend="eager")
before = compiled(short)
model[0].register_forward_hook(shifted)
noticed = not torch.allclose(compiled(short), before)
print(f"second hook added to a traced one: the compiled model notices {answer(noticed)}")
PYTHON
