"""Rewards for trainers that train on what the model generates."""

from typing import Any


def length(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The longer the better."""
    return [float(len(completion)) for completion in completions]


class LongerOfTwo:
    """A judge, as TRL 0.19 has them: which of two completions of each prompt is the better one."""

    def judge(self, prompts: list[str], completions: list[tuple[str, str]]) -> list[int]:
        return [int(len(second) > len(first)) for first, second in completions]
