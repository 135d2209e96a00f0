"""Who called a model, by the functions and objects that are on the stack."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

TRAINER, ROLLOUT, REFERENCE, TEACHER, EVALUATION = CALLERS = (
    "trainer",
    "rollout",
    "reference",
    "teacher",
    "evaluation",
)

_EVALUATING = ("evaluat", "predict", "validat", "batch_eval", "test_step")


def caller(model: Any, *, trained: bool, adapters: str) -> str:
    """One of `CALLERS`.

    trained: whether an optimiser has parameters of the model. adapters: "on", "off", or "-" where there are none.
    """
    names, roles = [], []
    for frame in _frames(sys._getframe(1)):
        names.append(frame.f_code.co_name.lower())
        owner = frame.f_locals.get("self")
        if owner is not None:
            roles += [name for name, value in _attributes(owner) if value is model]
    if not trained:
        taught = any("teacher" in role.lower() for role in roles) or any("teacher" in name for name in names)
        return TEACHER if taught else REFERENCE
    if adapters == "off":
        return REFERENCE
    if any(map(_generates, names)):
        return ROLLOUT
    if any(part in name for name in names for part in _EVALUATING):
        return EVALUATION
    return TRAINER


def _generates(name: str) -> bool:
    """TRL's `_generate_and_score_completions` takes log-probabilities, too."""
    return "rollout" in name or (name.lstrip("_").startswith("generate") and "score" not in name)


def alpha_in_sight() -> float | None:
    """`neftune_noise_alpha` of the arguments of a trainer on the stack."""
    for frame in _frames(sys._getframe(1)):
        arguments = dict(_attributes(frame.f_locals.get("self"))).get("args")
        alpha = dict(_attributes(arguments)).get("neftune_noise_alpha")
        if isinstance(alpha, int | float) and alpha:
            return float(alpha)
    return None


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _attributes(owner: object) -> list[tuple[str, Any]]:
    """Of the object itself: nothing of its class runs."""
    try:
        return list(object.__getattribute__(owner, "__dict__").items())
    except AttributeError:
        return []
