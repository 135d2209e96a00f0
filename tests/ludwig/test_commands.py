"""`neftune doctor` and `neftune check` beside Ludwig."""

from importlib.metadata import version
from unittest.mock import Mock

from neftune_plugins.commands.checked import Checked, report
from tests.support.commands import (
    assert_examples_are_right,
    assert_healthy,
    assert_they_are_refused,
    break_each,
    checked,
    line_of,
)
from tests.support.documentation import ROOT, shown
from tests.support.shell import arguments_of

FOLDER = ROOT / "example_configs" / "ludwig"


def test_the_doctor_finds_it_healthy():
    assert_healthy("ludwig")


def test_check_knows_the_right_and_the_wrong(tmp_path):
    right = sorted(FOLDER.glob("*.yaml"))
    good = (FOLDER / "full.yaml").read_text()
    others = {
        "wrong_place": (
            good.replace("model_parameters:\n  neftune", "neftune"),
            3,
            "5 at the top level has no effect there; write neftune_noise_alpha: 5 in model_parameters",
        ),
        "trains_nothing": (
            good.replace("type: finetune", "type: none"),
            line_of(good, "neftune_noise_alpha"),
            "trainer.type is none; set trainer: {type: finetune}",
        ),
        "not_a_number": (
            good.replace("epochs: 1", "epochs: many"),
            line_of(good, "epochs"),
            "'many' is not of type 'integer'",
        ),
    }
    broken = break_each(good, tmp_path, ".yaml", others)
    status, results = checked(*right, *broken)
    assert status == 1
    assert_examples_are_right(results[: len(right)], {"text_classification": False})
    assert_they_are_refused(results[len(right) :], broken)
    page = shown("docs/commands.md", "text", 1)
    found = report([Checked(**results[0])]).replace(f"{ROOT}/", "")
    assert found.replace(version("ludwig"), "0.17.10") == page.rstrip("\n")


def test_ludwigs_parser_takes_the_command_lines_that_the_pages_show(monkeypatch):
    from ludwig import train

    monkeypatch.setattr(train, "train_cli", taken := Mock())
    for command, *arguments in arguments_of("ludwig"):
        assert command == "train"
        train.cli(arguments)
        assert taken.call_args.kwargs["dataset"] == arguments[arguments.index("--dataset") + 1]
