"""The results of `neftune check`, as text and as JSON."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from neftune_plugins.commands.terminal import coloured, table


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result for one configuration file.

    file: path, as it was given.
    framework: name of the framework, with its version if it validated the file; None if it was not recognised.
    status: 0 if the file is correct, 1 if it is wrong, 2 if it could not be checked because its framework is not
        recognised, not installed or broken.
    problem: error message with its remedy; empty if status is 0.
    line: line of the file that has the problem, from 1; None if it is not known.
    notes: remarks that are not errors.
    quick: whether only our keys were checked.
    models: one entry per model, see `check.described`; after a quick check each has `place`, `keys` and `noise`
        (whether noise is asked for).
    """

    file: str
    framework: str | None = None
    status: int = 0
    problem: str = ""
    line: int | None = None
    notes: Sequence[str] = ()
    quick: bool = False
    models: Sequence[Mapping[str, Any]] = ()


def as_json(results: Sequence[Checked]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(result) for result in results]


def report(results: Sequence[Checked]) -> str:
    """Return the results as text."""
    return "\n\n".join(map(_report, results))


def _report(result: Checked) -> str:
    file = printable(result.file).replace("\n", "\\n")
    if result.status:
        place = file if result.line is None else f"{file}:{result.line}"
        return "\n".join([f"{coloured(place, 'red')}: {printable(result.problem)}", *_notes(result)])
    if result.framework is None:
        return f"{file}: {coloured('right', 'green')}, it has none of our keys"
    alone = ", our keys alone" if result.quick else ""
    lines = [f"{file}: {coloured('right', 'green')}, for {result.framework}{alone}", *_notes(result)]
    for model in result.models:
        lines += ["", *(_report_keys(model) if result.quick else _report_model(model))]
    return "\n".join(lines)


def _notes(result: Checked) -> list[str]:
    return [f"note: {printable(note)}" for note in result.notes]


def printable(text: str) -> str:
    """The text with control characters escaped, because a terminal would execute them."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in ("Cc", "Cs") else repr(char)[1:-1] for char in text
    )


def _rows(model: Mapping[str, Any]) -> str:
    rows = [("key", "value", "from")]
    rows += [(name, _shown(found["value"]), found["source"]) for name, found in model["keys"].items()]
    return table(rows)


def _report_keys(model: Mapping[str, Any]) -> list[str]:
    where = model["place"] or "the top level"
    if not model["keys"]:
        return [f"At {where}: none of our keys, so no noise."]
    rows = [f"At {where}:", "", _rows(model)]
    return rows if model["noise"] else [*rows, "", "No noise: neftune_noise_alpha is not set or 0."]


def _report_model(model: Mapping[str, Any]) -> list[str]:
    where = f" ({model['place']})" if model["place"] else ""
    if not model["keys"]:
        return [f"{model['model']}{where}: no noise, neftune_noise_alpha is not set or 0"]
    native = [norm["native"] for norm in model["lengths"]]
    heading = "native hook" if native[0] is not None else "native hook (none)"
    norms = [("tokens L", "noise", heading)]
    norms += [
        (str(norm["L"]), f"{norm['noise']:.4f}", "none" if norm["native"] is None else f"{norm['native']:.4f}")
        for norm in model["lengths"]
    ]
    longest = max(norm["L"] for norm in model["lengths"])
    return [
        f"The noise is added to the output of the input embedding of {model['model']}{where},",
        f"found when the model is loaded{'' if native[0] is None else '. The native hook is turned off'}.",
        "",
        _rows(model),
        "",
        f"Norm of the noise on one token, in a batch of these examples padded to {longest}:",
        "",
        table(norms, right=(0, 1, 2)),
        *_over_the_run(model),
    ]


def _over_the_run(model: Mapping[str, Any]) -> list[str]:
    alphas = [f"{alpha:.4g}" for alpha in model["alphas"]]
    if len(set(alphas)) == 1:
        return []
    return ["", f"The table shows the first step. Alpha after each quarter of the run: {', '.join(alphas[1:])}."]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()  # as in YAML
    return f"{value:g}" if isinstance(value, float) else str(value)
