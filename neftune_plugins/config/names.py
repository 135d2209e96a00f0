"""Recognises names that mean one of our keys, and suggests the right name."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from neftune_plugins.config.values import number

# Names of neftune_noise_alpha in older releases and other tools that have no other meaning.
_OLDER = ("neft_alpha", "neft_noise_alpha", "neftune_alpha", "noisy_embedding_alpha")
_CLOSE = 0.85  # of two names, by `difflib`
_CLOSE_TO_OURS = 0.75  # where a name begins as ours do
_SHORTEST, _LONGEST = 8, 32  # characters of a name that can be close to one of ours


def means_one_of(keys: Sequence[str], name: object) -> bool:
    """Whether a name in any mapping is one of the keys, a misspelt one, or an older name of one."""
    return _meant(tuple(keys), _plain(name)) is not None


def same(one: object, other: object) -> bool:
    """Whether two names differ only in case, hyphens and leading hyphens."""
    return _plain(one) == _plain(other)


def begins_like_ours(name: object) -> bool:
    """Whether a name begins as our keys do."""
    return _plain(name).startswith("neft")


def could_ask_for_noise(value: Any) -> bool:
    """Whether a value under a name like ours can be meant as noise, rather than as a column of a dataset."""
    if isinstance(value, Mapping):
        return any("alpha" in _plain(name) for name in value)
    return value is True or number(value) is not None


def remedy(keys: Sequence[str], name: object, value: Any) -> str:
    """Return what to write instead of a name that is none of the keys; empty if none is close."""
    if isinstance(value, Mapping):
        pairs = [(_key_of(keys, part), given) for part, given in value.items()]
        flat = [f"{key}: {shown(given)}" for key, given in pairs if key is not None]
        if flat:
            return f"; the keys are flat: write {' and '.join(flat)}"
    meant = _meant(tuple(keys), _plain(name)) or _closest(keys, name)
    return f"; did you mean {meant}?" if meant else ""


def guess(value: object, choices: Iterable[str]) -> str:
    """Return the choice nearest to a value, as the end of an error message."""
    close = difflib.get_close_matches(str(value), list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def brief(value: object) -> str:
    """Return the value as Python writes it, shortened; frameworks' own dictionary types look like `dict`."""
    return reprlib.repr(dict(value) if isinstance(value, Mapping) else value)


def shown(value: object) -> str:
    """Return a value as YAML writes it, shortened."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value if isinstance(value, str) and len(value) < 40 else brief(value)


def _plain(name: object) -> str:
    return name.lower().lstrip("-").replace("-", "_") if isinstance(name, str) else ""


@lru_cache(maxsize=4096)
def _meant(keys: tuple[str, ...], plain: str) -> str | None:
    for key in keys:
        if _plain(key) == plain:
            return key
    if plain in _OLDER:
        return keys[0]
    if not _SHORTEST <= len(plain) <= _LONGEST:
        return None
    if plain.startswith("neptune") and not ("noise" in plain or "alpha" in plain):  # keys of the Neptune logger
        return None
    cutoff = _CLOSE_TO_OURS if plain.startswith("neft") else _CLOSE
    meanings = {older: keys[0] for older in _OLDER if len(older) > 13}  # shorter ones are close to other words
    meanings |= {_plain(key): key for key in reversed(keys)}
    close = difflib.get_close_matches(plain, meanings, n=1, cutoff=cutoff)
    return meanings[close[0]] if close else None


def _closest(keys: Sequence[str], name: object) -> str | None:
    plain = _plain(name)
    if plain in ("neft", "neftune", "neft_noise", "neftune_noise"):
        return keys[0]
    close = difflib.get_close_matches(plain, map(_plain, keys), n=1)
    return next(key for key in keys if _plain(key) == close[0]) if close else None


def _key_of(keys: Sequence[str], part: object) -> str | None:
    """Return the key for a name in a nested configuration, such as `alpha` in `neftune: {alpha: 5}`."""
    plain = _plain(part)
    return next((key for key in keys if plain and (key == plain or key.endswith(f"_{plain}"))), None)
