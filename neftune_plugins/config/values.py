"""What a value says, whoever wrote it: YAML, a command line, NumPy or torch."""

import math
import numbers
import re
from typing import Any

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_LONGEST = 400  # characters of a number that is read; Python refuses integers of more than 4,300


def number(value: Any) -> int | float | None:
    """The number that a value is, or says in the digits of YAML 1.2 and JSON; None if it is none.

    Text is read because command lines give nothing else, and YAML 1.1 reads `1e1` as text. A boolean is no number.
    """
    value = _plain(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) <= _LONGEST:
        if _INTEGER.fullmatch(value):
            return int(value)
        found = float(value) if _NUMBER.fullmatch(value) else math.nan
        return found if math.isfinite(found) else None
    if isinstance(value, int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def integer(value: Any) -> int | None:
    """As `number`, of integers alone."""
    found = number(value)
    return found if isinstance(found, int) else None


def truth(value: Any) -> bool | None:
    """The boolean that a value is, or says; None if it is none."""
    value = _plain(value)
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def how_read(value: Any) -> str:
    """Why a value that looks like something else is what it is; empty where there is nothing to say."""
    if isinstance(value, bool):
        return f"; YAML reads yes and on as true, no and off as false, which is {value}"
    return "; it is text" if isinstance(value, str) else ""


def _plain(value: Any) -> Any:
    """The scalars of NumPy, torch and JAX as Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
