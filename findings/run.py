"""Run the findings of this folder, and write their index.

    python findings/run.py                     all of them
    python findings/run.py NAME ...            some
    python findings/run.py --newest            the newest releases in place of the recorded ones
    python findings/run.py --index             write the index in README.md anew
    python findings/run.py --check             run nothing: heads complete, index up to date?

A finding is a bash script whose head is its record: see README.md. The standard library is enough to run this.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SHARED = "common.sh"
BEGIN, END = "<!-- index: begin, by run.py --index -->", "<!-- index: end -->"
FIELDS = ("Guess", "Happens", "Matters", "With", "Seen")
OUTCOMES = {0: "as recorded", 1: "CHANGED", 2: "could not be installed"}


@dataclass(frozen=True)
class Finding:
    """What the head of a script says."""

    path: Path
    title: str
    fields: dict[str, str]  # Guess, Happens, Matters, With, Seen; continuation lines joined
    recorded: list[str]  # what the script's program prints

    @property
    def name(self) -> str:
        return self.path.stem

    def problems(self) -> Iterator[str]:
        """What the head lacks, a sentence each."""
        if not self.title:
            yield "the second line is the title"
        for field in FIELDS:
            if not self.fields.get(field):
                yield f"no {field!r}"
        if not self.recorded:
            yield "no recorded output ('# | ' lines)"
        for package in self.fields.get("With", "").split():
            if not re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9][0-9a-z.]*", package):
                yield f"{package!r} is not a package with its version, name==1.2.3"
        seen = self.fields.get("Seen")
        try:
            date.fromisoformat(seen or "2000-01-01")
        except ValueError:
            yield f"'Seen' is {seen!r}, not a date like 2026-11-27"
        if not os.access(self.path, os.X_OK):
            yield "not executable"

    def row(self) -> str:
        """The finding's line of the index."""
        tools = ", ".join(self.fields["With"].split()).replace("==", " ")
        return f"| [{self.name}]({self.path.name}) | {tools} | {self.title} | {self.fields['Seen']} |"


def read(path: Path) -> Finding:
    """The head of a script: the comment lines before the first line that is none."""
    title, fields, recorded, field = "", {}, [], ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if not line.startswith("#"):
            break
        if line.startswith("# | "):
            recorded.append(line.removeprefix("# | "))
        elif found := re.match(rf"# ({'|'.join(FIELDS)}): *(.*)", line):
            field = found[1]
            fields[field] = found[2]
        elif number == 1:
            title = line.removeprefix("# ")
        elif field and line.startswith("#  "):
            fields[field] += " " + line.removeprefix("#").strip()
    return Finding(path, title, fields, recorded)


def findings(folder: Path = FOLDER) -> list[Finding]:
    return [read(path) for path in sorted(folder.glob("*.sh")) if path.name != SHARED]


def with_index(readme: str, found: list[Finding]) -> str:
    """The README's text with the index of these findings."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    head = "| finding | tool and version | what happens | seen |\n|---|---|---|---|"
    return "\n".join([f"{before}{BEGIN}", head, *(finding.row() for finding in found), f"{END}{after}"])


def check(found: list[Finding], readme: Path) -> list[str]:
    """Everything that is wrong with heads and index, a line each."""
    wrong = [f"{finding.path.name}: {problem}" for finding in found for problem in finding.problems()]
    if not wrong and readme.read_text(encoding="utf-8") != with_index(readme.read_text(encoding="utf-8"), found):
        wrong.append("README.md: the index is not that of the scripts; run python findings/run.py --index")
    return wrong


def run(found: list[Finding], newest: bool) -> int:
    """Run the scripts one after the other; 1 if any differs from its record or could not run."""
    environment = os.environ | ({"FINDINGS_NEWEST": "1"} if newest else {})
    outcomes = {}
    for finding in found:
        code = subprocess.run(["bash", str(finding.path)], env=environment, check=False).returncode
        outcomes[finding.name] = OUTCOMES.get(code, f"ended with status {code}")
        print(flush=True)
    width = max(map(len, outcomes))
    for name, outcome in outcomes.items():
        print(f"{name:{width}}  {outcome}")
    changed = [name for name, outcome in outcomes.items() if outcome == OUTCOMES[1]]
    print(f"\n{len(changed)} of {len(outcomes)} changed{': ' + ', '.join(changed) if changed else ''}")
    return int(any(outcome != OUTCOMES[0] for outcome in outcomes.values()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the findings of this folder, and write their index.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a script's name without .sh (default: all)")
    parser.add_argument("--newest", action="store_true", help="newest releases in place of the recorded ones")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--index", action="store_true", help="write the index in README.md anew")
    what.add_argument("--check", action="store_true", help="run nothing: heads complete, index up to date?")
    options = parser.parse_args(arguments)

    found = findings()
    readme = FOLDER / "README.md"
    if options.check or options.index:
        if options.index and not any(list(finding.problems()) for finding in found):
            readme.write_text(with_index(readme.read_text(encoding="utf-8"), found), encoding="utf-8")
        wrong = check(found, readme)
        print("\n".join(wrong or [f"{len(found)} findings, index up to date"]))
        return int(bool(wrong))

    unknown = set(options.names) - {finding.name for finding in found}
    if unknown:
        parser.error(f"no finding {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in found)}")
    return run([finding for finding in found if not options.names or finding.name in options.names], options.newest)


if __name__ == "__main__":
    sys.exit(main())
