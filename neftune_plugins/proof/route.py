"""Follows a forward pass from the lookup of its tokens to the first module that uses the result.

Nothing is known of the model: a lookup is the outermost call whose only argument is one integer tensor (B, L) and whose
output is (B, L, D), so adapters around an embedding belong to it; its consumer is the first module called after it, not
containing it, with floats (B, >= L, D). Between the two are a model's own factors (Gemma) and the positions (GPT-2).

Shape suffixes: B rows of the batch, L tokens of a row, D channels.
"""

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_OF_DECODER = {"decoder_attention_mask": "attention_mask", "decoder_position_ids": "position_ids"}
_OF_LAYOUT = ("attention_mask", "position_ids", "cu_seq_lens_q", "seq_idx", "labels", "logits_to_keep")


class _Reached(Exception):  # noqa: N818  (no error: always_call hooks run for an Exception alone)
    """The last consumer was reached, and the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class Entry:
    """What entered a model after one lookup.

    lookup, consumer: names of the two modules in the model.
    ids_BL: the token ids, or None where embeddings were passed to the model.
    looked_up_BLD: the result of the lookup, or the embeddings that were passed, a copy.
    values_BLD: what the consumer was given, a copy. Of virtual tokens before the ids (prompt tuning) there is nothing.
    batch: the arguments of the calls around the lookup that say something of these ids, by the names of an encoder;
        `outer_ids` where a call around it had more columns of the same rows.
    """

    lookup: str
    consumer: str
    ids_BL: Tensor | None
    looked_up_BLD: Tensor
    values_BLD: Tensor
    batch: Mapping[str, Any]


@dataclass
class _Call:
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    may_look_up: bool

    def named(self) -> dict[str, Any]:
        """The arguments by name. A module may be called with one mapping of them (sentence-transformers)."""
        if len(self.args) == 1 and isinstance(self.args[0], Mapping):
            return {**self.args[0], **self.kwargs}
        return {**dict(zip(_parameters(self.module), self.args, strict=False)), **self.kwargs}


@dataclass
class _Lookup:
    module: nn.Module | None
    ids_BL: Tensor | None
    result_BLD: Tensor
    batch: Mapping[str, Any]
    number: int


_local = threading.local()


def in_clean_pass() -> bool:
    """Whether this thread runs a model without noise, to compare. What adds noise to a model, or checks that there is
    some, leaves that forward pass alone."""
    return bool(getattr(_local, "clean", False))


@contextlib.contextmanager
def clean_pass() -> Iterator[None]:
    """Forward passes inside are `in_clean_pass`."""
    before = in_clean_pass()
    _local.clean = True
    try:
        yield
    finally:
        _local.clean = before


class Route:
    """Observes the calls of this thread between `start` and `stop`, but not those of other routes' clean passes.

    model: whose modules are named.
    streams: after how many consumers the forward pass is stopped, by an exception that `run` keeps; 0: never.
    only: the numbers of the lookups to follow, as another route counted them. By default all, but in a pass with
        gradients not those without (a teacher that a model calls first).
    """

    def __init__(self, model: nn.Module, *, streams: int = 0, only: Sequence[int] | None = None) -> None:
        self.model = model
        self.entries: list[Entry] = []
        self.lookups: list[nn.Module] = []
        self.numbers: list[int] = []
        self._streams = streams
        self._only = only
        self._count = 0
        self._graded = False
        self._calls: list[_Call] = []
        self._open: _Call | None = None  # the outermost call in progress that may be a lookup
        self._waiting: _Lookup | None = None
        self._thread = 0
        self._is_clean = False

    def start(self, module: nn.Module | None = None, args: tuple[Any, ...] = (), kwargs: Any = None) -> None:
        """Begin. Inside of a call (in one of its hooks) give that call's module and arguments."""
        self._thread = threading.get_ident()
        self._graded = torch.is_grad_enabled()
        self._is_clean = in_clean_pass()
        self._calls.clear()
        self._open = self._waiting = None
        if module is not None:
            self._begin(module, args, kwargs or {})
        _observe(self)

    def stop(self) -> None:
        """End; nothing happens the second time."""
        _ignore(self)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Call the model up to the last consumer."""
        self.start()
        try:
            with contextlib.suppress(_Reached):
                self.model(*args, **kwargs)
        finally:
            self.stop()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module is called."""
        if not self._observes():
            return
        self._begin(module, args, kwargs)
        if self._open is None and self._waiting is not None:
            self._try_consumer(self._waiting, module, args, kwargs)

    def _observes(self) -> bool:
        return threading.get_ident() == self._thread and in_clean_pass() == self._is_clean

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        call = _Call(module, args, kwargs, False)
        self._calls.append(call)
        if self._open is None and self._waiting is None:
            self._try_given_embeddings(call)
            if self._waiting is None and len(self._calls) > 1 and _is_lookup_like(module, args, kwargs):
                call.may_look_up = True
                self._open = call

    def leave(self, module: nn.Module, output: object) -> None:
        """A call ends; `output` is None where it failed."""
        if not self._observes() or not self._calls:
            return
        call = self._calls.pop()
        if call is not self._open:
            return
        self._open = None
        ids_BL = next(iter((*call.args, *call.kwargs.values())))
        is_result = isinstance(output, Tensor) and output.is_floating_point()
        if not is_result or not isinstance(output, Tensor) or output.shape[:-1] != ids_BL.shape:
            return
        if self._is_followed() and self._is_new(ids_BL):
            batch = _arguments(self._calls, ids_BL)
            self._waiting = _Lookup(module, ids_BL, output.detach().clone(), batch, self._count)

    def _is_followed(self) -> bool:
        """Of the lookup that comes next in this forward pass."""
        self._count += 1
        if self._only is not None:
            return self._count in self._only
        return torch.is_grad_enabled() or not self._graded

    def _is_new(self, ids_BL: Tensor) -> bool:
        """Whether these ids begin another stream: the first lookup does, later ones only of ids that some call was
        given (positions and relative distances are looked up, too) and that were not looked up before."""
        if not self.entries:
            return True
        seen = any(entry.ids_BL is not None and _same(entry.ids_BL, ids_BL) for entry in self.entries)
        return not seen and any(_same(value, ids_BL) for call in self._calls for value in call.named().values())

    def _try_given_embeddings(self, call: _Call) -> None:
        embeds = call.named().get("inputs_embeds") if not self.entries else None
        is_embeds = isinstance(embeds, Tensor) and embeds.dim() == 3 and embeds.is_floating_point()
        if is_embeds and isinstance(embeds, Tensor) and self._is_followed():
            batch = {name: call.named().get(name) for name in _OF_LAYOUT}
            self._waiting = _Lookup(None, None, embeds.detach().clone(), batch, self._count)

    def _try_consumer(
        self, lookup: _Lookup, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        values = [*args, *(value for name, value in kwargs.items() if not name.endswith("inputs_embeds"))]
        found = next((value for value in values if _enters(value, lookup)), None)
        if found is None or _takes_embeddings(module, found, args) or _places_tokens(module):
            return
        if lookup.module is not None and any(inner is lookup.module for inner in module.modules()):
            return
        names = {inner: name for name, inner in self.model.named_modules()}
        looked_up = "inputs_embeds" if lookup.module is None else _name(names, lookup.module)
        values_BLD = found.detach()[:, found.shape[1] - lookup.result_BLD.shape[1] :].clone()
        entry = Entry(looked_up, _name(names, module), lookup.ids_BL, lookup.result_BLD, values_BLD, lookup.batch)
        self.entries.append(entry)
        self.numbers.append(lookup.number)
        if lookup.module is not None:
            self.lookups.append(lookup.module)
        self._waiting = None
        if len(self.entries) == self._streams:
            self._calls.pop()
            raise _Reached


def _name(names: Mapping[nn.Module, str], module: nn.Module) -> str:
    return names.get(module) or type(module).__name__


def _parameters(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)


def _is_lookup_like(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    given = [*args, *kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        return False
    ids = given[0]
    # A model that is called with ids alone is no lookup.
    is_model = {"attention_mask", "inputs_embeds"}.intersection(_parameters(module)) or hasattr(module, "config")
    return ids.dim() == 2 and ids.dtype in _INTEGERS and not is_model


def _enters(value: object, lookup: _Lookup) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() != 3:
        return False
    rows, columns, width = lookup.result_BLD.shape
    return value.shape[0] == rows and value.shape[1] >= columns and value.shape[2] == width


def _takes_embeddings(module: nn.Module, value: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether the value is passed by position as the `inputs_embeds` of a model inside."""
    place = next((index for index, given in enumerate(args) if given is value), None)
    names = _parameters(module)
    return place is not None and place < len(names) and names[place].endswith("inputs_embeds")


def _places_tokens(module: nn.Module) -> bool:
    """Whether this computes rotary embeddings. It is given the embeddings for their dtype alone, in transformers 4
    before Gemma scales them."""
    return "position_ids" in _parameters(module) and next(module.parameters(), None) is None


def _same(one: object, other: Tensor) -> bool:
    """Whether these are the same numbers in memory."""
    if one is other:
        return True
    return isinstance(one, Tensor) and one.shape == other.shape and one.data_ptr() == other.data_ptr()


def _arguments(calls: Sequence[_Call], ids_BL: Tensor) -> dict[str, Any]:
    """What the calls around a lookup of these ids say of them; the outermost is believed."""
    named = [call.named() for call in calls]
    of_ids = [batch for batch in named if _same(batch.get("input_ids"), ids_BL)]
    if not of_ids:  # models replace the ids of images
        of_ids = [batch for batch in named if getattr(batch.get("input_ids"), "shape", None) == ids_BL.shape]
    found: dict[str, Any] = {}
    for batch in named:
        if _same(batch.get("decoder_input_ids"), ids_BL):
            found.update({name: batch.get(own) for own, name in _OF_DECODER.items()} | {"labels": batch.get("labels")})
    for batch in of_ids:
        found.update({name: batch.get(name) for name in _OF_LAYOUT if found.get(name) is None})
        found.setdefault("input_ids", batch["input_ids"])
    around = next((batch for batch in named if _is_wider(batch.get("input_ids"), ids_BL)), None)
    is_decoder = any("decoder_input_ids" in _parameters(call.module) for call in calls)
    if around is not None and not is_decoder:
        found["outer"] = {name: around.get(name) for name in ("input_ids", *_OF_LAYOUT)}
    return found


def _is_wider(ids: object, ids_BL: Tensor) -> bool:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in _INTEGERS:
        return False
    return len(ids) == len(ids_BL) and ids.shape[1] > ids_BL.shape[1]


_observers: list[Route] = []
_original: Any = None
_lock = threading.Lock()


def _observe(route: Route) -> None:
    global _original
    with _lock:
        if not _observers:
            _original = nn.Module.__call__
            nn.Module.__call__ = _observed  # type: ignore[method-assign]
        _observers.append(route)


def _ignore(route: Route) -> None:
    with _lock:
        if route not in _observers:
            return
        _observers.remove(route)
        if not _observers:
            nn.Module.__call__ = _original  # type: ignore[method-assign]


def _observed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stands for `nn.Module.__call__` while there is an observer: hooks of all modules would not see keywords."""
    observers = tuple(_observers)
    call, output = _original, None
    for route in observers:
        route.enter(module, args, kwargs)
    try:
        output = call(module, *args, **kwargs)
    finally:
        for route in observers:
            route.leave(module, output)
    return output


@contextlib.contextmanager
def random_state(state: "RandomState | None" = None) -> Iterator[None]:
    """Draw from `state` inside (by default from the present one), and go on afterwards as if nothing was drawn."""
    before = RandomState()
    if state is not None:
        state.set()
    try:
        yield
    finally:
        before.set()


class RandomState:
    """The state of torch's generators: of the CPU and of the current accelerator."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._device = None if accelerator is None else torch.get_device_module(accelerator)
        self._of_device = None if self._device is None else self._device.get_rng_state()

    def set(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._device is not None:
            self._device.set_rng_state(self._of_device)
