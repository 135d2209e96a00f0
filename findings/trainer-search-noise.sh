#!/usr/bin/env bash
# Trainer.hyperparameter_search over neftune_noise_alpha trains every trial with the same noise
#
# Guess:   Each trial trains with the values that it drew, as its arguments and its log say.
# Happens: The trial's alpha is written to the arguments, but the noise uses a copy that Trainer made when it was
#          created: every trial has the noise of the first value. A learning rate that is searched at the same time is
#          followed.
# Matters: To anybody who tunes NEFTune this way: the search reports a best alpha, but all trials had the same noise.
# With:    transformers==5.24.0 accelerate==1.15.0 torch==2.14.1 optuna==5.0.0
# Seen:    2026-11-27
# | arguments 1.0, noise of 5.0; learning rate of the arguments is the optimiser's: yes
# | arguments 20.0, noise of 5.0; learning rate of the arguments is the optimiser's: yes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import contextlib
import os

import torch
from optuna.samplers import GridSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

ALPHAS, RATES = [1.0, 20.0], [1e-4, 1e-3]
config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rows = [{"input_ids": [number, 4, 5, 6], "labels": [number, 4, 5, 6]} for number in range(8)]
found = set()


class Look(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, optimizer=None, **others):
        table = model.get_input_embeddings()
        ids = torch.zeros(1, 64, dtype=torch.long)
        noise = table(ids) - table.weight[ids]
        # uniform in +- alpha / sqrt(length x width): 1,024 draws come within a hundredth of the end
        alpha = noise.abs().max().item() * noise.numel() ** 0.5
        same = optimizer.param_groups[0]["lr"] == args.learning_rate
        found.add(
            f"arguments {args.neftune_noise_alpha}, noise of {alpha:.1f}; "
            f"learning rate of the arguments is the optimiser's: {'yes' if same else 'no'}"
        )


arguments = TrainingArguments(
    output_dir="output",
    max_steps=1,
    lr_scheduler_type="constant",
    neftune_noise_alpha=5.0,
    eval_strategy="steps",
    eval_steps=1,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(
    None,
    arguments,
    model_init=lambda: LlamaForCausalLM(config),
    train_dataset=rows,
    eval_dataset=rows,
    callbacks=[Look()],
)
with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
    trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "neftune_noise_alpha": trial.suggest_categorical("neftune_noise_alpha", ALPHAS),
            "learning_rate": trial.suggest_categorical("learning_rate", RATES),
        },
        n_trials=4,
        backend="optuna",
        sampler=GridSampler({"neftune_noise_alpha": ALPHAS, "learning_rate": RATES}, seed=0),
    )
for line in sorted(found):
    print(line)
PYTHON
