#!/usr/bin/env bash
# A Trainer resumed with a larger batch never trains some rows
#
# Guess:   The resumed run continues after the rows that were trained; the Trainer only warns that the batch differs.
# Happens: The Trainer skips as many batches as were trained, of the new size. With the batch doubled it skips twice
#          the rows, with the batch halved it repeats rows.
# Matters: To anybody who resumes on another number of GPUs or with other memory: part of the data is missing from the
#          epoch, and no message says so.
# With:    transformers==5.24.0 accelerate==1.15.0 torch==2.14.1
# Seen:    2026-11-27
# | batch of 2, resumed with 2: 0 of 32 rows never trained, 0 trained twice
# | batch of 2, resumed with 4: 8 of 32 rows never trained, 0 trained twice
# | batch of 4, resumed with 2: 0 of 32 rows never trained, 8 trained twice
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import contextlib
import os

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rows = [{"input_ids": [number, 4, 5], "labels": [number, 4, 5]} for number in range(32)]


class Recorded(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(inputs["input_ids"][:, 0].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def trained(folder, batch, checkpoint=None):
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        save_strategy="steps",
        save_steps=4,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Recorded(LlamaForCausalLM(config), arguments, train_dataset=rows)
    trainer.seen = []
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.seen


for before, after in ((2, 2), (2, 4), (4, 2)):
    folder = f"from-{before}-to-{after}"
    first = trained(folder, before)[:4]
    seen = [row for batch in first + trained(folder, after, f"{folder}/checkpoint-4") for row in batch]
    print(
        f"batch of {before}, resumed with {after}: {32 - len(set(seen))} of 32 rows never trained, "
        f"{len(seen) - len(set(seen))} trained twice"
    )
PYTHON
