"""Types of command-line options with errors that say what is expected."""

import argparse
import math

_LARGEST = 2**53  # largest count: floats represent integers exactly up to here


def count(text: str) -> int:
    """A whole number of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= _LARGEST:
        raise argparse.ArgumentTypeError(
            f"{shortened(text)} is not a count; give a whole number of 1 or more, such as 4"
        )
    return number


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers of 1 or more, with commas between them."""
    try:
        return tuple(map(count, text.split(",")))
    except argparse.ArgumentTypeError:
        problem = f"{shortened(text)} is not a list of counts; give whole numbers of 1 or more, such as 32,128"
        raise argparse.ArgumentTypeError(problem) from None


def number(text: str) -> float:
    """A finite number."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number; give a finite number, such as 5")
    return found


def shortened(text: str) -> str:
    """What was given, in quotes and on one line."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
