"""`neftune doctor`: what is installed, whether it works, and what to do where it does not."""

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from packaging.requirements import Requirement

from neftune_autoload import VARIABLE, enabled
from neftune_plugins import installed, worker
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.framework import Framework
from neftune_plugins.manager import ENTRY_POINT_GROUP, frameworks, noise_types
from neftune_plugins.terminal import coloured, waiting

_AUDIO = "torchaudio"
_TORCHS_VARIABLE = "TORCH_DEVICE_BACKEND_AUTOLOAD"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    about: the framework, or `environment`.
    what: was looked at.
    found: there.
    state: `info` is neither good nor bad.
    remedy: what to do where the state is `wrong`.
    """

    about: str
    what: str
    found: str
    state: Literal["ok", "info", "wrong"] = "ok"
    remedy: str = ""


def doctor() -> list[Finding]:
    """Look at everything. Never raises for what is broken: that is a finding."""
    findings = list(_environment())
    if any(finding.state == "wrong" and finding.what == "plugin" for finding in findings):
        return findings  # nothing is registered then, frameworks neither
    known = list(frameworks().values())
    present = [framework for framework in known if installed.version(framework.distribution) is not None]
    untested = {framework.name: installed.untested(framework) for framework in present}
    with waiting("importing " + ", ".join([*untested, "torchaudio"])), ThreadPoolExecutor() as pool:
        audio = pool.submit(_torchaudio)
        probed = dict(zip(untested, pool.map(_probe, untested), strict=True))
        findings += audio.result()
    repairs = [_reinstall(framework, untested[framework.name]) for framework in present if untested[framework.name]]
    for framework in present:
        for requirement in installed.tested(framework):
            found = f"{installed.version(requirement.name)}, tested with {requirement.specifier}"
            wrong = requirement in untested[framework.name]
            findings.append(Finding(framework.name, requirement.name, found, "wrong" if wrong else "ok"))
        findings += probed[framework.name]
    for framework in known:
        if framework not in present:
            install = f'pip install "{installed.extra(framework)}"'
            findings.append(Finding(framework.name, framework.distribution, "not installed", "info", install))
    return [_with_remedy(finding, repairs) for finding in findings]


def _reinstall(framework: Framework, untested: Sequence[Requirement]) -> str:
    companions = sorted({name for requirement in untested for name in installed.pinned_to(requirement.name)})
    return " ".join([f'pip install "{installed.extra(framework)}"', *companions])


def _with_remedy(finding: Finding, repairs: Sequence[str]) -> Finding:
    """A release that is not tested is the first suspect for all that does not work; it may break other packages too."""
    if finding.state != "wrong" or finding.remedy:
        return finding
    if repairs:
        return dataclasses.replace(finding, remedy=" && ".join(repairs))
    if finding.what == _AUDIO:
        remedy = f"install the torch that it was built for, or pip uninstall {_AUDIO}"
    else:
        remedy = f'pip install --force-reinstall "{installed.extra(frameworks()[finding.about])}"'
    return dataclasses.replace(finding, remedy=remedy)


def status(findings: list[Finding]) -> int:
    """Exit status: 0 where all that is installed works, 1 where something is wrong, 2 where no framework is there."""
    if any(finding.state == "wrong" for finding in findings):
        return 1
    return 0 if {finding.about for finding in findings if finding.state == "ok"} - {"environment"} else 2


def report(findings: list[Finding]) -> str:
    """The findings as text."""
    signs = {"ok": coloured("ok   ", "green"), "info": "-    ", "wrong": coloured("WRONG", "red")}
    width = max(len(finding.what) for finding in findings)
    lines = []
    for number, finding in enumerate(findings):
        if number == 0 or findings[number - 1].about != finding.about:
            lines.append(finding.about)
        lines.append(f"  {signs[finding.state]}  {finding.what.ljust(width)}  {finding.found}")
        if finding.state == "wrong":
            lines.append(f"         {' ' * width}  remedy: {finding.remedy}")
    wrong = sum(finding.state == "wrong" for finding in findings)
    absent = {finding.about: finding.remedy for finding in findings if finding.found == "not installed"}
    conclusion = {
        0: coloured("All that is installed works.", "green"),
        1: coloured(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong.", "red"),
        2: "No training framework is installed. Install one with its adapter: " + " or ".join(absent.values()),
    }
    return "\n".join([*lines, "", conclusion[status(findings)]])


def as_json(findings: list[Finding]) -> dict[str, Any]:
    return {"status": status(findings), "findings": [dataclasses.asdict(finding) for finding in findings]}


def _environment() -> Iterator[Finding]:
    yield Finding("environment", installed.OURS, str(installed.version(installed.OURS)), "info")
    yield Finding("environment", "python", platform.python_version(), "info")
    yield Finding("environment", "torch", str(installed.version("torch")), "info")
    for variable in (VARIABLE, _TORCHS_VARIABLE):
        if os.environ.get(variable) == "0":
            yield Finding("environment", "autoload", f"off: {variable}=0", "wrong", f"unset {variable}")
            break
    else:
        yield Finding("environment", "autoload", "on")
    broken = False
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            broken = True
            distribution = point.dist.name if point.dist is not None else point.name
            found = f"{point.name} of {distribution} does not load: {_line(error)}"
            remedy = f"update it, or pip uninstall {distribution}"
            yield Finding("environment", "plugin", found, "wrong", remedy)
    if not broken:
        yield Finding("environment", "noise types", ", ".join(noise_types()))


def _torchaudio() -> list[Finding]:
    """It loads beside one torch only. Ludwig, LLaMA-Factory and transformers import it where it is installed."""
    if installed.version(_AUDIO) is None:
        return []
    try:
        problem = worker.call("neftune_plugins.doctor:import_problem", _AUDIO)
    except NEFTuneError as error:
        problem = str(error)
    found = f"{installed.version(_AUDIO)}{problem and f' does not load: {problem}'}"
    return [Finding("environment", _AUDIO, found, "wrong" if problem else "ok")]


def _probe(name: str) -> list[Finding]:
    try:
        return [Finding(**found) for found in worker.call("neftune_plugins.doctor:probe", name)]
    except NEFTuneError as error:
        return [Finding(name, "import", str(error), "wrong")]


def import_problem(module: str) -> str:
    """Why a module cannot be imported; empty if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return _line(error)
    return ""


def probe(name: str) -> list[dict[str, str]]:
    """What only a process that imports the framework can tell: findings, as dicts."""
    try:
        framework = worker.imported(name)
    except Exception as error:
        return [{"about": name, "what": "import", "found": _line(error), "state": "wrong"}]
    findings = [{"about": name, "what": "import", "found": ", ".join(framework.modules), "state": "ok"}]
    try:
        if not enabled():
            raise NEFTuneError(f"{VARIABLE}=0: the framework runs as it comes")
        findings.append({"about": name, "what": "adapter", "found": framework.adapter(), "state": "ok"})
    except Exception as error:
        remedy = {} if enabled() else {"remedy": f"unset {VARIABLE}"}
        findings.append({"about": name, "what": "adapter", "found": _line(error), "state": "wrong", **remedy})
    if framework.native:
        native = next(filter(_exists, framework.native), None)
        found = f"{native}, left out where the adapter adds its noise" if native else "this release has none"
        findings.append({"about": name, "what": "native hook", "found": found, "state": "info"})
    return findings


def _exists(place: str) -> bool:
    module, attribute = place.split(":")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


def _line(error: Exception) -> str:
    """The error on one line, with the package that raised it."""
    origin = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").split(".")[0]
        if package not in ("importlib", "neftune_plugins"):
            origin = f"{package}: "
    return f"{origin}{type(error).__name__}: {' '.join(str(error).split())}"
