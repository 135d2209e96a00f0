"""`neftune doctor` and `neftune check` beside Axolotl."""

from pathlib import Path

from tests.axolotl.driver import NEEDS_PLUGINS_KEY, OUR_PLUGIN
from tests.support.commands import (
    assert_examples_are_right,
    assert_healthy,
    assert_they_are_refused,
    break_each,
    checked,
    line_of,
)
from tests.support.documentation import ROOT
from tests.support.shell import arguments_of

FOLDER = Path(__file__).parents[2] / "example_configs" / "axolotl"


def test_the_doctor_finds_it_healthy():
    assert_healthy("axolotl")


def test_check_knows_the_right_and_the_wrong(tmp_path):
    """The examples, and broken ones, with the plugins key where this release needs it."""
    plugins = f"plugins: [{OUR_PLUGIN}]\n" if NEEDS_PLUGINS_KEY else ""
    right = []
    for example in sorted(FOLDER.glob("*.yml")):
        right.append(tmp_path / example.name)
        right[-1].write_text(example.read_text() + plugins)
    good = (FOLDER / "full.yml").read_text() + plugins
    others = {
        "not_a_number": (
            good.replace("learning_rate: 1e-5", "learning_rate: fast"),
            line_of(good, "learning_rate"),
            "learning_rate: ",
        )
    }
    broken = break_each(good, tmp_path, "_broken.yml", others)
    status, results = checked(*right, *broken, FOLDER / "full.yml")
    assert status == 1
    assert_examples_are_right(results[: len(right)], {"dpo": False})
    assert_they_are_refused(results[len(right) : -1], broken)
    assert results[-1]["status"] == int(NEEDS_PLUGINS_KEY)
    assert (f"Add plugins: [{OUR_PLUGIN}]" in results[-1]["problem"]) == NEEDS_PLUGINS_KEY


def test_axolotls_parser_takes_the_command_lines_that_the_pages_show(monkeypatch):
    from axolotl.cli.main import cli

    monkeypatch.chdir(ROOT)
    for command, *arguments in arguments_of("axolotl"):
        with cli.commands[command].make_context(command, arguments) as context:
            assert context.params["config"].startswith("example_configs/")
