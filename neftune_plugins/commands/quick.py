"""`neftune check --quick`: check only our keys, from the text of the file, without a framework or torch."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from neftune_plugins.commands import judgement, reading
from neftune_plugins.commands.checked import Checked
from neftune_plugins.config import is_like_ours
from neftune_plugins.plugins.framework import Framework

# A key in a file that need not be YAML. None of our keys is shorter.
_KEY = re.compile(rb"([A-Za-z_]\w{8,40})[\"']?\s*:")


def quick(
    files: Sequence[Path], frameworks: Mapping[str, Framework], framework: str | None, *, ignore_others: bool = False
) -> list[Checked]:
    """Check our keys in files.

    frameworks: the frameworks to recognise, by name.
    framework: name of the files' framework; None to recognise it from each file.
    ignore_others: accept every file that has none of our keys, even if it is not a configuration.
    """
    known = {one.name: one for one in frameworks.values() if one.signs}
    return [_quick(file, known, framework, ignore_others) for file in files]


def _quick(file: Path, known: Mapping[str, Framework], name: str | None, ignore_others: bool) -> Checked:
    found = None
    try:
        source = reading.read(file)
        found = judgement.recognised(source, known, name)
        if found.exponents:
            source = reading.read(file, exponents=True)
        judged = judgement.judge(source, found)
        notes = [*judged.notes, *judgement.check_type_by_name(source, judged)]
    except reading.CannotReadError as error:
        if found is None and ignore_others and not _has_ours(file):
            return Checked(str(file), quick=True)
        return Checked(
            str(file), name if found is None else found.name, error.status, str(error), error.line, quick=True
        )
    models = [
        {
            "place": judgement.dotted(place),
            "keys": judgement.keys_of(source, place),
            "noise": config is not None,
        }
        for place, config in judged.configs.items()
    ]
    return Checked(str(file), found.name, notes=notes, quick=True, models=models)


def _has_ours(file: Path) -> bool:
    """Whether a file, YAML or not, has one of our keys or a misspelt one. True if it cannot be read."""
    if not file.is_file():
        return False
    try:
        with file.open("rb") as opened:
            data = opened.read(reading.LARGEST).replace(b"\0", b"")  # UTF-16 too
    except OSError:
        return True
    return any(is_like_ours(word.decode()) for word in set(_KEY.findall(data)))
