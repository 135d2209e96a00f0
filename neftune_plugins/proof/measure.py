"""Measures the noise of a forward pass: what entered the model, less what enters it in evaluation.

Shape suffixes: B rows of the batch, L tokens of a row, D channels, C channels of a sample.
"""

import contextlib
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neftune_plugins.proof.arguments import NOT_REPEATABLE, repeatable
from neftune_plugins.proof.examples import Examples, examples_of
from neftune_plugins.proof.route import Entry, RandomState, Route, clean_pass, random_state

SAMPLE = 64
"""Channels of which the values are kept; of the others their energy."""

# Rounding alone makes so much of a difference unlike itself.
_UNLIKE = {torch.float32: 0.01, torch.float16: 0.2, torch.bfloat16: 0.4}

# Hooks that make a model run at all, not what it computes: sharding, offloading.
_RUNS_MODELS = ("torch.", "deepspeed.", "accelerate.")


@dataclass(frozen=True)
class Blind:
    """There was nothing to measure.

    reason: why not, in words. remedy: what would help, or "".
    """

    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.reason}{f'; {self.remedy}' if self.remedy else ''}"


@dataclass(frozen=True)
class Difference:
    """What entered a model in one forward pass beyond what enters it in evaluation, on the model's device.

    entry: of that forward pass.
    energy_BL: squares of the difference, summed over all channels, float32.
    largest_BL: its largest absolute value.
    sample_BLC, clean_BLC: the difference, and what it was added to, in the first channels; `clean_BLC` has the model's
        own dtype.
    unlike: how much of the difference is not a multiple of the difference behind the lookup, as a share of its energy.
    unused: whether there is a difference behind the lookup and none here: the consumer does not use the lookup.
    width: D.
    """

    entry: Entry
    energy_BL: Tensor
    largest_BL: Tensor
    sample_BLC: Tensor
    clean_BLC: Tensor
    unlike: Tensor
    unused: Tensor
    width: int

    @staticmethod
    @torch.no_grad()
    def of(noisy: Entry, clean: Entry) -> "Difference":
        """Does not wait for the device."""
        difference = noisy.values_BLD.float() - clean.values_BLD.float()
        channels = slice(0, SAMPLE)
        largest_BL = difference.abs().amax(-1)
        return Difference(
            noisy,
            difference.square().sum(-1),
            largest_BL,
            difference[..., channels].clone(),
            clean.values_BLD[..., channels].clone(),
            _unlike(noisy, clean, difference),
            (noisy.looked_up_BLD != clean.looked_up_BLD).any() & ~largest_BL.any(),
            difference.shape[-1],
        )


def _unlike(noisy: Entry, clean: Entry, difference_BLD: Tensor) -> Tensor:
    """How much of what differs in front of the consumer is no multiple of what differs behind the lookup. Where
    embeddings were passed, of what entered and what was passed."""
    if noisy.ids_BL is None:
        one_BLD, other_BLD = clean.looked_up_BLD.float(), clean.values_BLD.float()
    else:
        one_BLD, other_BLD = noisy.looked_up_BLD.float() - clean.looked_up_BLD.float(), difference_BLD
    energy = one_BLD.square().sum()
    factor = (one_BLD * other_BLD).sum() / energy
    share = (other_BLD - factor * one_BLD).square().sum() / other_BLD.square().sum()
    return torch.where((energy > 0) & (other_BLD.square().sum() > 0), share, 0.0)


@dataclass(frozen=True)
class MeasuredExample:
    """The noise of one example.

    row, columns: where its tokens are. length: L.
    ratio: root mean square of the noise over that of the paper, alpha / sqrt(3 L d), over the tokens that have any.
    silent: how many of its tokens have none (images whose features replace the tokens' embeddings).
    own_length: the L that noise of this size is for; infinite without noise.
    """

    row: int
    columns: tuple[int, ...]
    length: int
    ratio: float
    silent: int
    own_length: float


@dataclass(frozen=True)
class Measured:
    """The noise of one stream: of a model, or of an encoder or a decoder.

    stream: 0, or 1 for the decoder.
    lookup, consumer: between which modules it was measured.
    padding: largest absolute value on tokens of no example, over the paper's bound for the longest row; 0 is right.
    difference: the values.
    layout: the examples.
    """

    stream: int
    lookup: str
    consumer: str
    width: int
    examples: tuple[MeasuredExample, ...]
    padding: float
    difference: Difference
    layout: Examples

    @property
    def doubts(self) -> list[str]:
        """Where arguments of the batch disagree about its examples."""
        return self.layout.doubts


@dataclass(frozen=True)
class Measurement:
    """The noise of one forward pass.

    alpha: with which it is compared.
    streams: one, or two for an encoder-decoder.
    """

    alpha: float
    streams: tuple[Measured, ...]

    @property
    def ratios(self) -> list[float]:
        """Of all examples: 1 is the paper's noise, 0 is none."""
        return [example.ratio for stream in self.streams for example in stream.examples]

    @property
    def padding(self) -> float:
        """See `Measured`; the largest of all streams."""
        return max((stream.padding for stream in self.streams), default=0.0)


@dataclass(frozen=True)
class Captured:
    """The differences of a forward pass, on its device. `judged` waits for it."""

    differences: tuple[Difference, ...]
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def judged(self, alpha: float) -> Measurement | Blind:
        """The noise by example, in the paper's units for this alpha."""
        streams = []
        for number, difference in enumerate(self.differences):
            found = _by_example(number, difference, alpha, self.pad_token_id, self.eos_token_ids)
            if isinstance(found, Blind):
                return found
            streams.append(found)
        return Measurement(alpha, tuple(streams))


class Watch:
    """Captures what enters the model in a forward pass that happens anyway, for one clean half forward to compare with.

    >>> watch = Watch(model)
    >>> with watch:
    ...     output = model(**batch)
    >>> captured = watch.compare((), batch)

    model: that is called. pad_token_id: by default what the model's configuration says.
    """

    def __init__(self, model: nn.Module, *, pad_token_id: int | None = None) -> None:
        self._model = model
        self._route = Route(model)
        self._state: RandomState | None = None
        self._ids = _special_ids(model, pad_token_id)

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin inside of the model's call, in a pre-hook of it, with the arguments of that call."""
        self._state = RandomState()
        self._route.start(self._model, args, kwargs)

    def stop(self) -> None:
        """End it, in a hook of the model."""
        self._route.stop()

    def __enter__(self) -> "Watch":
        self._state = RandomState()
        self._route.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def compare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Captured | Blind:
        """Run the model with these arguments up to where the watched forward pass was captured, as in evaluation:
        without gradients, and without the hooks of its lookups. Changes nothing, and does not wait for the device."""
        return _compare(self._route, self._state, self._ids, args, kwargs)


def measure(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    alpha: float,
    *,
    pad_token_id: int | None = None,
) -> Measurement | Blind:
    """The noise that enters `model` when it is called with these arguments, in its present mode and grad mode.

    >>> found = measure(model.train(), (), batch, alpha=5)
    >>> found.ratios
    [1.0, 1.0, 1.0]

    alpha: of the paper, for the ratios.

    Calls the model twice, each time up to the first module that uses the looked-up embeddings. The RNG state and the
    model stay as they are; hooks that count calls count these. A compiled model runs eagerly here.
    """
    route, state = Route(model, streams=_streams(model)), RandomState()
    first = repeatable(args, kwargs)
    if first is None:
        return Blind(NOT_REPEATABLE)
    with torch.compiler.set_stance("force_eager"):
        with random_state(state):
            route.run(*first)
        captured = _compare(route, state, _special_ids(model, pad_token_id), args, kwargs)
    return captured if isinstance(captured, Blind) else captured.judged(alpha)


def _compare(
    watched: Route,
    state: RandomState | None,
    ids: tuple[int | None, tuple[int, ...]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Captured | Blind:
    if not watched.entries:
        return _nothing_entered(watched.model)
    if any(_changes_weights(module) for lookup in watched.lookups for module in lookup.modules()):
        return Blind("its lookup changes a weight in place, as PEFT's target_parameters does, before each forward pass")
    clean = _clean(watched, args, kwargs, state)
    pairs = list(zip(watched.entries, clean, strict=False))
    is_alike = all(one.values_BLD.shape == other.values_BLD.shape for one, other in pairs)
    if len(clean) != len(watched.entries) or not is_alike:
        return Blind("the model took another way in evaluation than in training")
    return Captured(tuple(Difference.of(noisy, quiet) for noisy, quiet in pairs), *ids)


def _streams(model: nn.Module) -> int:
    """How many lookups to wait for; a forward pass that has fewer ends by itself."""
    config = getattr(model, "config", None)
    return 2 if getattr(config, "is_encoder_decoder", False) else 1


def _changes_weights(module: nn.Module) -> bool:
    """Then a second forward pass spoils the gradients of the first."""
    return any(kind.__name__ == "ParamWrapper" for kind in type(module).__mro__)


def _nothing_entered(model: nn.Module) -> Blind:
    compiled = [name or type(model).__name__ for name, module in model.named_modules() if _is_compiled(module)]
    if compiled:
        return Blind(
            f"{compiled[0]} is compiled, and what enters a compiled model is not visible from outside",
            "run once without compilation",
        )
    return Blind(
        f"no module of {type(model).__name__} was called with the looked-up embeddings (B, L, D): the lookup has other "
        "arguments than one tensor of ids, or its result is used outside of modules"
    )


def unmeasurable(model: nn.Module) -> Blind | None:
    """Why a second forward pass of this model would fail or change its training; None if it would not."""
    compiled = _compiled_lookup(model)
    if compiled is not None:
        return Blind(f"{compiled} is compiled", "run once without compilation")
    if _is_fsdp1(model):
        return Blind("FSDP1 allows no forward pass that ends early", "use FSDP2")
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return Blind("DeepSpeed's ZeRO-3 expects the same modules in each forward pass", "use ZeRO-2 or FSDP2")
    return None


def _compiled_lookup(model: nn.Module) -> str | None:
    """The name of a compiled part of the model that holds an embedding: to observe it would compile it again. (Compiled
    layers behind the lookup do no harm.)"""
    for name, module in model.named_modules():
        if _is_compiled(module) and any(hasattr(part, "num_embeddings") for part in module.modules()):
            return name or type(module).__name__
    return None


def _is_fsdp1(model: nn.Module) -> bool:
    """FSDP1 and FSDP2 mark all modules that they manage; those that FSDP2 wraps have methods of it."""
    modules = list(model.modules())
    is_managed = any(getattr(module, "_is_fsdp_managed_module", False) for module in modules)
    is_wrapper = any(type(module).__name__ == "FullyShardedDataParallel" for module in modules)
    return is_wrapper or (is_managed and not any(hasattr(module, "_get_fsdp_state") for module in modules))


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@torch.no_grad()
def _clean(watched: Route, args: tuple[Any, ...], kwargs: Mapping[str, Any], state: RandomState | None) -> list[Entry]:
    """What enters in evaluation. The state is that of the watched forward pass: dropout before the consumer is then
    the same, so the model may stay in its mode, and only the lookups are in evaluation."""
    route = Route(watched.model, streams=len(watched.entries), only=watched.numbers)
    inside = [module for lookup in watched.lookups for module in lookup.modules()]
    quiet = (_same_attributes(watched.model), _without_hooks(inside), _in_evaluation(inside), clean_pass())
    with random_state(state), contextlib.ExitStack() as stack:
        for one in quiet:
            stack.enter_context(one)
        route.run(args, kwargs)
    torch.clear_autocast_cache()  # it would hold weights that were cast without gradients
    return route.entries


@contextlib.contextmanager
def _same_attributes(model: nn.Module) -> Iterator[None]:
    """What modules keep of their last forward pass, for a loss perhaps, stays that of the pass before. (FSDP1 keeps
    views of its parameters there, and takes care of them itself.)"""
    modules = list(model.modules())
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in modules):
        yield
        return
    before = [(vars(module), dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for present, attributes in before:
            if present.keys() != attributes.keys():
                for name in present.keys() - attributes.keys():
                    del present[name]
            present.update(attributes)


@contextlib.contextmanager
def _in_evaluation(modules: Sequence[nn.Module]) -> Iterator[None]:
    before = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def _without_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take out the forward hooks of these modules, but not those without which a sharded model cannot run."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    before = [(module, {name: getattr(module, name) for name in names}) for module in modules]
    try:
        for module, hooks in before:
            for name, found in hooks.items():
                kept = OrderedDict((number, hook) for number, hook in found.items() if _runs_models(hook))
                setattr(module, name, kept)
        yield
    finally:
        for module, hooks in before:
            for name, found in hooks.items():
                setattr(module, name, found)


def _runs_models(hook: Any) -> bool:
    while hasattr(hook, "func"):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return f"{home}.".startswith(_RUNS_MODELS)


def _special_ids(model: nn.Module, pad_token_id: int | None) -> tuple[int | None, tuple[int, ...]]:
    configs: list[Any] = []
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            configs += [config, getattr(config, "text_config", None), getattr(module, "generation_config", None)]
    for config in configs:
        found = getattr(config, "pad_token_id", None)
        if pad_token_id is None and isinstance(found, int):
            pad_token_id = found
    ends: set[int] = set()
    for config in configs:
        found = getattr(config, "eos_token_id", None)
        ends.update([found] if isinstance(found, int) else found if isinstance(found, list | tuple) else [])
    return pad_token_id, tuple(sorted(ends))


def _by_example(
    stream: int, difference: Difference, alpha: float, pad_token_id: int | None, eos_token_ids: Collection[int]
) -> Measured | Blind:
    entry = difference.entry
    limit = _UNLIKE.get(entry.values_BLD.dtype, _UNLIKE[torch.float32])
    if float(difference.unlike) > limit:
        return Blind(
            f"between {entry.lookup} and {entry.consumer} the model does more with the embeddings than to multiply and "
            "to add, outside of modules, so what is measured there is not the noise"
        )
    if bool(difference.unused):
        return Blind(
            f"{entry.consumer}, the first module that is called after {entry.lookup} with a tensor of that shape, does "
            "not use it (images, perhaps)"
        )
    ids_BL = entry.ids_BL
    if ids_BL is None:
        # Embeddings that were computed outside: masks and positions alone tell the examples.
        ids_BL = torch.zeros(difference.energy_BL.shape, dtype=torch.int64)
        pad_token_id = None
    layout = examples_of(entry.batch, ids_BL, pad_token_id=pad_token_id, eos_token_ids=eos_token_ids)
    if isinstance(layout, str):
        return Blind(f"the examples of the batch are not known: {layout}")
    energy, largest, width = difference.energy_BL.tolist(), difference.largest_BL.tolist(), difference.width
    found: list[MeasuredExample] = []
    inside: set[tuple[int, int]] = set()
    for row, (examples, lengths) in enumerate(zip(layout.rows, layout.lengths, strict=True)):
        inside.update((row, column) for columns in examples for column in columns)
        inside.update((row, column) for column in layout.unsure[row])
        for columns, length in zip(examples, lengths, strict=True):
            found.append(_example(row, columns, length, width, alpha, energy[row], largest[row]))
    outside = [
        largest[row][column]
        for row in range(len(largest))
        for column in range(len(largest[row]))
        if (row, column) not in inside
    ]
    bound = alpha / math.sqrt(max(1, difference.energy_BL.shape[1]) * width)
    padding = max(outside, default=0.0) / bound
    return Measured(stream, entry.lookup, entry.consumer, width, tuple(found), padding, difference, layout)


def _example(
    row: int, columns: list[int], length: int, width: int, alpha: float, energy: list[float], largest: list[float]
) -> MeasuredExample:
    noisy = [column for column in columns if energy[column]]
    mean = sum(energy[column] for column in noisy) / (len(noisy) * width) if noisy else 0.0
    paper = alpha / math.sqrt(3 * length * width)
    most = max((largest[column] for column in columns), default=0.0)
    own_length = (alpha / most) ** 2 / width if most else math.inf
    return MeasuredExample(row, tuple(columns), length, math.sqrt(mean) / paper, len(columns) - len(noisy), own_length)
