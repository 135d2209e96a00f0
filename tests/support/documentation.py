"""The documentation as data: its files, links, snippets, and the parts that are generated.

python -m tests.support.documentation      # writes the generated parts
"""

import dataclasses
import re
from pathlib import Path

import yaml

from benchmarks import noise, quality
from neftune_plugins import CheckedModel, NoiseConfig, NoiseConfigError
from neftune_plugins.check import Checked, described, lines_of, report
from neftune_plugins.config import key
from neftune_plugins.manager import plugin_manager
from tests.support.bad_values import BAD_KEYS, BAD_VALUES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [code for found, code in SNIPPET.findall(page.read_text()) if found == language]


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
            NoiseConfig.from_keys(keys)
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
    shown = described(dataclasses.asdict(model), lines_of(ROOT / path), (32, 128, 512))
    return "```text\n" + report([Checked(str(path), "ludwig 0.17.10", models=[shown])]) + "\n```"


def _yaml(value: object) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


GENERATED = {
    ROOT / "docs" / "commands.md": {"check": checked_example},
    ROOT / "docs" / "keys.md": {"keys": keys_table, "errors": errors_table},
    ROOT / "docs" / "performance.md": {"noise": noise.recorded},
    ROOT / "docs" / "quality.md": {"statistics": quality.recorded, "battery": quality.battery},
}


def regenerated(page: Path) -> str:
    """The page with its generated parts made anew."""
    text = page.read_text()
    for name, make in GENERATED[page].items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, rest = text.split(begin, 1)
        text = before + begin + make() + "\n" + end + rest.split(end, 1)[1]
    return text


if __name__ == "__main__":
    for path in GENERATED:
        path.write_text(regenerated(path))
