"""What was measured in a command, over all of its processes, and the verdict."""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

FORMAT = 1  # of the JSON
FAILED = 1

# How far from 1 a ratio may be, beyond what the size of the sample explains: bf16 rounds noise.
_TOLERANCE = 0.1
_ERRORS = 5.0
# Of the fourth moment of a uniform number: its squares vary by 9/5 - 1.
_VARIANCE = 9 / 5 - 1


class Example(NamedTuple):
    """length: L. ratio: to the paper's noise. tokens: with noise; silent: without."""

    length: int
    width: int
    ratio: float
    tokens: int
    silent: int

    @property
    def margin(self) -> float:
        """How far from 1 the ratio may be."""
        numbers = max(1, self.tokens * self.width)
        return _TOLERANCE + _ERRORS * math.sqrt(_VARIANCE / (4 * numbers))


@dataclass
class Kind:
    """Forward passes of one kind in all processes; see `recording.Kind`."""

    model: str
    mode: str
    grad: bool
    adapters: str
    caller: str
    forwards: int = 0
    measured: int = 0
    padding: float = 0.0
    examples: list[Example] = field(default_factory=list)
    doubts: Counter[str] = field(default_factory=Counter)
    blind: Counter[str] = field(default_factory=Counter)

    @property
    def trains(self) -> bool:
        """Whether the paper has noise here."""
        return self.caller == "trainer" and self.mode == "training" and self.grad

    @property
    def is_free(self) -> bool:
        """Whether noise is neither right nor wrong here: log-probabilities that the trainer takes of its policy."""
        return self.caller == "trainer" and not self.trains

    @property
    def ratios(self) -> list[float]:
        """Of the examples, in order of size."""
        return sorted(example.ratio for example in self.examples)

    @property
    def silent(self) -> int:
        """Tokens without noise in examples with noise: those of images."""
        return sum(example.silent for example in self.examples if example.ratio)

    @property
    def label(self) -> str:
        """In a sentence."""
        adapters = {"on": "", "off": ", adapters off", "-": ""}[self.adapters]
        return f"{self.caller} ({self.model}, {self.mode} mode, {'with' if self.grad else 'no'} gradients{adapters})"

    def problems(self) -> list[str]:
        """What is wrong, in words."""
        if self.is_free or not self.examples:
            return []
        if not self.trains:
            noisy = [one for one in self.ratios if one > _TOLERANCE]
            return [f"{self.label} has noise, up to {noisy[-1]:.2f} of the paper's"] if noisy else []
        found = []
        wrong = [one for one in self.examples if abs(one.ratio - 1) > one.margin]
        if not any(self.ratios):
            found.append(f"{self.label} has no noise")
        elif wrong:
            ratios = self.ratios
            found.append(
                f"{len(wrong)} of {len(self.examples)} examples of {self.label} have other noise than the paper's: "
                f"{ratios[0]:.2f} to {ratios[-1]:.2f} of it"
            )
        if self.padding:
            found.append(f"padding of {self.label} has noise, up to {self.padding:.2f} of the paper's bound")
        return found


@dataclass(frozen=True)
class Findings:
    """All of it.

    ended: the command's exit status. wanted: optimisation steps. reports: of its processes.
    alpha, source: of the paper's noise, and where it was found; None where it is not known.
    """

    command: Sequence[str]
    ended: int
    wanted: int
    reports: Sequence[Mapping[str, Any]]
    alpha: float | None
    source: str

    @property
    def steps(self) -> int:
        """That all training processes have done."""
        return min((report["steps"] for report in self._training), default=0)

    @property
    def processes(self) -> int:
        """That have trained."""
        return len(self._training)

    @property
    def _training(self) -> list[Mapping[str, Any]]:
        return [report for report in self.reports if report["kinds"]]

    @cached_property
    def kinds(self) -> list[Kind]:
        """Those that train first."""
        kinds: dict[tuple[Any, ...], Kind] = {}
        for report in self.reports:
            for one in report["kinds"]:
                about = (one["model"], one["mode"], one["grad"], one["adapters"], one["caller"])
                self._add(kinds.setdefault(about, Kind(*about)), one)
        return sorted(kinds.values(), key=lambda kind: (not kind.trains, kind.caller))

    def _add(self, kind: Kind, found: Mapping[str, Any]) -> None:
        alpha = self.alpha or math.inf  # without noise to compare with, all ratios are 0
        kind.forwards += found["forwards"]
        kind.measured += found["measured"]
        kind.padding = max(kind.padding, found["padding"] / alpha)
        kind.doubts.update(found["doubts"])
        kind.blind.update(found["blind"])
        for length, width, ratio, tokens, silent in found["examples"]:
            kind.examples.append(Example(length, width, ratio / alpha, tokens, silent))

    @cached_property
    def status(self) -> int:
        """The exit status of `neftune probe`."""
        if self.ended and self.steps < self.wanted:
            return self.ended
        return 0 if self.verdict.startswith("right") else FAILED

    @cached_property
    def verdict(self) -> str:
        """In one line, which begins with "right", "wrong" or "no verdict"."""
        training = [kind for kind in self.kinds if kind.trains]
        if problem := self._hindered(training):
            return f"no verdict: {problem}"
        problems = [problem for kind in self.kinds for problem in kind.problems()]
        if problems:
            return f"wrong: {'; '.join(problems)}"
        ratios = sorted(ratio for kind in training for ratio in kind.ratios)
        clean = sum(kind.measured for kind in self.kinds if not kind.trains and not kind.is_free)
        others = f"; {clean} other forward passes have none" if clean else ""
        return (
            f"right: all {len(ratios)} examples in training have the paper's noise "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f} of it), padding has none{others}"
        )

    def _hindered(self, training: list[Kind]) -> str:
        """Why nothing can be said; empty if something can."""
        if self.ended and self.steps < self.wanted:
            return f"{shlex.join(self.command)} ended with status {self.ended} after {self.steps} optimisation steps"
        if not self.reports:
            return (
                "the command made no PyTorch optimiser in a Python process that the probe could enter; python -I, -E "
                "and -S keep it out, and so does a container"
            )
        if not training:
            return "no forward pass in training mode with gradients was seen"
        if not any(kind.examples for kind in training):
            reasons: Iterable[str] = dict.fromkeys(reason for kind in training for reason in kind.blind)
            return f"the noise could not be measured: {'; '.join(reasons)}"
        if self.alpha is None:
            return "alpha is not known: it is not in the command or its configuration files; add --alpha"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "status": self.status,
            "command": list(self.command),
            "command_status": self.ended,
            "alpha": self.alpha,
            "alpha_source": self.source,
            "steps": self.steps,
            "processes": self.processes,
            "kinds": [_as_dict(kind) for kind in self.kinds],
        }


def _as_dict(kind: Kind) -> dict[str, Any]:
    names = ("model", "mode", "grad", "adapters", "caller", "forwards", "measured", "padding", "doubts", "blind")
    values = {name: getattr(kind, name) for name in names}
    return values | {"image_tokens": kind.silent, "examples": [example._asdict() for example in kind.examples]}
