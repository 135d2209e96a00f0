"""Measured behaviour of other software that one would not expect: the rows of docs/surprises.md, which
`data/surprises.yaml` contains, and those that apply to the installed releases."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from neftune_plugins.commands.diagnosis import Finding, version

PAGE = "docs/surprises.md"
_DATA = Path(__file__).parent / "data" / "surprises.yaml"


@dataclass(frozen=True)
class Surprise:
    """One row.

    releases: the distributions and the releases in which it was seen.
    expected, happens, effect, ours: what one would expect, what happens, what it does to noise or training, and what
        this package does, in Markdown.
    seen: the scripts and tests that show it, as paths in the repository.
    """

    releases: tuple[Requirement, ...]
    expected: str
    happens: str
    effect: str
    ours: str
    seen: tuple[str, ...]

    def applies(self) -> bool:
        """Whether releases are installed in which it was seen."""
        found = [(version(one.name), one.specifier) for one in self.releases]
        return all(one is not None and specifier.contains(one, prereleases=True) for one, specifier in found)


@dataclass(frozen=True)
class Section:
    """The rows about some distributions, under a heading of the page."""

    title: str
    rows: Sequence[Surprise]

    @property
    def anchor(self) -> str:
        """As GitHub and mkdocs make it of the heading."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def sections() -> list[Section]:
    """Read all rows, in the order of the page."""
    found = []
    for section in yaml.safe_load(_DATA.read_text(encoding="utf-8")):
        rows = [
            Surprise(**{**row, "releases": tuple(map(Requirement, row["releases"])), "seen": tuple(row["seen"])})
            for row in section["rows"]
        ]
        found.append(Section(section["title"], rows))
    return found


def applying() -> list[Finding]:
    """One finding with the number of rows, by section, that apply to the installed releases; empty if none does."""
    counts = {section.anchor: sum(row.applies() for row in section.rows) for section in sections()}
    places = ", ".join(f"#{anchor} ({count})" for anchor, count in counts.items() if count)
    found = f"{sum(counts.values())} known of what is installed: {PAGE}{places}"
    return [Finding("environment", "surprises", found, "info")] if places else []
