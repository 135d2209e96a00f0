"""What a Ludwig run leaves behind, written down by a Ludwig callback that shares no code with the project."""

from __future__ import annotations

import sys
from typing import Any

import torch
from ludwig.callbacks import Callback
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.probe import Probe
from tests.support.recorder import StepRecord, embedding_hooks, weights_hash


class LudwigProbe(Probe):
    """Records the true attention mask in place of Ludwig's, so that `per_example` can go by it.

    Ludwig's LLM fills up with id 0 but masks the tokenizer's padding id, which may be another one; its encoder in an
    ECD model gets no mask at all. Neither asks where in a row the id stands, so here only a run of `pad_id` at the
    `side` that Ludwig fills up is padding.
    """

    def __init__(self, pad_id: int, side: str) -> None:
        super().__init__()
        self.pad_id, self.side = pad_id, side

    # The compiler would not see through the copies that these make.
    @torch.compiler.disable
    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._enter(module, args, kwargs)
        call = self.calls[-1]
        if call.input_ids is not None:
            call.attention_mask = real_tokens(call.input_ids, self.pad_id, self.side)

    @torch.compiler.disable
    def _leave(self, *args: Any) -> None:
        super()._leave(*args)

    @torch.compiler.disable
    def _block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._block(module, args, kwargs)


def real_tokens(ids: Tensor, pad_id: int, side: str) -> Tensor:
    """ids (B, L) -> mask (B, L): 0 on the run of `pad_id` at that `side` of a row, 1 everywhere else."""
    is_real = (ids != pad_id).long()
    if side == "left":
        return is_real.cummax(dim=1).values
    return is_real.flip(1).cummax(dim=1).values.flip(1)


class Recorder(StepRecord, Callback):
    """Attaches the probe at the first batch, so behind every hook that was there before. The model that it is about is
    that of transformers, wrapped if it has adapters.

    A step is one of the optimizer, `sync_step` of `on_batch_end`; Ludwig's own `progress_tracker.steps` counts those of
    an accumulation one by one.
    """

    model: nn.Module | None = None
    num_steps = 0
    loss = 0.0

    def on_hyperopt_trial_start(self, parameters: dict[str, Any]) -> None:
        """Each trial, which has one parameter here, has a folder of its own, named by its value."""
        assert self.folder is not None
        self.folder = self.folder / str(*parameters.values())
        self.folder.mkdir(exist_ok=True)

    def on_trainer_train_setup(self, trainer: Any, save_path: str, is_coordinator: bool, **_: Any) -> None:
        """No callback is told the loss of a batch, so have it from the trainer's own method."""
        train_step = trainer.train_step

        def keep_loss(*args: Any, **kwargs: Any) -> Any:
            returned = train_step(*args, **kwargs)
            self.loss += returned[0].item()  # already divided by the number of accumulated batches
            return returned

        trainer.train_step = keep_loss

    def on_batch_start(self, trainer: Any, progress_tracker: Any, save_path: str, **_: Any) -> None:
        if self.model is None:
            # A resumed run goes on counting.
            self.num_steps = progress_tracker.steps // trainer.gradient_accumulation_steps
            self.model = language_model(trainer.model)
            self.probe = LudwigProbe(*padding(trainer.model))
            self.probe.attach(self.model)
        self.probe.global_step = self.num_steps

    def on_batch_end(
        self, trainer: Any, progress_tracker: Any, save_path: str, sync_step: bool = True, **_: Any
    ) -> None:
        if not sync_step:
            return
        self.num_steps += 1
        self.record["logs"].append({"step": self.num_steps, "loss": self.loss})
        self.loss = 0.0
        self.end_step(self.model, self.num_steps)

    def on_trainer_train_teardown(
        self, trainer: Any, progress_tracker: Any, save_path: str, is_coordinator: bool, **_: Any
    ) -> None:
        self.probe.detach()
        if sys.exception() is None:
            self.record["weights"] = weights_hash(trainer.model)
        self.write()

    def on_train_end(self, output_directory: str, **_: Any) -> None:
        if self.model is not None and sys.exception() is None:
            self.record["hooks_after"] = embedding_hooks(self.model)
            self.write()


def language_model(model: nn.Module) -> nn.Module:
    """The outermost model of transformers in one of Ludwig's, with its adapters."""
    from peft import PeftModel

    return next(module for module in model.modules() if isinstance(module, (PeftModel, PreTrainedModel)))


def padding(model: Any) -> tuple[int, str]:
    """The id that Ludwig fills up with, and on which side."""
    if model.type() == "llm":
        return 0, "left"
    feature = model.config_obj.input_features[0]
    return feature.encoder.pad_idx, feature.preprocessing.padding
