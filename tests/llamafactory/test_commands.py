"""`neftune doctor` and `neftune check` beside LLaMA-Factory."""

from pathlib import Path

from tests.llamafactory.runs import HAS_V1
from tests.support.commands import (
    assert_examples_are_right,
    assert_healthy,
    assert_they_are_refused,
    break_each,
    checked,
    line_of,
)
from tests.support.shell import arguments_of

FOLDER = Path(__file__).parents[2] / "example_configs" / "llamafactory"
NEEDS_095 = ("neat_packing", "v1")


def test_the_doctor_finds_it_healthy():
    assert_healthy("llamafactory")


def test_check_knows_the_right_and_the_wrong(tmp_path):
    examples = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem != "v1_dataset"]
    right = [path for path in examples if HAS_V1 or path.stem not in NEEDS_095]
    good = (FOLDER / "full.yaml").read_text()
    others = {
        "unknown_key": (
            good.replace("cutoff_len:", "cutoff_length:"),
            line_of(good, "cutoff_len"),
            "cutoff_length",
        ),
    }
    broken = break_each(good, tmp_path, ".yaml", others)
    status, results = checked(*right, *broken)
    assert status == 1
    assert_examples_are_right(results[: len(right)], {"v1": False})
    assert_they_are_refused(results[len(right) :], broken)


def test_the_command_lines_that_the_pages_show_are_those_that_train_the_examples():
    """`test_examples_train_with_noise` runs `llamafactory-cli train FILE`."""
    for command, *files in arguments_of("llamafactory-cli"):
        assert (command, len(files)) == ("train", 1)
