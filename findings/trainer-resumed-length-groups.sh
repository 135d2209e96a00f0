#!/usr/bin/env bash
# Trainer with group_by_length resumes a later epoch in the order of epoch 0
#
# Guess:   Trainer skips the batches that the interrupted epoch has seen and continues with the rest, whatever the
#          sampler. With random sampling that is so.
# Happens: The sampler for group_by_length has no seed of its own; it draws from the global RNG state. When a
#          resumed run draws the order of the interrupted epoch, that state is the one from the start of training, so
#          it gets the order of epoch 0 and skips in that: some rows occur twice in the epoch and others never.
# Matters: To anybody who resumes a training of more than one epoch that groups by length: it silently uses other data
#          than an uninterrupted run.
# With:    transformers==5.24.0 accelerate==1.15.0 torch==2.14.1
# Seen:    2026-11-27
# | random, resumed in epoch 1: as uninterrupted yes; rows of that epoch twice 0, never 0
# | group_by_length, resumed in epoch 0: as uninterrupted yes; rows of that epoch twice 0, never 0
# | group_by_length, resumed in epoch 1: as uninterrupted no; rows of that epoch twice 4, never 4
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import contextlib
import os

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

ROWS, STEPS = 16, 4  # in an epoch
config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rows = [{"input_ids": [number + 3] * (2 + number % 4)} for number in range(ROWS)]
seen = []


def collated(examples):
    seen.append([example["input_ids"][0] - 3 for example in examples])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(example["input_ids"]) for example in examples], True)
    return {"input_ids": ids, "labels": ids}


def trained(strategy, checkpoint=None):
    seen.clear()
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=f"{strategy}-resumed" if checkpoint else strategy,
        train_sampling_strategy=strategy,
        per_device_train_batch_size=ROWS // STEPS,
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=2,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=rows, data_collator=collated)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        trainer.train(resume_from_checkpoint=checkpoint)
    return list(seen)


for strategy, steps in (("random", (6,)), ("group_by_length", (2, 6))):
    whole = trained(strategy)
    for step in steps:
        both = whole[:step] + trained(strategy, f"{strategy}/checkpoint-{step}")
        epoch = step // STEPS
        found = [row for batch in both[epoch * STEPS : (epoch + 1) * STEPS] for row in batch]
        print(
            f"{strategy}, resumed in epoch {epoch}: as uninterrupted {'yes' if both == whole else 'no'}; "
            f"rows of that epoch twice {len(found) - len(set(found))}, never {ROWS - len(set(found))}"
        )
PYTHON
