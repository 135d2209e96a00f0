"""`neftune doctor`: check what is installed, and say how to repair what does not work."""

import dataclasses
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from packaging.requirements import Requirement

from neftune_plugins.autoload import VARIABLE, enabled
from neftune_plugins.commands import installed, surprises, worker
from neftune_plugins.commands.diagnosis import OURS, Finding, one_line, version
from neftune_plugins.commands.terminal import waiting
from neftune_plugins.errors import NEFTuneError
from neftune_plugins.plugins.framework import Framework
from neftune_plugins.plugins.manager import ENTRY_POINT_GROUP, frameworks, noise_types

_AUDIO = "torchaudio"
_TORCHS_VARIABLE = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def doctor() -> list[Finding]:
    """Run all checks. Broken packages become findings, not exceptions."""
    findings = list(_environment())
    if any(finding.state == "wrong" and finding.what == "plugin" for finding in findings):
        return findings  # a broken plugin prevents all registrations, so no framework is known
    findings += [*_kernels(), *surprises.applying()]
    known = list(frameworks().values())
    present = [framework for framework in known if version(framework.distribution) is not None]
    untested = {framework.name: installed.untested(framework) for framework in present}
    with waiting("importing " + ", ".join([*untested, "torchaudio"])), ThreadPoolExecutor() as pool:
        try:
            audio = pool.submit(_torchaudio)
            probed = dict(zip(untested, pool.map(_probe, untested), strict=True))
            findings += audio.result()
        except KeyboardInterrupt:
            worker.stop()  # the pool waits until they end
            raise
    repairs = [_reinstall(framework, untested[framework.name]) for framework in present if untested[framework.name]]
    for framework in present:
        for requirement in installed.tested(framework):
            found = f"{version(requirement.name)}, tested with {requirement.specifier}"
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
    """Add the remedy. An unsupported version is the likeliest cause of any problem, also in other packages."""
    if finding.state != "wrong" or finding.remedy:
        return finding
    if repairs:
        return dataclasses.replace(finding, remedy=" && ".join(repairs))
    if finding.what == _AUDIO:
        remedy = f"install the torch that it was built for, or pip uninstall {_AUDIO}"
    else:
        remedy = f'pip install --force-reinstall "{installed.extra(frameworks()[finding.about])}"'
    return dataclasses.replace(finding, remedy=remedy)


def _environment() -> Iterator[Finding]:
    off = next(filter(None, (_off(variable) for variable in (VARIABLE, _TORCHS_VARIABLE))), None)
    yield off or Finding("environment", "autoload", "on")
    yield from _plugins()


def _off(variable: str) -> Finding | None:
    """A finding if an environment variable turns the autoload off: ours with 0, torch's with any value except 1."""
    value = os.environ.get(variable, "1")
    if value == "1" or (variable == VARIABLE and value != "0"):
        return None
    why = "" if value == "0" else ", and torch treats every value except 1 as off"
    return Finding("environment", "autoload", f"off: {variable}={value}{why}", "wrong", f"unset {variable}")


def _plugins() -> Iterator[Finding]:
    owners = {}
    problems = []
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        owner = owners[point] = point.dist.name if point.dist is not None else point.value
        try:
            point.load()
        except Exception as error:
            problems.append((f"{point.name} of {owner} does not load: {one_line(error)}", owner))
    if not problems:
        try:
            frameworks()
            yield Finding("environment", "noise types", ", ".join(noise_types()))
        except Exception as error:  # each plugin loads, but registers a wrong or duplicate object
            problems.append((one_line(error), " or ".join(sorted({*owners.values()} - {OURS}))))
    for found, owner in problems:
        yield Finding("environment", "plugin", found, "wrong", f"update it, or pip uninstall {owner}")


def _kernels() -> list[Finding]:
    """Which implementation adds the noise on each device of this machine, tried with uniform noise in bfloat16."""
    import torch

    from neftune_plugins.noise import add_noise_, kernels

    logging.getLogger("neftune_plugins").setLevel(
        logging.ERROR
    )  # a kernel that fails is a finding, so do not also log a warning
    devices = ["cpu"]
    if torch.accelerator.is_available():
        devices.append(str(torch.accelerator.current_accelerator()))
    found = []
    for device in devices:
        x_ND = torch.zeros(1, 8, device=device, dtype=torch.bfloat16)
        one_N = torch.ones(1, device=device)
        add_noise_(x_ND, one_N.to(torch.int64), one_N, noise_types()["uniform"])
        choices = [choice for key, choice in kernels.chosen().items() if torch.device(key[0]).type == x_ND.device.type]
        reason = f"turned off by {kernels.VARIABLE}" if not choices else choices[-1].reason
        path = "plain" if not choices else choices[-1].path
        found.append(Finding("environment", f"noise on {device}", f"{path}: {reason}", "info"))
    return found


def _torchaudio() -> list[Finding]:
    """Check torchaudio if it is installed: each version works with one torch version, and the frameworks import it."""
    if version(_AUDIO) is None:
        return []
    try:
        problem = worker.call("neftune_plugins.commands.doctor:import_problem", _AUDIO)
    except NEFTuneError as error:
        problem = str(error)
    found = f"{version(_AUDIO)}{problem and f' does not load: {problem}'}"
    return [Finding("environment", _AUDIO, found, "wrong" if problem else "ok")]


def _probe(name: str) -> list[Finding]:
    try:
        return [Finding(**found) for found in worker.call("neftune_plugins.commands.doctor:probe", name)]
    except NEFTuneError as error:
        return [Finding(name, "import", str(error), "wrong")]


def import_problem(module: str) -> str:
    """The error of importing a module; empty if the import succeeds."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return one_line(error)
    return ""


def probe(name: str) -> list[dict[str, str]]:
    """Findings, as dicts, that need the framework to be imported; runs in a separate process."""
    try:
        framework = worker.imported(name)
    except Exception as error:
        return [{"about": name, "what": "import", "found": one_line(error), "state": "wrong"}]
    findings = [{"about": name, "what": "import", "found": ", ".join(framework.modules), "state": "ok"}]
    try:
        if not enabled():
            raise NEFTuneError(f"{VARIABLE}=0 turns this package off, so no noise is added")
        findings.append({"about": name, "what": "adapter", "found": framework.adapter(), "state": "ok"})
    except Exception as error:
        remedy = {} if enabled() else {"remedy": f"unset {VARIABLE}"}
        findings.append({"about": name, "what": "adapter", "found": one_line(error), "state": "wrong", **remedy})
    if framework.native:
        native = next(filter(_exists, framework.native), None)
        found = f"{native}, turned off while the adapter adds its noise" if native else "this version has none"
        findings.append({"about": name, "what": "native hook", "found": found, "state": "info"})
    return findings


def _exists(place: str) -> bool:
    module, attribute = place.split(":")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False
