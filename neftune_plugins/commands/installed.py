"""Read from package metadata what is installed, and which versions each framework is tested with."""

import importlib.metadata
import re
from collections.abc import Iterator

from packaging.requirements import Requirement

from neftune_plugins.commands.diagnosis import OURS, version
from neftune_plugins.plugins.framework import Framework
from neftune_plugins.plugins.manager import providers


def extra(framework: Framework) -> str:
    """The argument of `pip install` that installs the framework with its adapter."""
    return f"{provider(framework)}[{framework.name}]"


def provider(framework: Framework) -> str:
    """The distribution whose entry point registers the framework."""
    return providers("neftune_frameworks").get(framework.name, OURS)


def tested(framework: Framework) -> list[Requirement]:
    """Return the requirements of the extra with the framework's name."""
    requirements = map(Requirement, importlib.metadata.requires(provider(framework)) or [])
    return [
        requirement
        for requirement in requirements
        if requirement.marker is not None
        and requirement.marker.evaluate({"extra": framework.name})
        and not requirement.marker.evaluate({"extra": ""})
    ]


def untested(framework: Framework) -> list[Requirement]:
    """The requirements of `tested` that the installed versions do not meet."""
    return [requirement for requirement in tested(framework) if not _met(requirement)]


def _met(requirement: Requirement) -> bool:
    found = version(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def pinned_to(distribution: str) -> Iterator[str]:
    """The installed distributions that pin this one to an exact version, so that both must be changed together."""
    for other in importlib.metadata.distributions():
        for requirement in map(Requirement, filter(re.compile(rf"{distribution}\b.*==").match, other.requires or ())):
            if requirement.name == distribution and (requirement.marker is None or requirement.marker.evaluate()):
                yield other.name
