"""What CHANGELOG.md says of a version.

python -m tests.support.changelog v0.1.0      # prints its section, which is what the release says of itself

Exits with 1 where the tag is not that of the package's version, or where that is not dated: then it is not released.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def version() -> str:
    """The package's."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def section(changelog: str, version: str) -> tuple[str, str]:
    """When the version was released, or `unreleased`, and what has changed with it. Raises KeyError where the version
    is not in the changelog."""
    sections = re.findall(r"^## (\S+), (.+)\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE)
    return {name: (date, text.strip()) for name, date, text in sections}[version]


def notes(tag: str) -> str:
    """What the release of that tag says of itself. Raises ValueError where the tag must not be released."""
    if tag != f"v{version()}":
        raise ValueError(f"the tag is {tag}, and the version in pyproject.toml {version()}: tag v{version()}")
    date, text = section((ROOT / "CHANGELOG.md").read_text(), version())
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        raise ValueError(f"CHANGELOG.md says {version()}, {date}: give it the day of the release, as YYYY-MM-DD")
    return text


if __name__ == "__main__":
    try:
        print(notes(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
