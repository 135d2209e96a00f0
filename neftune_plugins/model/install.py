"""`install`: noise in a model, from the first training forward to `remove()`."""

import inspect
import sys
import weakref
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from neftune_plugins.config import NoiseConfig, key
from neftune_plugins.errors import NoiseConfigError, NoiseNotAppliedError
from neftune_plugins.model import structure
from neftune_plugins.model.clean_loss import CleanLoss
from neftune_plugins.model.hooks import EmbeddingHook, Noise, OwnerHook, OwnerPreHook, noises_in
from neftune_plugins.model.metrics import Measurements
from neftune_plugins.model.sharded import has_shared_weight
from neftune_plugins.noise import Batch, Layout, LayoutReader, alpha_at
from neftune_plugins.plugins import check_type, layout_readers, noise_types, plugin_manager

# Hooks know the noise and not the handle above it, so this is how an installation finds another one.
_handles: "weakref.WeakSet[Handle]" = weakref.WeakSet()


def install(
    model: nn.Module,
    config: NoiseConfig,
    *,
    seed: int | None = None,
    steps: int | None = None,
    pad_token_id: int | None = None,
    layout_reader: LayoutReader | None = None,
) -> "Handle":
    """Noise the input embeddings of `model` while it trains (arXiv 2310.05914).

    model: any torch module with `get_input_embeddings()`, wrapped or not, whose forward takes `input_ids`, or as
        `inputs_embeds` what that embedding gave.
    seed: of the noise, where the configuration gives none; 0 where neither does.
    steps: how many optimisation steps the run has; a schedule other than constant needs it.
    pad_token_id: as the batches are padded; by default what the model's configuration says.
    layout_reader: asked for the examples of a batch before those of the plugins.

    Noise enters where the outermost forward runs in training mode with gradients enabled: not in evaluation,
    generation, or a reference model's forward. Installing again replaces what was installed before.

    Raises NoiseNotAppliedError where no embedding is found; so does the first training forward of a model, of its
    encoder or of its decoder that goes by without noise. Where a schedule is not told the steps, the first training
    forward raises NoiseConfigError.
    """
    check_type(config)
    embeddings = plugin_manager().hook.neftune_embeddings(model=model)
    if not embeddings:
        raise NoiseNotAppliedError(
            f"no embedding of tokens found in {type(model).__name__}: get_input_embeddings() of the model and of the "
            "modules in it gave none. A plugin can name them: implement neftune_embeddings(model) "
            "(neftune_plugins.plugins.hookspecs)."
        )
    earlier = noises_in(model)
    for handle in list(_handles):
        if handle._noise in earlier:
            handle.remove()
    handle = Handle(model, config, embeddings, seed or 0, steps, pad_token_id, layout_reader)
    plugin_manager().hook.neftune_installed(handle=handle)
    return handle


class Handle:
    """Installed noise. A context manager that removes it at the end.

    model: what it was installed in.
    config: its configuration.
    measurements: of the noise, where `neftune_metrics` is on.
    clean_loss: where `neftune_clean_loss_steps` is set.
    embeddings: names of the noised modules in the model.
    steps: how many optimisation steps the run has. May be set until `step` is, where it is not known earlier.
    """

    def __init__(
        self,
        model: nn.Module,
        config: NoiseConfig,
        embeddings: Sequence[nn.Module],
        seed: int,
        steps: int | None,
        pad_token_id: int | None,
        layout_reader: LayoutReader | None,
    ) -> None:
        self.model = model
        self.config = config
        self.measurements = Measurements() if config.metrics else None
        self.clean_loss = None if config.clean_loss_steps is None else CleanLoss(config.clean_loss_steps)
        self.steps = steps
        names = {module: name for name, module in model.named_modules()}
        strangers = [type(embedding).__name__ for embedding in embeddings if embedding not in names]
        if strangers:
            raise NoiseNotAppliedError(
                f"neftune_embeddings gave {', '.join(strangers)}, which is no module of {type(model).__name__}"
            )
        self.embeddings = [names[embedding] for embedding in embeddings]
        self._pad_token_id = structure.pad_token_id(model) if pad_token_id is None else pad_token_id
        self._readers = layout_readers() if layout_reader is None else (layout_reader, *layout_readers())
        self._noise = Noise(
            noise_types()[config.type],
            alpha=config.alpha,
            seed=seed if config.seed is None else config.seed,
            padded_length=config.length == "padded",
            embeddings=self.embeddings,
            layout=self.layout,
            measurements=self.measurements,
            step_missing=self._step_missing,
        )
        _handles.add(self)
        self._hooks: list[RemovableHandle] = []
        decoder = structure.decoder(model)
        inside_decoder = set() if decoder is None else set(decoder.modules())
        for embedding in embeddings:
            scale = plugin_manager().hook.neftune_embedding_scale(model=model, embedding=embedding)
            hook = EmbeddingHook(self._noise, 1.0 if scale is None else scale)
            # Before the hook of a tensor-parallel style, behind which a slice does not say what it is of.
            first = has_shared_weight(embedding)
            self._hooks.append(embedding.register_forward_hook(hook, with_kwargs=True, prepend=first))
        owners = _owners(model, decoder, embeddings)
        for module in owners:
            arguments = tuple(inspect.signature(module.forward).parameters)
            innermost = not any(child in owners for child in module.modules() if child is not module)
            pre_hook = OwnerPreHook(self._noise, module is model, arguments, int(module in inside_decoder), innermost)
            self._hooks.append(module.register_forward_pre_hook(pre_hook, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(OwnerHook(self._noise, pre_hook), always_call=True))
        _forget_compiled_graphs()

    @property
    def step(self) -> int:
        """The optimisation step whose noise is drawn. Each value gives new noise, the same value the same noise.

        Until it is set, every training forward counts as a step of its own, where the schedule is constant.
        """
        return int(self._noise.step)

    @step.setter
    def step(self, step: int) -> None:
        try:
            alpha = alpha_at(self.config.alpha, self.config.schedule, step, self.steps)
        except ValueError:
            raise self._steps_unknown() from None
        self._noise.begin_step(step, alpha)
        if self.clean_loss is not None:
            self.clean_loss.begin_step(step)
        plugin_manager().hook.neftune_step(handle=self)

    @property
    def alpha(self) -> float:
        """Alpha at `step`, as the float32 that enters the noise."""
        return float(self._noise.alpha)

    @property
    def installed(self) -> bool:
        """False once removed."""
        return bool(self._hooks)

    def __str__(self) -> str:
        return (
            f"neftune_noise_alpha: {self.config.alpha:g} is taken over by neftune-plugins, the native hook is off; "
            f"noise in {', '.join(self.embeddings)}, {self.config}"
        )

    def layout(self, batch: Batch) -> Layout:
        """The examples of a batch, given as the arguments of the model's forward by name."""
        batch = {"pad_token_id": self._pad_token_id, **batch}
        for reader in self._readers:
            layout = reader(batch)
            if layout is not None:
                return layout
        raise AssertionError("the built-in reader knows every batch")

    def metrics(self) -> dict[str, float]:
        """What to log of the time since the last call, by name: of the noise, of the clean loss, and of plugins. For
        logging steps, because it waits for the model's device."""
        measured = {} if self.measurements is None else self.measurements.take()
        losses = {} if self.clean_loss is None else self.clean_loss.take()
        of_plugins = plugin_manager().hook.neftune_metrics(handle=self)
        found = [{"neftune/alpha": self.alpha} if measured else {}, measured, losses, *reversed(of_plugins)]
        return {name: value for metrics in found for name, value in metrics.items()}

    def _step_missing(self) -> NoiseConfigError | None:
        if self.config.schedule != "constant":
            return self._steps_unknown()
        return None if self.clean_loss is None else self.clean_loss.step_unknown()

    def _steps_unknown(self) -> NoiseConfigError:
        name = key(NoiseConfig.__dataclass_fields__["schedule"])
        return NoiseConfigError(
            f"{name}: {self.config.schedule!r} follows the optimisation steps of the run, which are not known here: "
            "give their number to install(..., steps=N) and set `step` of what it returns before each, or use "
            f"{name}: constant"
        )

    def remove(self) -> None:
        """Take the noise out of the model, which is then as it was before. Does nothing the second time."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        _forget_compiled_graphs()
        plugin_manager().hook.neftune_removed(handle=self)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _owners(model: nn.Module, decoder: nn.Module | None, embeddings: Sequence[nn.Module]) -> list[nn.Module]:
    """The model, its decoder, and each module above an embedding whose forward takes `attention_mask`. (BERT's
    embedding layer takes `input_ids` and knows nothing of padding.)"""
    above = dict.fromkeys(module for embedding in embeddings for module in structure.above(model, embedding))
    return [model] + [
        module
        for module in above
        if module is not model
        and module not in embeddings
        and (module is decoder or "attention_mask" in inspect.signature(module.forward).parameters)
    ]


def _forget_compiled_graphs() -> None:
    """torch.compile does not notice hooks that come or go after a module's first compiled forward."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
