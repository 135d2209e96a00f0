"""The documentation as data: its files, links, snippets, and the parts that are generated.

python -m tests.support.documentation      # writes the generated parts
"""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from benchmarks import alpha, lengths, noise, probe, quality
from neftune_plugins import CheckedModel, NoiseConfig, NoiseConfigError, resolve
from neftune_plugins.commands.check import described
from neftune_plugins.commands.checked import Checked, report
from neftune_plugins.commands.reading import read
from neftune_plugins.commands.surprises import Surprise, sections
from neftune_plugins.config import key
from neftune_plugins.plugins.manager import plugin_manager
from tests.support import matrix
from tests.support.bad_values import BAD_KEYS, BAD_VALUES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [code for found, code in SNIPPET.findall(page.read_text()) if found == language]


def shown(page: str, language: str, number: int = 0) -> str:
    """A code block, for the test that checks it: `unchecked` finds those for which there is no such call."""
    return snippets(ROOT / page, language)[number]


def shown_everywhere(language: str) -> list[tuple[str, str]]:
    """All code blocks in one language, each with its page, for a test that checks all of them."""
    return [(page.relative_to(ROOT).as_posix(), code) for page in PAGES for code in snippets(page, language)]


def unchecked() -> list[tuple[str, str, int]]:
    """Page, language and number of the code blocks that no test takes by `shown` or `shown_everywhere`."""
    taken = set(_taken())
    found = []
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        languages = [language for language, _ in SNIPPET.findall(page.read_text())]
        for place, language in enumerate(languages):
            number = languages[:place].count(language)
            if not taken & {(name, language, number), (language,)}:
                found.append((name, language, number))
    return found


def _taken() -> Iterator[tuple[str | int, ...]]:
    """What the tests take: (page, language, number), or (language,) for all pages."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                arguments = tuple(argument.value for argument in node.args if isinstance(argument, ast.Constant))
                if node.func.id == "shown":
                    yield (*arguments, 0)[:3]
                elif node.func.id == "shown_everywhere":
                    yield arguments


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs give a page's headings."""
    headings = re.findall(r"^#+ (.+)$", SNIPPET.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def keys_table() -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(NoiseConfig):
        default = field.default
        if default is dataclasses.MISSING or default is None:
            shown = {"alpha": "null = off", "seed": "the run's seed"}.get(field.name, "null = never")
        else:
            shown = f"`{_yaml(default)}`"
        lines.append(f"| `{key(field)}` | {shown} | {field.metadata['help']} |")
    return "\n".join(lines)


def errors_table() -> str:
    lines = ["| keys | error |", "|---|---|"]
    manager = plugin_manager()
    example = manager.get_plugin("triangular")  # users do not have the tests' example plugin
    if example is not None:
        manager.unregister(example)
    for keys, _ in [*BAD_VALUES, *BAD_KEYS]:
        if len(str(keys)) > 200:
            continue
        try:
            resolve(keys)
        except NoiseConfigError as error:
            shown = ", ".join(f"`{name}: {_yaml(value)}`" for name, value in keys.items())
            lines.append(f"| {shown} | {error} |")
    if example is not None:
        manager.register(example, "triangular")
    return "\n".join(lines)


def checked_example() -> str:
    """What `neftune check` says of the example, where Ludwig has resolved it; tests/ludwig has Ludwig say it."""
    path = Path("example_configs/ludwig/full.yaml")
    config = yaml.safe_load((ROOT / path).read_text())
    place = "model_parameters"
    model = CheckedModel((place,), config[place], config["base_model"], native=True, seed=42, seed_place=())
    shown = described(dataclasses.asdict(model), read(ROOT / path).lines, (32, 128, 512))
    return "```text\n" + report([Checked(str(path), "ludwig 0.17.10", models=[shown])]) + "\n```"


def _yaml(value: object) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def example(path: str) -> Callable[[], str]:
    """A configuration file, as a code block."""
    return lambda: f"```yaml\n{(ROOT / path).read_text()}```"


def surprises() -> str:
    """The tables of the page, one a section."""
    parts = []
    for section in sections():
        lines = [
            "| you would expect | what happens | effect | this package | seen with | seen in |",
            "|---|---|---|---|---|---|",
        ]
        parts.append("\n".join([f"## {section.title}\n", *lines, *map(_surprise, section.rows)]))
    return "\n\n".join(parts)


def _surprise(row: Surprise) -> str:
    releases = ", ".join(f"{release.name} {_range(str(release.specifier))}" for release in row.releases)
    seen = ", ".join(f"`{path}`" for path in row.seen)
    return f"| {' | '.join([row.expected, row.happens, row.effect, row.ours, releases, seen])} |"


def _range(specifier: str) -> str:
    """`==1.2` is "1.2", `>=1.0,<=1.2` is "1.0 and 1.2"."""
    ends = sorted(specifier.split(","), key=lambda part: part.startswith("<"))
    return " and ".join(end.lstrip("<>=") for end in ends)


GENERATED = {
    ROOT / "README.md": {"support": matrix.table},
    ROOT / "docs" / "start.md": {
        "axolotl": example("example_configs/axolotl/full.yml"),
        "ludwig": example("example_configs/ludwig/full.yaml"),
        "llamafactory": example("example_configs/llamafactory/full.yaml"),
        "swift": example("example_configs/swift/full.yaml"),
    },
    ROOT / "docs" / "transformers.md": {"trl": example("example_configs/trl/sft.yaml")},
    ROOT / "docs" / "commands.md": {"check": checked_example},
    ROOT / "docs" / "keys.md": {"keys": keys_table, "errors": errors_table},
    ROOT / "docs" / "performance.md": {"counts": noise.recorded_counts, "noise": noise.recorded},
    ROOT / "docs" / "results.md": {"results": alpha.recorded},
    ROOT / "docs" / "proof.md": {"probed": probe.recorded},
    ROOT / "docs" / "surprises.md": {"surprises": surprises},
    ROOT / "docs" / "quality.md": {"statistics": quality.recorded, "battery": quality.battery},
}


def rings_picture() -> str:
    from tests.support import rings  # needs grimp, which only the core's environment has

    return rings.picture()


PICTURES = {
    ROOT / "docs" / "images" / "noise-by-length.svg": lengths.recorded,
    ROOT / "docs" / "images" / "rings.svg": rings_picture,
}


def regenerated(page: Path) -> str:
    """The page with its generated parts made anew, or the whole picture."""
    if page in PICTURES:
        return PICTURES[page]()
    text = page.read_text()
    for name, make in GENERATED[page].items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, rest = text.split(begin, 1)
        text = before + begin + make() + "\n" + end + rest.split(end, 1)[1]
    return text


if __name__ == "__main__":
    for path in (*GENERATED, *PICTURES):
        path.write_text(regenerated(path))
