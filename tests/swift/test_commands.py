"""`neftune doctor` and `neftune check` beside ms-swift."""

from pathlib import Path

from tests.support.commands import (
    assert_examples_are_right,
    assert_healthy,
    assert_they_are_refused,
    break_each,
    checked,
    line_of,
)
from tests.support.shell import arguments_of

FOLDER = Path(__file__).parents[2] / "example_configs" / "swift"


def test_the_doctor_finds_it_healthy():
    assert_healthy("swift", "ms-swift")


def test_check_knows_the_right_and_the_wrong(tmp_path):
    right = sorted(FOLDER.glob("*.yaml"))
    good, preference = (FOLDER / "full.yaml").read_text(), (FOLDER / "dpo.yaml").read_text()
    others = {
        "unknown_key": (good.replace("max_length:", "cutoff_length:"), line_of(good, "max_length"), "cutoff_length"),
        "no_number": (good.replace("max_length: 1024", "max_length: long"), line_of(good, "max_length"), "invalid int"),
        "of_rlhf": (preference.replace("rlhf_type: dpo\n", ""), line_of(preference, "beta") - 1, "has no such key"),
        "parallel": (
            f"{good}sequence_parallel_size: 2\n",
            line_of(good, "neftune_noise_alpha"),
            "sequence_parallel_size: 2 cannot be",
        ),
        "tuner": (
            good.replace("tuner_type: full", "tuner_type: neftune"),
            line_of(good, "neftune_noise_alpha"),
            "twice",
        ),
    }
    broken = break_each(good, tmp_path, ".yaml", others)
    status, results = checked(*right, *broken)
    assert status == 1
    assert_examples_are_right(results[: len(right)], {})
    assert_they_are_refused(results[len(right) :], broken)
    assert not (tmp_path / "outputs").exists()


def test_check_promises_noise_only_for_what_trains(tmp_path):
    good, idle = (FOLDER / "full.yaml").read_text(), tmp_path / "idle.yaml"
    idle.write_text(good.replace("num_train_epochs: 1", "num_train_epochs: 0"))
    status, [result] = checked(idle)
    assert (status, result["line"]) == (1, line_of(good, "neftune_noise_alpha"))
    assert "no effect, because nothing trains: num_train_epochs is 0" in result["problem"]


def test_the_command_lines_that_the_pages_show_are_those_that_train_the_examples():
    """`test_examples_train_with_noise` runs the command in the first line of each."""
    for command, *words in arguments_of("swift"):
        [file] = [word for word in words if word.startswith("example_configs/")]
        assert (FOLDER.parents[1] / file).read_text().startswith(f"# swift {command} {file}")
