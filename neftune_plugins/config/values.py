"""Converts values from YAML, a command line, NumPy or torch to Python's numbers and booleans."""

import math
import numbers
import re
from typing import Any

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_LONGEST = 400  # characters of a number that is read; Python refuses integers of more than 4,300


def number(value: Any) -> int | float | None:
    """Return a value as a number; None if it is not one. Text must be a number of YAML 1.2 or JSON.

    Text is accepted because command lines pass only text, and YAML 1.1 reads `1e1` as text. Booleans are not numbers.
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
    """Like `number`, for integers only."""
    found = number(value)
    return found if isinstance(found, int) else None


def truth(value: Any) -> bool | None:
    """Return a value, or the text of one, as a boolean; None if it is not one."""
    value = _plain(value)
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def off(value: Any) -> Any:
    """Return "off" for a boolean false: YAML 1.1 reads off without quotes as false. Other values do not change."""
    return "off" if value is False else value


def how_read(value: Any) -> str:
    """Return how YAML read a surprising value, as the end of an error message; empty for other values."""
    if isinstance(value, bool):
        return f"; YAML reads yes and on as true, no and off as false, which is {value}"
    return "; it is text" if isinstance(value, str) else ""


def _plain(value: Any) -> Any:
    """Convert scalars of NumPy, torch and JAX to Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
