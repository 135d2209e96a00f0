"""Runs the example in a docstring."""

import doctest
import io
from collections.abc import Mapping
from typing import Any


def run_example(name: str, found: Any, names: Mapping[str, Any]) -> None:
    """Run the example in the docstring of `found`. Fails if there is none, or if the docstring opens with it.

    names: the variables that the example uses without defining them.
    """
    first = (found.__doc__ or "").lstrip().partition("\n")[0]
    assert not first.startswith(">>>"), f"the docstring of {name} has to open with what it does"
    tests = doctest.DocTestFinder(recurse=False).find(found, name, globs=dict(names))
    assert tests and tests[0].examples, f"{name} has no example"
    output = io.StringIO()
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(tests[0], out=output.write)
    assert not failed, output.getvalue()
