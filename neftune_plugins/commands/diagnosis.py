"""The findings of `neftune doctor` as text and as JSON, and the check of torch, which all other checks need.

This module does not import torch at its top level, so that it can report a torch that does not load.
"""

import dataclasses
import importlib.metadata
import platform
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from neftune_plugins.commands.terminal import coloured, folded, waiting

OURS = "neftune-plugins"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    about: name of the framework that was checked, or `environment`.
    what: name of the check, such as `torch` or `import`.
    found: the result in words, such as a version or an error message.
    state: `ok`, `wrong`, or `info` for a result that cannot be wrong.
    remedy: what to do if the state is `wrong`, such as a pip command; how to install a framework that is not installed.
    """

    about: str
    what: str
    found: str
    state: Literal["ok", "info", "wrong"] = "ok"
    remedy: str = ""


def version(distribution: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def ground() -> list[Finding]:
    """Findings about this package, Python and torch. Imports torch."""
    torch = version("torch")
    try:
        with waiting("importing torch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns if numpy is not installed
            from torch import Tensor  # noqa: F401  (`import torch` alone succeeds on the folder that a broken installation leaves)
    except Exception as error:
        exact = "torch" if torch is None else f'"torch=={torch}"'
        found, remedy = f"{torch} does not load: {one_line(error)}", f"pip install --force-reinstall {exact}"
        finding = Finding("environment", "torch", found, "wrong", remedy)
    else:
        finding = Finding("environment", "torch", str(torch))
    return [
        Finding("environment", OURS, str(version(OURS)), "info"),
        Finding("environment", "python", platform.python_version(), "info"),
        finding,
    ]


def one_line(error: BaseException) -> str:
    """The error on one line, after the name of the package that raised it."""
    origin = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").split(".")[0]
        if package not in ("importlib", "neftune_plugins"):
            origin = f"{package}: "
    return f"{origin}{type(error).__name__}: {' '.join(str(error).split())}"


def status(findings: Sequence[Finding]) -> int:
    """Exit status: 0 if everything installed works, 1 if something is wrong, 2 if no framework is installed."""
    if any(finding.state == "wrong" for finding in findings):
        return 1
    return 0 if {finding.about for finding in findings if finding.state == "ok"} - {"environment"} else 2


def report(findings: Sequence[Finding]) -> str:
    """Return the findings as text."""
    signs = {"ok": coloured("ok   ", "green"), "info": "-    ", "wrong": coloured("WRONG", "red")}
    width = max(len(finding.what) for finding in findings)
    lines = []
    for number, finding in enumerate(findings):
        if number == 0 or findings[number - 1].about != finding.about:
            lines.append(finding.about)
        begin = f"  {signs[finding.state]}  {finding.what.ljust(width)}  "
        lines.append(begin + folded(finding.found, width + 11))
        if finding.state == "wrong":
            lines.append(" " * (width + 11) + folded(f"remedy: {finding.remedy}", width + 11))
    wrong = sum(finding.state == "wrong" for finding in findings)
    absent = {finding.about: finding.remedy for finding in findings if finding.found == "not installed"}
    conclusion = {
        0: coloured("Everything that is installed works.", "green"),
        1: coloured(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong.", "red"),
        2: "No training framework is installed. Install one with its adapter: " + " or ".join(absent.values()),
    }
    return "\n".join([*lines, "", conclusion[status(findings)]])


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"status": status(findings), "findings": [dataclasses.asdict(finding) for finding in findings]}
