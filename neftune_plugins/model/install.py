"""`install`: noise in a model, from the first training forward pass to `remove()`."""

import inspect
import itertools
import logging
import sys
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from neftune_plugins.config import NO_NOISE, NoiseConfig, key
from neftune_plugins.errors import NoiseConfigError, NoiseNotAppliedError
from neftune_plugins.model import structure
from neftune_plugins.model.audit import Audit
from neftune_plugins.model.clean_loss import CleanLoss
from neftune_plugins.model.hooks import EmbeddingHook, Noise, OwnerHook, OwnerPreHook
from neftune_plugins.model.metrics import Measurements
from neftune_plugins.model.sharded import has_shared_weight
from neftune_plugins.noise import Batch, Layout, LayoutReader, alpha_at
from neftune_plugins.plugins import check_type, layout_readers, noise_types, plugin_manager

_log = logging.getLogger("neftune_plugins")
# Hooks know the noise and not the handle above it, so this is how an installation finds the ones before it.
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
    """Add NEFTune noise (arXiv 2310.05914) to the input embeddings of `model` while it trains.

    >>> with install(model.train(), NoiseConfig(alpha=5)) as noise:
    ...     for noise.step, batch in enumerate(batches):
    ...         model(**batch).loss.backward()

    model: any torch module with `get_input_embeddings()`, wrapped or not, that is called with `input_ids` (B, L), or
        with `inputs_embeds` (B, L, D) that its embedding gave.
    seed: of the noise, if the configuration has none; 0 if neither does.
    steps: how many optimisation steps the run has; a schedule other than constant needs it.
    pad_token_id: as the batches are padded; by default what the model's configuration says.
    layout_reader: asked for the examples of a batch before those of the plugins.

    A forward pass gets noise if the model was called in training mode with gradients enabled: evaluation, generation
    and reference models stay clean. Installing in a model again, or in one that contains it, replaces the earlier
    installation; models that merely share an embedding keep their own. If `install` raises, nothing has changed.

    With `alpha=0` there is no noise: the handle can be used as any other, and nothing is installed.

    Raises NoiseNotAppliedError if no embedding is found, or if the module holds several models and it is not clear
    which of them trains; NoiseConfigError for a noise type that no plugin provides. Later, a training forward pass
    without noise raises NoiseNotAppliedError, and so does an optimisation step without one.
    """
    check_type(config)
    earlier = [handle for handle in _handles if handle.installed and _overlap(handle.model, model)]
    handle = Handle(model, config, seed or 0, steps, pad_token_id, layout_reader)
    if config.alpha == 0:
        _log.info(NO_NOISE)
    else:
        try:
            plugin_manager().hook.neftune_installed(handle=handle)
        except BaseException:
            handle.remove()
            raise
    for other in earlier:
        other.remove()
    _handles.add(handle)
    return handle


def _overlap(one: nn.Module, other: nn.Module) -> bool:
    """Whether one of the models contains the other."""
    return any(module is other for module in structure.walk(one)) or any(
        module is one for module in structure.walk(other)
    )


def _embeddings(model: nn.Module) -> list[nn.Module]:
    """The embeddings that get noise. Raises NoiseNotAppliedError if there is none."""
    found = plugin_manager().hook.neftune_embeddings(model=model)
    if not found:
        raise NoiseNotAppliedError(
            f"no embedding of tokens found in {type(model).__name__}: get_input_embeddings() of the model and of the "
            "modules in it gave none. A plugin can name them: implement neftune_embeddings(model) "
            "(neftune_plugins.plugins.hookspecs)."
        )
    inside = set(structure.walk(model))
    strangers = [type(embedding).__name__ for embedding in found if embedding not in inside]
    if strangers:
        raise NoiseNotAppliedError(
            f"neftune_embeddings gave {', '.join(strangers)}, which is no module of {type(model).__name__}"
        )
    return list(found)


class Handle:
    """Installed noise. As a context manager it removes the noise at the end.

    >>> noise = install(model, NoiseConfig(alpha=5))
    >>> noise.step = 0
    >>> noise.remove()

    model: the module that it was installed in.
    config: its configuration.
    measurements: of the noise, if `neftune_metrics` is on.
    audit: of `neftune_audit`.
    clean_loss: if `neftune_clean_loss_steps` is set.
    embeddings: names of the noised modules in the model.
    steps: how many optimisation steps the run has. May be set until `step` is, if it is not known earlier.
    """

    def __init__(
        self,
        model: nn.Module,
        config: NoiseConfig,
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
        self.embeddings: list[str] = []
        if pad_token_id is None:
            pad_token_id = structure.pad_token_id(model)
        ends = structure.token_ids(model, "eos_token_id")
        self._ids = {
            "pad_token_id": pad_token_id,
            "bos_token_ids": structure.token_ids(model, "bos_token_id") + ends,  # rows may be cut from a stream
            "eos_token_ids": ends,
        }
        self._readers = layout_readers() if layout_reader is None else (layout_reader, *layout_readers())
        seed = seed if config.seed is None else config.seed
        self.audit = Audit(config, seed, pad_token_id, self.embeddings)
        self._noise = Noise(
            noise_types()[config.type],
            alpha=config.alpha,
            seed=seed,
            padded_length=config.length == "padded",
            embeddings=self.embeddings,
            layout=self.layout,
            measurements=self.measurements,
            step_missing=self._step_missing,
            refresh=self._refresh,
            has_decoder=structure.decoder(model) is not None,
            audit=self.audit,
        )
        self._embedding_hooks = _EmbeddingHooks(model, self._noise)
        self._owner_hooks: list[RemovableHandle] = []
        if config.alpha != 0:
            self._hook()

    def _hook(self) -> None:
        embeddings = _embeddings(self.model)
        try:
            self.embeddings += self._embedding_hooks.put_on(embeddings)
            self._hook_owners(embeddings)
        except BaseException:
            self._unhook()
            raise
        _forget_compiled_graphs()

    def _hook_owners(self, embeddings: Sequence[nn.Module]) -> None:
        decoder = structure.decoder(self.model)
        inside_decoder = set() if decoder is None else set(structure.walk(decoder))
        owners = _owners(self.model, decoder, embeddings)
        outer = _outer(self.model, owners)
        for module in owners:
            pre_hook = OwnerPreHook(
                self._noise,
                id(module),
                is_root=module is self.model,
                arguments=tuple(inspect.signature(module.forward).parameters),
                stream=int(module in inside_decoder),
                innermost=module not in outer,
            )
            self._owner_hooks.append(module.register_forward_pre_hook(pre_hook, with_kwargs=True))
            end = module.register_forward_hook(OwnerHook(self._noise, pre_hook), always_call=True)
            self._owner_hooks.append(end)

    def _refresh(self) -> None:
        """Move the noise if the embeddings were replaced or wrapped since (PEFT does both)."""
        if not self._embedding_hooks.are_in_place():
            self.embeddings[:] = self._embedding_hooks.put_on(_embeddings(self.model))

    @property
    def step(self) -> int:
        """The optimisation step whose noise is drawn. Each value gives new noise, the same value the same noise.

        Until it is set, every training forward pass counts as one step, if the schedule is constant. Setting
        it raises NoiseNotAppliedError if the step before it had no noise, with the cause, and if the noise was removed.
        """
        begun = self._noise.begun
        return int(self._noise.step) if begun is None else begun

    @step.setter
    def step(self, step: int) -> None:
        if self.config.alpha == 0:
            self._noise.begin_step(step, 0.0)
            return
        if not self.installed:
            raise NoiseNotAppliedError(
                f"step {step} cannot begin: the noise was removed from {type(self.model).__name__}, by remove() or by "
                "a later install(...) in the same model, so training would continue without noise. Install it again."
            )
        if not self._noise.counts_forwards and step != self.step:
            self._check_step()
        try:
            alpha = alpha_at(self.config.alpha, self.config.schedule, step, self.steps)
        except ValueError:
            raise self._steps_unknown() from None
        if self._noise.counts_forwards or step != self.step:
            self._embedding_hooks.follow()
            self._noise.begin_step(step, alpha)
        self.audit.step, self.audit.steps = step, self.steps
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
        return bool(self._owner_hooks)

    def __str__(self) -> str:
        if self.config.alpha == 0:
            return NO_NOISE
        return (
            f"neftune_noise_alpha: {self.config.alpha:g} is applied by neftune-plugins, the native hook is off; "
            f"noise in {', '.join(self.embeddings)}, {self.config}"
        )

    def layout(self, batch: Batch) -> Layout:
        """The examples of a batch, given as the arguments of the model's forward by name."""
        batch = {**self._ids, **batch}
        for reader in self._readers:
            layout = reader(batch)
            if layout is not None:
                self.audit.foreign_layout = reader is not self._readers[-1]
                return layout
        raise AssertionError("the built-in reader knows every batch")

    def metrics(self) -> dict[str, float]:
        """What to log of the time since the last call, by name: of the noise, of the clean loss, and of plugins. For
        logging steps, because it waits for the model's device."""
        measured = {} if self.measurements is None else self.measurements.take()
        losses = {} if self.clean_loss is None else self.clean_loss.take()
        of_plugins = plugin_manager().hook.neftune_metrics(handle=self)
        audited = self.audit.metrics() if measured else {}
        found = [{"neftune/alpha": self.alpha} if measured else {}, measured, audited, losses, *reversed(of_plugins)]
        return {name: value for metrics in found for name, value in metrics.items()}

    def training_forwards(self) -> AbstractContextManager[None]:
        """Forward passes inside are training forward passes of one step, with or without gradients.

        >>> with noise.training_forwards():
        ...     with torch.no_grad():
        ...         cached = model(**batch)

        For gradients that are computed by hand, such as gradient caching (Gao et al., arXiv 2101.06983): its first
        pass runs without gradients and must have the noise of the second. The model must be in training mode.
        """
        return self._noise.by_hand()

    def end(self) -> None:
        """Say that the training ended as planned: raises NoiseNotAppliedError if there never was any noise, or if the
        last step ran in evaluation mode."""
        watch = self._noise.watch
        if self.config.alpha == 0:
            return
        if not watch.ever_noised:
            raise self._without_noise("the training ended without any noise")
        if watch.ran_in_evaluation and not watch.noised:
            raise self._without_noise(f"the last optimisation step, {self.step}, had no noise")

    def _check_step(self) -> None:
        watch = self._noise.watch
        if watch.noised:
            return
        # A loop may skip batches; what was trained here before is known to be trained here.
        was_called = watch.ran_in_evaluation or watch.ran_without_gradients or watch.looked_up_outside
        if was_called or not watch.ever_noised:
            raise self._without_noise(f"optimisation step {self.step} had no noise")

    def _without_noise(self, what: str) -> NoiseNotAppliedError:
        cause = self._noise.watch.cause(type(self.model).__name__)
        return NoiseNotAppliedError(f"neftune_noise_alpha is {self.config.alpha:g}, but {what}: {cause}.")

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
        if not self.installed:
            return
        self._unhook()
        self.audit.close()
        _forget_compiled_graphs()
        plugin_manager().hook.neftune_removed(handle=self)

    def _unhook(self) -> None:
        self._embedding_hooks.remove()
        for hook in self._owner_hooks:
            hook.remove()
        self._owner_hooks.clear()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Remove the noise. Without an exception, `end()`."""
        was_installed = self.installed
        self.remove()
        if kind is None and was_installed:
            self.end()


class _EmbeddingHooks:
    """The hooks on the embeddings of a model, which follow them when they are replaced or wrapped."""

    def __init__(self, model: nn.Module, noise: Noise) -> None:
        self._model = model
        self._noise = noise
        self._hooks: list[RemovableHandle] = []
        self._slots: list[tuple[nn.Module, str, nn.Module]] = []

    def put_on(self, embeddings: Sequence[nn.Module]) -> list[str]:
        """Hook these embeddings instead of the present ones. Returns their names in the model."""
        self.remove()
        for embedding in embeddings:
            scale = plugin_manager().hook.neftune_embedding_scale(model=self._model, embedding=embedding)
            hook = EmbeddingHook(self._noise, 1.0 if scale is None else scale)
            # Before the hook of a tensor-parallel style, behind which a slice does not say what it is of.
            first = has_shared_weight(embedding)
            self._hooks.append(embedding.register_forward_hook(hook, with_kwargs=True, prepend=first))
        wanted = set(embeddings)
        self._slots = [
            (module, name, child)
            for module in structure.walk(self._model)
            for name, child in module._modules.items()
            if child in wanted
        ]
        self.follow()
        return structure.named(self._model, embeddings)

    def follow(self) -> None:
        """Let step and alpha be where the first embedding is."""
        for _, _, embedding in self._slots[:1]:
            for weight in itertools.islice(embedding.parameters(), 1):
                self._noise.follow(weight.device)

    def are_in_place(self) -> bool:
        """Whether each embedding still stands where it stood."""
        return all(module._modules.get(name) is child for module, name, child in self._slots)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._slots.clear()


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


def _outer(model: nn.Module, owners: Sequence[nn.Module]) -> set[nn.Module]:
    """Those of the owners that another one is in."""
    over = structure.parents(model)
    among = set(owners)
    found: set[nn.Module] = set()
    for owner in owners:
        todo, seen = [owner], set()
        while todo:
            for parent in over[todo.pop()]:
                if parent in among:
                    found.add(parent)  # and it finds those above
                elif parent not in seen:
                    seen.add(parent)
                    todo.append(parent)
    return found


def _forget_compiled_graphs() -> None:
    """torch.compile does not notice hooks that come or go after a module's first compiled forward."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
