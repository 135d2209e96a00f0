#!/usr/bin/env bash
# A Trainer resumed at max_steps trains one more step
#
# Guess:   Resuming from a checkpoint at or beyond max_steps leaves nothing to do, and the weights stay as they are.
# Happens: Trainer checks for the end after a step, so each resumption trains one more step and saves a checkpoint,
#          from which the next resumption trains another.
# Matters: To anybody whose script restarts jobs until they succeed, or who shortens a run: each start changes the
#          weights once more.
# With:    transformers==5.24.0 accelerate==1.15.0 torch==2.14.1
# Seen:    2026-11-27
# | checkpoint of step 4, max_steps 4: ends at step 5, weights changed yes
# | checkpoint of step 4, max_steps 2: ends at step 5, weights changed yes
# | checkpoint of step 5, max_steps 4: ends at step 6, weights changed yes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import contextlib
import os

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rows = [{"input_ids": [number, 4, 5], "labels": [number, 4, 5]} for number in range(32)]


def trained(folder, max_steps, checkpoint=None):
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=max_steps,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=1,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=rows)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


trained("whole", 4)
for checkpoint, max_steps in (("whole/checkpoint-4", 4), ("whole/checkpoint-4", 2), ("resumed-4/checkpoint-5", 4)):
    before = LlamaForCausalLM.from_pretrained(checkpoint)
    trainer = trained(f"resumed-{max_steps}", max_steps, checkpoint)
    changed = any(not torch.equal(a, b) for a, b in zip(before.parameters(), trainer.model.parameters(), strict=True))
    print(
        f"checkpoint of step {checkpoint[-1]}, max_steps {max_steps}: ends at step {trainer.state.global_step}, "
        f"weights changed {'yes' if changed else 'no'}"
    )
PYTHON
