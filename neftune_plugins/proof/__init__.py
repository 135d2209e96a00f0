"""Measures the noise that enters a model, from outside, without knowing how it was put in.

Shares no code with what adds the noise, so that one can be held against the other.
"""

from neftune_plugins.proof.arguments import NOT_REPEATABLE, repeatable
from neftune_plugins.proof.examples import Examples, examples_of
from neftune_plugins.proof.measure import (
    Blind,
    Captured,
    Difference,
    Measured,
    MeasuredExample,
    Measurement,
    Watch,
    measure,
    unmeasurable,
)
from neftune_plugins.proof.route import Entry, Route, in_clean_pass, random_state

__all__ = [
    "NOT_REPEATABLE",
    "Blind",
    "Captured",
    "Difference",
    "Entry",
    "Examples",
    "Measured",
    "MeasuredExample",
    "Measurement",
    "Route",
    "Watch",
    "examples_of",
    "in_clean_pass",
    "measure",
    "random_state",
    "repeatable",
    "unmeasurable",
]
