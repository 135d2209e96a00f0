"""The picture of the rings in docs/architecture.md, from the contract in `pyproject.toml` and grimp's graph of imports.

python -m tests.support.documentation      # writes docs/images/rings.svg
"""

import ast
import re
import sys
import textwrap
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PACKAGE = "neftune_plugins"
_LEFT, _RIGHT, _TOP, _GAP, _LINE = 16, 596, 46, 14, 18  # of the boxes and their text, in pixels
_STYLE = """\
  <style>
    svg { --back: #ffffff; --text: #24292f; --quiet: #57606a; --box: #f3f5f8; --line: #6e7781; --outer: #dcebff }
    @media (prefers-color-scheme: dark) {
      svg { --back: #1e2129; --text: #e6e9ef; --quiet: #b1bac4; --box: #2a2f3a; --line: #9aa4b2; --outer: #12355c }
    }
    text { font: 13px system-ui, sans-serif; fill: var(--text) }
    .name { font-size: 15px; font-weight: 600 } .quiet { fill: var(--quiet) }
    .back { fill: var(--back) } .box { fill: var(--box); stroke: var(--line) }
    .outer { fill: var(--outer); stroke: var(--line) }
    .arrow { fill: none; stroke: var(--line); stroke-width: 1.5; marker-end: url(#head) } .head { fill: var(--line) }
  </style>
  <defs>
    <marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
      <path class="head" d="M0 0l8 4-8 4z"/>
    </marker>
  </defs>"""


def rings() -> list[list[str]]:
    """The modules of each ring, the outermost first, as import-linter is told. `__main__` only starts the command."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract.get("containers") == [PACKAGE]]
    return [re.split(r" \| ", layer) for layer in layers if layer != "__main__"]


def imports() -> set[tuple[int, int]]:
    """Which ring imports which, by their places in `rings()`."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    sys.path.remove(str(ROOT))
    place = {f"{PACKAGE}.{name}": number for number, ring in enumerate(rings()) for name in ring}
    found = set()
    for module in graph.modules:
        importer = place.get(".".join(module.split(".")[:2]))
        for imported in graph.find_modules_directly_imported_by(module):
            ring = place.get(".".join(imported.split(".")[:2]))
            if None not in (importer, ring) and importer != ring:
                found.add((importer, ring))
    return found


def described(ring: list[str]) -> str:
    """The first sentence of the docstring of the ring, or of each of its modules."""
    sentences = []
    for name in ring:
        path = ROOT / PACKAGE / name
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        sentence = " ".join(re.split(r"(?<=\.)\s|\n\n", docstring)[0].split()).replace("`", "")
        sentences.append(sentence if len(ring) == 1 else f"{name}: {sentence}")
    return " ".join(sentences)


def picture() -> str:
    """The rings as SVG, the outermost first, with an arrow for each import."""
    adapters = ", ".join(sorted(path.name for path in (ROOT / "adapters").iterdir() if (path / "__init__.py").exists()))
    boxes = [("outer", "adapters", f"{adapters}. They import public names of {PACKAGE} only.")]
    boxes += [("box", ", ".join(ring), described(ring)) for ring in rings()]
    lines, y, middles = [], _TOP, []
    for kind, name, text in boxes:
        wrapped = textwrap.wrap(text, 78)
        height = 30 + _LINE * len(wrapped)
        lines.append(f'  <rect class="{kind}" x="{_LEFT}" y="{y}" width="{_RIGHT - _LEFT}" height="{height}" rx="6"/>')
        lines.append(f'  <text class="name" x="{_LEFT + 12}" y="{y + 20}">{escape(name)}</text>')
        for number, line in enumerate(wrapped):
            lines.append(f'  <text class="quiet" x="{_LEFT + 12}" y="{y + 40 + _LINE * number}">{escape(line)}</text>')
        middles.append(y + height / 2)
        y += height + _GAP
    for importer, imported in sorted(imports()):
        above, below = middles[importer + 1] + 4, middles[imported + 1] - 4
        reach = _RIGHT + 22 * (imported - importer) + 12
        lines.append(f'  <path class="arrow" d="M{_RIGHT} {above}C{reach} {above} {reach} {below} {_RIGHT} {below}"/>')
    note = 'Outermost ring first. An arrow means "imports"; all arrows point inwards.'
    head = f'viewBox="0 0 760 {y}" role="img" aria-labelledby="title desc"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {head}>',
            f'  <title id="title">The rings of {PACKAGE} and their imports</title>',
            f'  <desc id="desc">{escape(in_words())}</desc>',
            _STYLE,
            f'  <rect class="back" width="760" height="{y}" rx="8"/>',
            f'  <text x="{_LEFT}" y="28">{note}</text>',
            *lines,
            "</svg>",
            "",
        ]
    )


def in_words() -> str:
    """The arrows of the picture, for people who do not see it."""
    names = [", ".join(ring) for ring in rings()]
    found = sorted(imports())
    return "; ".join(
        f"{name} imports {', '.join(names[imported] for importer, imported in found if importer == ring)}"
        for ring, name in enumerate(names)
        if any(importer == ring for importer, _ in found)
    )
