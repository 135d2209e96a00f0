"""Reads the rows of a dataset: prompts and the answers that a model should learn."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neftune_plugins.commands import files
from neftune_plugins.errors import NEFTuneError

Instructions = Literal["alpaca", "chat"]

# The wording of Stanford Alpaca, with the line break after the last heading as in Axolotl's `type: alpaca`.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
)
_PAIRED = ", paired with an input that provides further context"


@dataclass(frozen=True)
class Row:
    """A prompt and the answer to it.

    prompt: a text that the model gets unchanged, or the messages of a chat, to which its template is applied.
    answer: the answer in the dataset.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    answer: str

    @property
    def question(self) -> str:
        """Return the prompt for display: of a chat, the last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]

    def encode(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Return the token ids of the prompt, and of the answer with the end-of-sequence token.

        Both are encoded separately, because the model begins its answer with a new token. Text that a chat template
        adds after the end of the answer is left out.

        Raises NEFTuneError if the template is missing, or if the prompt is not the beginning of the whole chat.
        """
        if isinstance(self.prompt, str):
            prompt = tokenizer(self.prompt).input_ids
            return prompt, [*tokenizer(self.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        if tokenizer.chat_template is None:
            raise NEFTuneError("the rows are chats, but the tokenizer has no chat template; write them as prompt and "
                               "completion, as the framework writes them in training")  # fmt: skip
        messages = [*self.prompt, {"role": "assistant", "content": self.answer}]
        begin = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        if not whole.startswith(begin):
            raise NEFTuneError("the chat template writes the prompt otherwise when the answer follows; write the rows "
                               "as prompt and completion, as the framework writes them in training")  # fmt: skip
        prompt, answer = (
            tokenizer(text, add_special_tokens=False).input_ids for text in (begin, whole.removeprefix(begin))
        )
        if tokenizer.eos_token_id in answer:
            end = len(answer) - answer[::-1].index(tokenizer.eos_token_id)
            answer = answer[:end]
        return prompt, answer


def read(path: Path, instructions: Instructions = "alpaca") -> list[Row]:
    """Return the rows of a file, JSON lines or one JSON list, of objects with these keys:

    - `messages`: a chat whose last message, the assistant's, is the answer;
    - `instruction`, `output` and perhaps `input`: given to the model in Alpaca's wording, or as a chat;
    - `prompt` and `completion`: texts, or lists of messages.

    Raises NEFTuneError, with the number of the row, for any other row.
    """
    text = files.text(path).strip()
    rows = []
    try:
        objects = json.loads(text) if text.startswith("[") else map(json.loads, filter(str.strip, text.split("\n")))
        for found in objects:
            rows.append(_row(found, instructions))
    except (ValueError, RecursionError) as error:
        raise NEFTuneError(f"{path}, row {len(rows) + 1}: {error}") from None
    if not rows:
        raise NEFTuneError(f"{path}: there are no rows in it")
    return rows


class _NoRowError(ValueError):
    pass


def _row(found: Any, instructions: Instructions) -> Row:
    match found:
        case {"messages": [*prompt, {"role": "assistant", "content": str(answer)}]}:
            return Row(_chat(prompt), answer)
        case {"messages": _}:
            raise _NoRowError("the last of the messages is the answer and needs role assistant and a text as content")
        case {"instruction": str(instruction), "output": str(answer)}:
            given = found.get("input") or ""
            if instructions == "chat":
                return Row(({"role": "user", "content": "\n\n".join(filter(None, (instruction, given)))},), answer)
            parts = [_ALPACA.format(paired=_PAIRED if given else ""), f"### Instruction:\n{instruction}"]
            parts += [f"### Input:\n{given}"] if given else []
            return Row("\n\n".join([*parts, "### Response:\n"]), answer)
        case {"prompt": str(prompt), "completion": str(answer)}:
            if not prompt:
                raise _NoRowError("the prompt is empty")
            return Row(prompt, answer)
        case {"prompt": [*prompt], "completion": [{"role": "assistant", "content": str(answer)}]}:
            return Row(_chat(prompt), answer)
    known = "messages; instruction and output; prompt and completion"
    raise _NoRowError(f"none of these are there as texts or messages: {known}")


def _chat(messages: Sequence[Any]) -> tuple[Mapping[str, str], ...]:
    for message in messages:
        match message:
            case {"role": str(), "content": str()}:
                continue
        raise _NoRowError("a message needs role and content, both texts")
    if not messages:
        raise _NoRowError("there is no message before the answer")
    return tuple(messages)
