"""Check the repository's prose with proselint and the phrases of `prose.toml`.

python -m tests.support.prose              # the files that prose.toml names
python -m tests.support.prose docs/noise.md

Prints a line for each finding and exits with 1 if there is one.
"""

import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from proselint import checks
from proselint.config import Config, load_from
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, Padding, types
from proselint.tools import LintFile

ROOT = Path(__file__).parents[2]
CODE = "\N{CURRENCY SIGN}"  # replaces each character of code, so that the words around it do not touch
NO_PROSE = re.compile(
    r"<!-- generated.*?<!-- end -->|^```.*?^```|<!--.*?-->|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE
)
PROSE_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def without_code(text: str) -> str:
    """Markdown with a sign for each character of code, links and generated parts, so that positions stay the same."""
    return NO_PROSE.sub(lambda found: re.sub(r"[^\n]", CODE, found[0]), text)


def of_python(text: str) -> str:
    """A Python file with a sign for each character outside comments and strings."""
    starts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    kept = [CODE if letter != "\n" else letter for letter in text]
    for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
        # A string without a space is a name, not prose.
        if token.type in PROSE_TOKENS and (token.type != tokenize.STRING or " " in token.string):
            first, last = (starts[line - 1] + column for line, column in (token.start, token.end))
            kept[first:last] = text[first:last]
    return without_code("".join(kept))


def flowing(text: str) -> str:
    """Joins the lines of each paragraph, because a phrase can continue on the next line.

    Drops comment marks, names of variables, and quotation marks too: proselint skips quoted text, which every docstring
    and message is.
    """
    text = re.sub(r"(?<!\w)['\"]|['\"](?!\w)", CODE, text)
    text = re.sub(r"\b[A-Z]+_[A-Z_]+\b", lambda found: CODE * len(found[0]), text)
    text = re.sub(r"(?m)^( *)# ", r"\1  ", text)
    text = re.sub(r"\n(?=[ \t]*\n)", CODE, text)
    return re.sub(r"\n(?= *[^\s#|>*-])", " ", text)


def phrases(vocabulary: dict[str, Any]) -> Iterator[Check]:
    for number, phrase in enumerate(vocabulary["phrase"]):
        edge = "" if phrase["pattern"].startswith("[") else r"\b"
        kind = types.Existence(items=(rf"{edge}(?:{phrase['pattern']})",), padding=Padding.RAW)
        yield Check(check_type=kind, path=f"words.{number}", message=f"'{{}}': {phrase['instead']}.")


def findings(name: str, text: str, config: Config) -> Iterator[str]:
    prose = flowing(of_python(text) if name.endswith(".py") else without_code(text))
    for result in LintFile(name, prose).lint(config):
        line = text.count("\n", 0, result.check_result.span[0] - 1) + 1  # proselint adds a line in front
        yield f"{name}:{line}: {' '.join(result.check_result.message.split())}"


def main(arguments: list[str]) -> int:
    vocabulary = tomllib.loads((ROOT / "prose.toml").read_text())
    CheckRegistry().register_many((*checks.__register__, *phrases(vocabulary)))
    for number, phrase in enumerate(vocabulary["phrase"]):
        if not any(findings("example", phrase["example"], Config(max_errors=1, checks={f"words.{number}": True}))):
            sys.exit(f"prose.toml: the pattern {phrase['pattern']!r} does not find its example")
    ours = {**dict.fromkeys(vocabulary["without"], False), "words": True}
    # The first name that a check's path begins with decides.
    config = Config(max_errors=1000, checks={**ours, **load_from()["checks"], **ours})
    paths = [ROOT / name for name in arguments] or [path for glob in vocabulary["files"] for path in ROOT.glob(glob)]
    found = [one for path in sorted(paths) for one in findings(str(path.relative_to(ROOT)), path.read_text(), config)]
    print("\n".join(found) or f"The prose of {len(paths)} files has none of the words in prose.toml.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
