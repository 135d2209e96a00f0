"""What goes wrong with a sweep: trainings that fail, commands that cannot be followed, disks that are full, Ctrl-C. A
line says what and why, nothing is lost, and the same command goes on."""

import errno
import io
import os
import re
import sqlite3
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from neftune_plugins.commands import files
from neftune_plugins.commands.cli import main
from neftune_plugins.sweep import failures, page, rows, storage
from neftune_plugins.sweep.study import Trial
from tests.sweep.results import study
from tests.sweep.training import BROKEN
from tests.sweep.workers import TRAINING, Worker, events, until

FAILING = """\
import os, sys
sys.path.insert(0, {root!r})
if os.path.exists("mended"):
    from tests.sweep.training import main
    main()
else:
    sys.exit("step " + str(os.getpid()) + ": out of memory")
"""


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """A training that fails until there is a file `mended`."""
    file = tmp_path / "failing.py"
    file.write_text(FAILING.format(root=str(Path(__file__).parents[2])))
    return file


def one_line(problem: str) -> str:
    assert problem.startswith("neftune: ") and "Traceback" not in problem
    assert len(problem.strip().splitlines()) == 1
    return problem


def settings(folder: Path) -> list[tuple[float, int, str]]:
    return [(trial["alpha"], trial["seed"], trial["state"]) for trial in study(folder)["trials"]]


# Trainings that fail


def test_a_sweep_whose_first_trials_fail_alike_stops_and_names_the_cause_and_is_retried(sweep, failing, tmp_path):
    grid = ("--alpha", "0,5", "--seeds", "2")
    status, shown, _ = sweep(*grid, file=failing)
    assert status == 1
    lines = [line for line in shown.splitlines() if line.startswith("[")]
    assert len(lines) == 3
    assert all(
        re.search(r"failed in .*: the training ended with status 1: step \d+: out of memory, /", one) for one in lines
    )
    assert re.search(
        r"The last 3 trials failed for the same cause, and none has succeeded: .* out of memory\. The sweep stops",
        shown,
    )
    assert "3 of 3 trials failed; to train them again, run the same command with --retry-failed." in shown
    assert (tmp_path / "neftune-sweep" / "report.html").exists()

    (tmp_path / "mended").touch()
    status, shown, _ = sweep(*grid, file=failing)  # what has failed stays as it is, unless it is asked for
    assert status == 0
    assert Counter(state for *_, state in settings(tmp_path)) == {"failed": 3, "complete": 1}
    status, shown, _ = sweep(*grid, "--retry-failed", file=failing)
    assert status == 0 and "--retry-failed" not in shown
    assert sorted(settings(tmp_path)) == [(alpha, seed, "complete") for alpha in (0.0, 5.0) for seed in (0, 1)]
    assert [one["number"] for one in study(tmp_path)["trials"]] == [3, 4, 5, 6]
    assert len(list((tmp_path / "neftune-sweep" / "trials").iterdir())) == 7  # the logs of the failures too


@pytest.mark.parametrize(("number", "run"), [("1", 1), ("0", 4)])
def test_after_how_many_failures_it_stops_can_be_said(sweep, failing, tmp_path, number, run):
    status, shown, _ = sweep("--alpha", "0,5", "--seeds", "2", "--stop-after", number, file=failing)
    assert (status, len(study(tmp_path)["trials"])) == (1, run)
    assert ("The sweep stops here." in shown) == (run < 4)


def test_one_alpha_that_fails_stops_nothing(sweep, tmp_path):
    """It comes first, with three seeds: after its first failure another alpha is tried."""
    status, _, _ = sweep("--alpha", f"{BROKEN:g},5", "--seeds", "3")
    assert status == 0
    assert settings(tmp_path)[:3] == [(BROKEN, 0, "failed"), (5.0, 0, "complete"), (5.0, 1, "complete")]
    assert Counter(state for *_, state in settings(tmp_path)) == {"failed": 3, "complete": 3}


def test_a_retry_keeps_an_alpha_that_was_drawn(sweep, failing, tmp_path):
    drawn = ("--alpha", "1..9", "--trials", "2", "--sampler", "RandomSampler")
    assert sweep(*drawn, file=failing)[0] == 1
    before = [alpha for alpha, *_ in settings(tmp_path)]
    (tmp_path / "mended").touch()
    assert sweep(*drawn, "--retry-failed", file=failing)[0] == 0
    assert settings(tmp_path) == [(alpha, 0, "complete") for alpha in before]


CAUSES = {
    "exception": (
        'Traceback (most recent call last):\n  File "x.py", line 3, in <module>\n    f()\nValueError: too long',
        "ValueError: too long",
    ),
    "launcher": (
        'torch.OutOfMemoryError: CUDA out of memory.\nTraceback (most recent call last):\n  File "l.py", line 1\n'
        "subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 1.",
        "torch.OutOfMemoryError: CUDA out of memory.",
    ),
    "torchrun": (
        "[rank0]: KeyError: 'text'\n====\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====",
        "KeyError: 'text'",
    ),
    "bar": (
        "loading\n\r 10%|#  | 1/10\r 20%|## | 2/10\n\x1b[31mno such dataset\x1b[0m\n  0%|   | 0/9",
        "no such dataset",
    ),
    "goodbye": (
        "RuntimeError: nan\nwandb: find logs at ./wandb\n/x.py:3: UserWarning: leaked\n\n",
        "RuntimeError: nan",
    ),
    "validation": (
        "pydantic.ValidationError: 1 validation error for Config:\nadapter\n  wrong",
        "pydantic.ValidationError: 1 validation error for Config: adapter",
    ),
    "advice": (
        "RuntimeError: CUDA error: device-side assert\nCompile with TORCH_USE_CUDA_DSA to enable it.",
        "RuntimeError: CUDA error: device-side assert",
    ),
    "nothing": ("", ""),
    "of the last command": ("ValueError: old\n$ measure it\nmeasured", "measured"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_the_line_that_says_why(name):
    log, cause = CAUSES[name]
    assert failures.cause(f"$ python train.py\n{log}") == cause


def test_failures_are_alike_whatever_their_numbers_and_paths():
    def failed(text: str) -> Trial:
        return Trial(number=0, state="failed", alpha=0, type="none", length="none", seed=0, seconds=1, error=text)

    first = failed("status 1: tried to allocate 2.50 GiB at 0x7f, /tmp/trials/0001/x.bin\nrest")
    assert failures.alike([first, failed("status 1: tried to allocate 12.00 GiB at 0x2a, /tmp/trials/0002/x.bin")])
    assert not failures.alike([first, failed("status 1: no such dataset")])


def test_a_training_that_is_killed_is_told_of_by_the_signal(sweep, tmp_path):
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    _, shown, _ = sweep("--alpha", "5", file=tmp_path / "killed.py")
    assert "the training ended with status 137 (SIGKILL): it printed nothing" in shown


# More of a study


def test_seeds_alphas_and_draws_are_added_to_a_finished_study(sweep, tmp_path):
    assert sweep("--alpha", "0,5")[0] == 0
    first = study(tmp_path)["trials"]
    assert sweep("--alpha", "0,5,7,8..9", "--seeds", "2", "--trials", "1")[0] == 0
    found = study(tmp_path)["trials"]
    assert found[:2] == first
    assert Counter((trial["alpha"], trial["seed"]) for trial in found[2:-2]) == Counter(
        [(0.0, 1), (5.0, 1), (7.0, 0), (7.0, 1)]
    )
    assert 8 <= found[-2]["alpha"] == found[-1]["alpha"] <= 9
    assert len(events(tmp_path / "ledger.jsonl", "begin")) == 8

    status, shown, _ = sweep("--alpha", "5", "--type", "gaussian")  # a type too, and fewer alphas
    assert status == 0 and "[1/1]" in shown
    assert [trial["type"] for trial in study(tmp_path)["trials"][8:]] == ["gaussian"]
    assert len(study(tmp_path)["trials"]) == 9


def test_a_dry_run_lists_the_trials_with_their_time_and_writes_nothing(sweep, tmp_path):
    grid = ("--alpha", f"0,{BROKEN:g}", "--seeds", "2")
    status, shown, _ = sweep(*grid, "--dry-run")
    assert status == 0
    assert [line.split() for line in shown.splitlines()[1:5]] == [
        [alpha, *noise, seed, "-", "to", "run", "-"]
        for alpha, noise in (("0", ["-", "-"]), ("13", ["uniform", "sequence"]))
        for seed in "01"
    ]
    assert shown.splitlines()[-1] == (
        "4 of 4 trials are to run. How long they take is not known: no trial of this study has finished."
    )
    assert list(tmp_path.iterdir()) == []

    assert sweep(*grid)[0] == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    status, shown, _ = sweep(
        "--alpha", f"0,{BROKEN:g},3..4", "--trials", "1", "--seeds", "2", "--retry-failed", "--dry-run"
    )
    table = [re.split(r"  +", line.strip()) for line in shown.splitlines()[1:7]]
    assert [row[4:6] for row in table] == [
        ["0", "complete"],
        ["1", "complete"],
        ["2", "failed, to run again"],
        ["3", "failed, to run again"],
        ["-", "to run"],
        ["-", "to run"],
    ]
    assert table[4][0] == "3..4"
    assert re.fullmatch(
        r"4 of 6 trials are to run: about \d+ s each, the mean of 2 that finished, and \d+ s in all with one worker\.",
        shown.splitlines()[-1],
    )
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert "was begun with other settings" in sweep(*grid, "--dry-run", "--objective", "other")[2]


# Names and places


@pytest.mark.parametrize("name", ["run?2", "run%20", "run#1", "a run", "{run}", "run&x=1", "día", "run'\"", "run\\x"])
def test_a_folder_has_a_study_of_its_own_whatever_its_name(sweep, tmp_path, name):
    for short in ("run", "run ", "a"):
        (tmp_path / short).mkdir()
    assert sweep("--alpha", "5", "--output", name)[0] == 0
    assert (tmp_path / name / "study.db").stat().st_size > 0
    with sqlite3.connect(tmp_path / name / "study.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (1,)
    assert not [file for short in ("run", "run ", "a") for file in (tmp_path / short).iterdir()]
    assert {file.name for file in tmp_path.iterdir()} == {"run", "run ", "a", name, "ledger.jsonl"}
    assert "1 of 1 trials are to run" not in sweep("--alpha", "5", "--output", name, "--dry-run")[1]


def prepare(folder: Path) -> None:
    """Files that are not what a command needs."""
    for name in ("folder", "folder.py", "junk"):
        (folder / name).mkdir()
    (folder / "file").write_text("x")
    (folder / "binary.yaml").write_bytes(b"base_model: \xff\xfe")
    (folder / "empty.jsonl").write_text("")
    (folder / "deep.jsonl").write_text("[" * 100_000)
    (folder / "junk" / "study.db").write_bytes(b"no database at all" * 100)
    os.mkfifo(folder / "pipe.py")


# Options, what is said, and CONFIG if that is what is wrong.
WRONG = {
    "config folder": ([], "folder: ", "folder"),
    "python folder": ([], "folder.py: this is a folder; name a file", "folder.py"),
    "config pipe": ([], "pipe.py: this is not a regular file", "pipe.py"),
    "config missing": ([], "gone.py: there is no such file", "gone.py"),
    "config below a file": ([], "x.py: it cannot be read", "file/x.py"),
    "config binary": ([], "binary.yaml: this is not UTF-8", "binary.yaml"),
    "config device": ([], "/dev/null: this is not a regular file", "/dev/null"),
    "rows folder": (["--held-out", "folder"], "folder: this is a folder; name a file", ""),
    "rows empty": (["--held-out", "empty.jsonl"], "empty.jsonl: there are no rows in it", ""),
    "rows deep": (["--held-out", "deep.jsonl"], "deep.jsonl, row 1: ", ""),
    "output file": (["--output", "file"], "file is a file; name a folder", ""),
    "output below a file": (["--output", "file/x"], "file is a file; name a folder", ""),
    "output of the system": (["--output", "/proc/neftune"], "--output /proc/neftune: ", ""),
    "output too long": (["--output", "x" * 300], "File name too long", ""),
    "no database": (["--output", "junk"], "file is not a database", ""),
    "measure": (["--measure", "--limit '5"], "--measure --limit '5: no closing quotation", ""),
    "metric": (["--metric", 'size=wc "x'], '--metric size=wc "x: no closing quotation', ""),
    "empty metric": (["--metric", "size= "], "--metric size: the command is empty", ""),
    "same metric": (["--metric", "a=x", "--metric", "a=y"], "--metric: two metrics have the same name", ""),
    "memory": (["--storage", "sqlite://"], "--storage sqlite://: this database is in memory", ""),
    "no url": (["--storage", "study.db"], "--storage study.db: ", ""),
    "braces": (["--storage", "sqlite:///{x}.db"], "Optuna reads what is in braces as a template", ""),
    "too many": (["--seeds", "100001"], "at most 100000", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_line_says_what_cannot_be_done(sweep, tmp_path, name):
    arguments, said, config = WRONG[name]
    prepare(tmp_path)
    status, _, problem = sweep("--alpha", "5", *arguments, file=Path(config) if config else TRAINING)
    assert status == 1
    assert said in one_line(problem)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_password_is_not_shown(sweep):
    problem = one_line(sweep("--alpha", "5", "--storage", "nosuch://me:secret@host/x")[2])
    assert "secret" not in problem and "me:***@host" in problem


# Full and read-only disks


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_runs(sweep, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "x")

    monkeypatch.setattr("neftune_plugins.sweep.command.tempfile.TemporaryFile", refuse)
    problem = one_line(sweep("--alpha", "5")[2])
    assert "--output" in problem and "Read-only file system; name a folder that can be written to" in problem


def test_a_full_disk_stops_the_sweep_and_it_goes_on_when_there_is_room(sweep, tmp_path, monkeypatch):
    original = Path.mkdir

    def full(self, *args, **options):
        if self.parent.name == "trials" and self.name == "0001":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    status, _, problem = sweep("--alpha", "0,5")
    assert (status, "trials/0001: No space left on device. The sweep stops here" in one_line(problem)) == (1, True)
    assert settings(tmp_path) == [(0.0, 0, "complete")]  # the report so far
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger.jsonl"))
    assert sweep("--alpha", "0,5")[0] == 0
    assert settings(tmp_path) == [(0.0, 0, "complete"), (5.0, 0, "complete")]


def test_a_database_that_is_full_stops_the_sweep_with_a_line(sweep, tmp_path, monkeypatch):
    assert sweep("--alpha", "0")[0] == 0
    connect = sqlite3.connect

    def small(*args, **options):
        connection = connect(*args, **options)
        connection.execute("pragma max_page_count = 1")  # no more than it has
        return connection

    monkeypatch.setattr(storage.sqlite3, "connect", small)
    problem = one_line(sweep("--alpha", "0,5", "--study", "second" * 1000)[2])
    assert "the study's database study.db: database or disk is full" in problem


def test_a_report_that_cannot_be_written_leaves_the_last_one_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    files.write(file, "before")
    original = Path.write_text

    def half(self, text, **options):
        original(self, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        files.write(file, "after, and longer")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("report.html", "before")]


def test_answers_that_were_deleted_or_damaged_are_left_out(tmp_path):
    about = {"number": 0, "alpha": 0, "type": "none", "length": "none", "seed": 0, "seconds": 1}
    trial = Trial(state="complete", log=str(tmp_path / "log.txt"), **about)
    for text in (
        "",
        "[]",
        "{",
        '{"answers": 3}',
        '{"answers": [1]}',
        '{"answers": [{"rows": "held_out"}]}',
        "[" * 10**5,
    ):
        (tmp_path / page.MEASURED).write_text(text)
        assert page._answers(trial) == []


# Signals and pipes


def test_ctrl_c_before_the_first_trial(tmp_path):
    """While it waits for another worker, who has the only one."""
    url = f"sqlite:///{tmp_path}/study.db"
    other = Worker(tmp_path, "--alpha", "5", "--storage", url, "--output", "a", SECONDS="120")
    until(lambda: events(other.ledger, "begin"))
    waiting = Worker(tmp_path, "--alpha", "5", "--storage", url, "--output", "b")
    until(lambda: (tmp_path / "b" / "workers").exists())
    for worker in (waiting, other):
        status, output = worker.interrupt()
        assert (status, "Traceback" in output) == (130, False), output
        assert "Stopped" in output


def test_ctrl_c_at_any_moment_of_the_beginning_is_a_line(sweep, monkeypatch):
    for place in ("runs.files.text", "command.Attempts", "storage.opened", "command.trial.run"):

        def interrupt(*args, **options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(f"neftune_plugins.sweep.{place}", interrupt)
            status, shown, problem = sweep("--alpha", "5")
        assert (status, problem) == (130, "")
        assert shown.strip().startswith("Stopped")


def test_after_ctrl_c_there_is_a_report_of_what_has_ended(tmp_path):
    worker = Worker(tmp_path, "--alpha", "0,5,6", SECONDS="0.6")
    until(lambda: len(events(worker.ledger, "begin")) == 2)
    status, output = worker.interrupt()
    assert status == 130 and "Traceback" not in output
    assert "Stopped; 1 of 3 trials have ended. Run the same command to continue." in output
    assert f"The report so far: {tmp_path}/neftune-sweep/report.html" in output
    assert settings(tmp_path) == [(0.0, 0, "complete")]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_an_output_that_cannot_be_written_leaves_a_report_and_no_traceback(tmp_path, monkeypatch, capsys, number):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger.jsonl"))
    with redirect_stdout(Gone()), pytest.raises(SystemExit) as end:
        main(["sweep", str(TRAINING), "--alpha", "0,5"])
    assert end.value.code != 0
    assert "Traceback" not in capsys.readouterr().err
    assert settings(tmp_path) == [(0.0, 0, "complete")]


def test_the_files_of_a_damaged_study_are_told_of(sweep, tmp_path):
    assert sweep("--alpha", "0")[0] == 0
    with sqlite3.connect(tmp_path / "neftune-sweep" / "study.db") as database:
        database.execute("update trial_user_attributes set value_json = '{\"alpha\": 5}' where key = 'record'")
    assert "the study's database is damaged (the record of trial 0: " in one_line(sweep("--alpha", "0")[2])


def test_rows_that_are_not_utf8_are_told_of(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "\xff", "completion": "x"}')
    with pytest.raises(Exception, match="this is not UTF-8"):
        rows.read(tmp_path / "rows.jsonl")
