"""The Ludwig callback."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from ludwig.callbacks import Callback
from ludwig.models.llm import LLM

from neftune_ludwig.layout import of_encoder, of_model
from neftune_ludwig.schema import keys
from neftune_plugins import Handle, NoiseNotAppliedError, enabled, install
from neftune_plugins.config import resolve

_log = logging.getLogger("ludwig.neftune")  # Ludwig shows what its own loggers are told
_STEP = "neftune_step"


class NEFTuneCallback(Callback):  # type: ignore[misc]
    """Noisy embeddings (arXiv 2310.05914) for `LudwigModel(config, callbacks=[NEFTuneCallback(alpha=5)])`.

    alpha: `neftune_noise_alpha`. Left out, it is that of the `model_parameters` of the configuration, if it has any.
    others: the further fields of `NoiseConfig`.

    It takes the place of Ludwig's own hook. The noise follows the optimiser's steps and, unless a seed is given,
    Ludwig's `random_seed`. When training ends, the model is as it was.

    With the environment variable NEFTUNE_PLUGINS=0 it does nothing. Raises NoiseConfigError for a value that cannot be
    used, and NoiseNotAppliedError before the first step where the model has no language model that is trained.
    """

    def __init__(self, alpha: float | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._handles: list[Handle] = []
        self._hooks: list[Any] = []
        if alpha is not None and enabled():
            resolve({}, self._given)  # a bad value is told here, not when the run begins

    def on_trainer_train_setup(self, trainer: Any, save_path: str, is_coordinator: bool, **kwargs: Any) -> None:
        if not enabled():
            return
        for owner, parameters in language_models(trainer.model):
            config = resolve(keys(parameters), self._given)
            if config is None:
                continue
            reader = of_model(owner.tokenizer) if isinstance(owner, LLM) else of_encoder(owner.config.pad_idx)
            handle = install(owner.model, config, seed=trainer.random_seed, layout_reader=reader)
            self._handles.append(handle)
            if is_coordinator:
                _log.info(str(handle))
        if self._handles:
            # Where this package's patches are not in place, Ludwig has put its own hook in.
            trainer.model._deactivate_forward_hooks()
            trainer.model._forward_hook_handles.clear()
            self._follow(getattr(trainer.optimizer, "optimizer", trainer.optimizer))
        elif any(value is not None for value in self._given.values()):
            raise NoiseNotAppliedError(
                f"NEFTuneCallback: {type(trainer.model).__name__} has no language model (model_type llm, or a text "
                "encoder of type llm)"
            )

    def on_trainer_train_teardown(
        self, trainer: Any, progress_tracker: Any, save_path: str, is_coordinator: bool, **kwargs: Any
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the noise out of the model, if it is in."""
        for hook in (*self._hooks, *self._handles):
            hook.remove()
        self._hooks.clear()
        self._handles.clear()

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the optimiser's steps. Ludwig's own steps are batches, however many make an update. The count stands in
        the optimiser's state, so that Ludwig saves it and a resumed run goes on with it."""

        def advance(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            optimizer.param_groups[0][_STEP] += 1
            show(optimizer)

        def show(optimizer: torch.optim.Optimizer) -> None:
            step = optimizer.param_groups[0].setdefault(_STEP, 0)
            for handle in self._handles:
                handle.step = step

        show(optimizer)
        self._hooks += [
            optimizer.register_step_post_hook(advance),
            optimizer.register_load_state_dict_post_hook(show),
        ]


def language_models(model: Any) -> Iterator[tuple[Any, Any]]:
    """Ludwig's modules around a transformers model (`.model`, `.tokenizer`), each with its `model_parameters`."""
    if isinstance(model, LLM):
        yield model, model.config_obj.model_parameters
        return
    for feature in model.config_obj.input_features:
        if feature.encoder.type == "llm" and not feature.tied:  # a tied feature has the encoder of another
            yield model.input_features.get(feature.name).encoder_obj, feature.encoder.model_parameters
