"""The audit: measures the noise that enters the model, from outside, and compares it with its specification.

What it measures and how comes from `neftune_plugins.proof`, which knows nothing of the hooks that add the noise.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import WrongNoiseError
from neftune_plugins.proof import (
    Blind,
    Captured,
    Measured,
    MeasuredExample,
    Measurement,
    Watch,
    repeatable,
    unmeasurable,
)
from neftune_plugins.proof.specified import SPREAD, TYPES, alpha_at, noise

_log = logging.getLogger("neftune_plugins")

EVERY = 100
"""Number of steps between two measurements. The first noised step is always measured."""

# Of a size: so many standard deviations of it, and what models do on the way.
_DEVIATIONS, _SLACK = 6.0, 0.02
# Where rounding to the model's dtype changes the size by more than this, it is expected, and the tolerance is wider.
_ROUNDED, _SLACK_ROUNDED = 0.01, 0.3
# Largest noise where there should be none, over the bound of the paper's.
_NONE = 0.01
# Of the values, as their projection on the specified ones.
_SLACK_VALUES = 0.3
_TOKENS, _EXAMPLES = 8, 3


@dataclass
class _Pass:
    """A forward pass that is watched. `noisy`: whether it should have noise."""

    watch: Watch
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    noisy: bool
    kind: str


@dataclass
class _Pending:
    """What was captured and not yet looked at."""

    captured: Captured
    noisy: bool
    kind: str
    step: int


@dataclass
class Audit:
    """Measures the first noised step, then every `EVERY`-th, and the first pass of each kind that should be clean.

    config, seed: of the noise. Its step and the number of steps are set by the training loop, not read from the noise.
    pad_token_id: as the batches are padded.
    where: names of the modules on which the noise is added, for errors.
    """

    config: NoiseConfig
    seed: int
    pad_token_id: int | None
    where: list[str]
    step: int | None = None
    steps: int | None = None
    foreign_layout: bool = False
    ratio: float | None = None
    _forwards: int = 0
    _audited: int | None = None
    _kinds: set[str] = field(default_factory=set)
    _open: _Pass | None = None
    _pending: _Pending | None = None
    _said: set[str] = field(default_factory=set)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, noisy: bool) -> None:
        """An outermost forward pass begins. Watches it if it is due."""
        if self.config.audit == "off" or self.config.alpha == 0 or torch.compiler.is_compiling():
            return
        self._close()
        kind = _kind(module, noisy=noisy)
        if not self._is_due(kind, noisy=noisy) or getattr(module, "_is_replica", False):
            return
        given = repeatable(args, kwargs)
        if given is None:
            return
        self._take_note(kind, noisy=noisy)
        self.judge()
        blind = unmeasurable(module)
        if blind is not None:
            self._say_blind(blind, kind)
            return
        watch = Watch(module, pad_token_id=self.pad_token_id)
        self._open = _Pass(watch, module, *given, noisy=noisy, kind=kind)
        self.foreign_layout = False
        watch.start(args, kwargs)

    def count(self) -> None:
        """A training forward pass begins that counts as one step, because nobody sets the step."""
        self._forwards += 1

    def end(self, module: nn.Module, *, failed: bool) -> None:
        """It ended. Runs the clean half forward. Raises WrongNoiseError for the first noised pass, and the first of
        each kind that should be clean; others are judged at logging steps, so that no step waits for the device."""
        opened = self._open
        if opened is None or opened.module is not module:
            return
        self._close()
        if failed:
            return
        found = self._compared(opened)
        if isinstance(found, Blind):
            self._say_blind(found, opened.kind)
            return
        if self.foreign_layout and opened.noisy:
            self._say_blind(Blind("a reader of its own tells the examples of the batch"), opened.kind)
            return
        first = self._audited is None or not opened.noisy
        self._pending = _Pending(found, opened.noisy, opened.kind, self._present())
        if opened.noisy:
            self._audited = self._present()
        if first:
            self.judge()

    def judge(self) -> None:
        """Compare what was captured with the specification. Waits for the device."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        alpha = alpha_at(self.config.alpha, self.config.schedule, pending.step, self.steps)
        if alpha <= 0:
            return
        found = pending.captured.judged(alpha)
        if isinstance(found, Blind):
            self._say_blind(found, pending.kind)
            return
        problem = self._problem_of_clean(found) if not pending.noisy else self._problem(found, pending.step)
        if problem:
            self._complain(problem, found, pending)

    def metrics(self) -> dict[str, float]:
        """`neftune/noise_ratio` of the last measured step, empty if there was none. Waits for the device, and raises as
        `end` does."""
        self.judge()
        ratio, self.ratio = self.ratio, None
        return {} if ratio is None else {"neftune/noise_ratio": ratio}

    def close(self) -> None:
        """The noise is removed."""
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.watch.stop()
            self._open = None

    def _present(self) -> int:
        return self._forwards - 1 if self.step is None else self.step

    def _is_due(self, kind: str, *, noisy: bool) -> bool:
        if torch._C._current_graph_task_id() != -1 or torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        if not noisy:
            return kind not in self._kinds
        last = self._audited
        return last is None or self._present() < last or self._present() >= last + EVERY

    def _take_note(self, kind: str, *, noisy: bool) -> None:
        self._kinds.add(kind)
        if noisy and self._audited is not None:
            self._audited = self._present()

    def _compared(self, opened: _Pass) -> Captured | Blind:
        try:
            return opened.watch.compare(opened.args, opened.kwargs)
        except Exception as error:
            return Blind(f"the forward pass could not be repeated: {type(error).__name__}: {error}")

    def _say_blind(self, blind: Blind, kind: str) -> None:
        if self._audited is None and kind == _NOISED:
            self._audited = self._present()
        line = f"neftune_audit cannot measure the noise of {kind}: {blind}. The run continues."
        if line not in self._said:
            self._said.add(line)
            _log.info(line)

    def _complain(self, problem: str, found: Measurement, pending: _Pending) -> None:
        route = " and ".join(f"{stream.lookup} and {stream.consumer}" for stream in found.streams)
        doubts = [doubt for stream in found.streams for doubt in stream.doubts]
        message = (
            f"neftune_audit: in {pending.kind}, step {pending.step}, {problem}. Measured between {route}; the noise is "
            f"added on {', '.join(self.where)}. {f'The batch contradicts itself: {doubts[0]}. ' if doubts else ''}"
            "An adapter, a hook or a changed forward between them may change it, another NEFTune may be on, or the "
            "batch means something else than it says (docs/noise.md)."
        )
        if self.config.audit == "stop":
            raise WrongNoiseError(f"{message} neftune_audit: warn logs this and continues.")
        _log.warning(f"{message} neftune_audit: stop ends the run here.")

    def _problem_of_clean(self, found: Measurement) -> str:
        for stream in found.streams:
            noisy = [example for example in stream.examples if example.ratio > _NONE]
            if noisy or stream.padding > _NONE:
                most = max((example.ratio for example in noisy), default=stream.padding)
                return f"there is noise where there should be none: {most:.2f} of the paper's size"
        return ""

    def _problem(self, found: Measurement, step: int) -> str:
        examples = [example for stream in found.streams for example in stream.examples]
        if not examples:
            return ""
        if not any(example.ratio for example in examples):
            return "no noise entered the model"
        ratios: list[float] = []
        for stream in found.streams:
            rounding = _Rounding(stream, self.config.type, found.alpha)
            for example in stream.examples:
                problem = self._problem_of_size(stream, example, rounding, ratios)
                if problem:
                    return problem
            if stream.padding > _NONE:
                return f"padding has noise, {stream.padding:.2f} of the bound for text; 0 is expected"
            if rounding.swallowed > _SLACK_ROUNDED and "rounding" not in self._said:
                self._said.add("rounding")
                dtype = str(stream.difference.entry.values_BLD.dtype).removeprefix("torch.")
                _log.warning(
                    f"neftune_audit: {dtype} rounds {rounding.swallowed:.0%} of the noise away, because the embeddings "
                    "are much larger than it; a larger alpha or float32 embeddings keep it"
                )
        self.ratio = math.sqrt(sum(ratio**2 for ratio in ratios) / len(ratios)) if ratios else None
        return self._problem_of_values(found, step)

    def _problem_of_size(
        self, stream: Measured, example: MeasuredExample, rounding: "_Rounding", ratios: list[float]
    ) -> str:
        length = example.length
        tokens = len(example.columns) - example.silent
        if self.config.length == "padded":
            length = stream.difference.energy_BL.shape[1]
        where = f"row {example.row}, an example of L = {length},"
        if example.silent and not _is_merged(stream, example):
            return f"{where} has {example.silent} tokens without noise"
        if not tokens:
            return ""
        # The paper's, or that of another type or length.
        ratio = example.ratio * math.sqrt(length / example.length) / (_rms(self.config.type) * math.sqrt(3))
        expected, slack = rounding.expected, rounding.slack
        slack += _DEVIATIONS * SPREAD.get(self.config.type, 1.0) / math.sqrt(tokens * stream.width)
        ratios.append(ratio)
        if abs(ratio - expected) <= slack * max(1.0, expected):
            return ""
        return (
            f"{where} has {ratio:.3f} of the noise that it should have ({expected:.2f} is expected, within "
            f"{slack:.2f}); noise of this size is right for L = {example.own_length:.3g}"
        )

    def _problem_of_values(self, found: Measurement, step: int) -> str:
        if self.config.type not in TYPES:
            return ""
        for stream in found.streams:
            rounding = _Rounding(stream, self.config.type, found.alpha)
            # One stream alone may be that of a decoder whose encoder was not called.
            numbers = [stream.stream] if len(found.streams) > 1 else [0, 1]
            for example in _some(stream):
                shares = [self._projection(stream, example, found.alpha, step, number) for number in numbers]
                if all(abs(share - rounding.projection) > _SLACK_VALUES for share in shares):
                    best = max(shares, key=abs)
                    sign = "has the opposite sign of" if best < -0.5 else "is not"
                    return (
                        f"noise of row {example.row}, an example of L = {example.length}, {sign} what is specified: "
                        f"its projection on that is {best:.2f}, and {rounding.projection:.2f} is expected (another "
                        "seed, step, stream, example or order of its tokens)"
                    )
        return ""

    def _projection(self, stream: Measured, example: MeasuredExample, alpha: float, step: int, number: int) -> float:
        entry = stream.difference.entry
        ids_BL = entry.batch.get("input_ids", entry.ids_BL)
        row = ids_BL[example.row].tolist()
        count = len(example.columns)
        noisy = [place for place, column in enumerate(example.columns) if _has_noise(stream, example.row, column)]
        places = noisy[:: max(1, len(noisy) // _TOKENS)][:_TOKENS]
        length = ids_BL.shape[1] if self.config.length == "padded" else example.length
        sample_BLC = stream.difference.sample_BLC
        wanted = noise(
            [row[column] for column in example.columns],
            places,
            sample_BLC.shape[-1],
            kind=self.config.type,
            seed=self.seed,
            stream=number,
            step=step,
            factor=alpha / math.sqrt(length * stream.width),
        )
        assert count >= len(places)
        expected = torch.tensor(wanted, dtype=torch.float64)
        held = sample_BLC[example.row, [example.columns[place] for place in places]].double().cpu()
        return float((held * expected).sum() / expected.square().sum())


_NOISED = "training"


def _kind(module: nn.Module, *, noisy: bool) -> str:
    if noisy:
        return _NOISED
    mode = "training" if module.training else "evaluation"
    return (
        f"a pass of {type(module).__name__} in {mode} mode {'with' if torch.is_grad_enabled() else 'without'} gradients"
    )


def _rms(kind: str) -> float:
    from neftune_plugins.plugins import noise_types

    return float(noise_types()[kind].rms)


def _has_noise(stream: Measured, row: int, column: int) -> bool:
    return bool(stream.difference.energy_BL[row, column])


def _some(stream: Measured) -> list[MeasuredExample]:
    """A few examples whose tokens are all known."""
    if stream.difference.entry.ids_BL is None:
        return []
    whole = [
        example
        for example in stream.examples
        if len(example.columns) == example.length and example.silent < example.length
    ]
    return whole[:: max(1, len(whole) // _EXAMPLES)][:_EXAMPLES]


def _is_merged(stream: Measured, example: MeasuredExample) -> bool:
    """Whether the tokens without noise are those of features that were merged in: a few ids, repeated."""
    entry = stream.difference.entry
    if entry.ids_BL is None:
        return True
    ids_BL = entry.batch.get("input_ids", entry.ids_BL)
    ids = ids_BL[example.row].tolist()
    return (
        len({ids[column] for column in example.columns if not _has_noise(stream, example.row, column)}) <= 3
        and example.silent < example.length
    )


class _Rounding:
    """What rounding to the dtype of the embeddings makes of noise of the expected size, by trying it.

    expected: the size that is left, 1 in float32. projection: of what is left on the noise that was drawn.
    swallowed: the share of the noise that does not arrive. slack: tolerance of a size.
    """

    def __init__(self, stream: Measured, kind: str, alpha: float) -> None:
        clean_BLC = stream.difference.clean_BLC.detach().cpu()
        self.expected = self.projection = 1.0
        self.swallowed, self.slack = 0.0, _SLACK
        if clean_BLC.dtype in (torch.float32, torch.float64) or not stream.examples:
            return
        generator = torch.Generator().manual_seed(0)
        held, drawn = 0.0, 0.0
        along = 0.0
        for example in stream.examples:
            clean_LC = clean_BLC[example.row, list(example.columns)]
            bound = alpha * _rms(kind) * math.sqrt(3) / math.sqrt(example.length * stream.width)
            noise_LC = (torch.rand(clean_LC.shape, generator=generator) * 2 - 1) * bound
            left_LC = (clean_LC.float() + noise_LC).to(clean_LC.dtype).float() - clean_LC.float()
            held += float(left_LC.square().sum())
            drawn += float(noise_LC.square().sum())
            along += float((left_LC * noise_LC).sum())
        self.expected, self.projection = math.sqrt(held / drawn), along / drawn
        self.swallowed = max(0.0, 1 - self.projection)
        if abs(self.expected - 1) > _ROUNDED:
            self.slack = _SLACK_ROUNDED
