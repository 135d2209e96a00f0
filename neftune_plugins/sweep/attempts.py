"""The study in Optuna's storage, which any number of workers share.

Each trial of Optuna is one attempt at one cell of the plan. It ends with a record, or it was interrupted: then its cell
is free again, and the next attempt is a trial of its own. What is left to do is computed from the list of trials alone,
so there is no state that an interruption could leave half written.

Two workers may pick the same cell at the same moment. Storage numbers the trials in the order in which it makes them,
and a trial has its cell from the beginning: so of two, that with the larger number sees the other, and withdraws.
"""

import socket
import sqlite3
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.sweep import lock
from neftune_plugins.sweep.plan import Plan, Point
from neftune_plugins.sweep.study import AXES, Direction, Trial

TRIES = 5


class Attempts:
    """A worker's access to the study.

    url: of a database that Optuna and SQLAlchemy know.
    name: of the study.
    folder: of this worker; its attempts have folders in it.
    heartbeat: seconds between signs of life of a running attempt; after four times that without one it counts as
        interrupted. On the machine on which it ran that is known at once.

    Raises NEFTuneError where the database cannot be reached, or the study was begun with another plan.
    """

    def __init__(
        self,
        url: str,
        name: str,
        plan: Plan,
        folder: Path,
        *,
        about: dict[str, Any],
        direction: Direction,
        sampler: BaseSampler,
        pruner: BasePruner,
        heartbeat: int,
    ) -> None:
        self.plan, self.folder, self._heartbeat = plan, folder, heartbeat
        self._storage = _opened(url, heartbeat)
        self.study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction=direction,
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
        self._id = self._storage.get_study_id_from_name(name)
        self._begin(name, about)
        self._file = folder / "workers" / f"{uuid.uuid4().hex}.lock"
        self._lock = lock.taken(self._file)

    def _begin(self, name: str, about: dict[str, Any]) -> None:
        if "neftune" not in self.study.user_attrs:
            if self._all():
                raise NEFTuneError(f"the study {name!r} is not a sweep's; give this one another name: --study NAME")
            self.study.set_user_attr("neftune", about)
        begun = self.study.user_attrs["neftune"]
        other = [key for key in about if begun.get(key) != about[key]]
        if other:
            told = "; ".join(f"{key}: {begun.get(key)}, now {about[key]}" for key in other)
            raise NEFTuneError(
                f"the study {name!r} was begun with something else ({told}). Continue it with the same, or begin "
                "another one: --study NAME, --output FOLDER"
            )

    @property
    def lock(self) -> int:
        """File descriptor that stands for this worker's life."""
        return self._lock.fileno()

    def close(self) -> None:
        """To be called when nothing of this worker's is left running."""
        self._file.unlink()
        self._lock.close()

    def records(self) -> list[Trial]:
        """The trials that have ended, in order."""
        return [Trial.from_dict(trial.user_attrs["record"]) for trial in self._all() if "record" in trial.user_attrs]

    def running(self) -> int:
        """How many trials are being worked on, here and elsewhere."""
        return sum(_counts(trial) and "record" not in trial.user_attrs for trial in self._all())

    def claim(self) -> "Attempt | None":
        """An attempt at a cell at which nobody is; None where there is none, now."""
        while True:
            self._free_the_dead()
            trials = self._all()
            taken = {trial.user_attrs["cell"] for trial in trials if _counts(trial)}
            points = self._points(trials)
            free = (
                cell
                for cell in range(self.plan.cells)
                if cell not in taken and (self.plan.place(cell)[0] in points or cell % len(self.plan.seeds) == 0)
            )
            cell = next(free, None)
            if cell is None:
                return None
            id = self._create(cell, points.get(self.plan.place(cell)[0]))
            number = self._storage.get_trial(id).number
            if not any(
                other.number < number and other.user_attrs["cell"] == cell and _counts(other) for other in self._all()
            ):
                return self._attempt(id, cell)
            self._storage.set_trial_state_values(id, TrialState.FAIL)

    def _create(self, cell: int, point: Point | None) -> int:
        """A running trial of Optuna with all that others have to know of it, in one transaction."""
        attributes = {"cell": cell, "host": socket.gethostname(), "lock": str(self._file)}
        known: dict[str, Any] = {}
        if point is not None:
            attributes["point"] = dict(point)
            if self.plan.known_to_optuna(point):
                known = {"params": dict(point), "distributions": self.plan.distributions}
        template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes, **known)
        id = self._storage.create_new_trial(self._id, template)
        self._storage.record_heartbeat(id)
        return id

    def _attempt(self, id: int, cell: int) -> "Attempt":
        self.study.get_trials(deepcopy=False)  # the study has a cache, which is to know of it
        trial = optuna.trial.Trial(self.study, id)
        if "point" not in trial.user_attrs:
            low, high = self.plan.drawn_from or (0.0, 0.0)
            drawn: dict[str, Any] = {"alpha": trial.suggest_float("alpha", low, high)}
            drawn |= {axis: trial.suggest_categorical(axis, list(self.plan.choices[axis])) for axis in AXES}
            trial.set_user_attr("point", drawn)
        return Attempt(self, id, trial, trial.user_attrs["point"], self.plan.place(cell)[1])

    def _points(self, trials: list[FrozenTrial]) -> dict[int, Point]:
        """The points that are known, by their numbers: those given, and those drawn."""
        drawn = {
            self.plan.place(trial.user_attrs["cell"])[0]: trial.user_attrs["point"]
            for trial in trials
            if "point" in trial.user_attrs
        }
        return drawn | dict(enumerate(self.plan.given))

    def _free_the_dead(self) -> None:
        """End the running trials whose workers have died."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        for trial in self._all():
            mine = trial.user_attrs["host"] == socket.gethostname()
            if trial.state == TrialState.RUNNING and mine and lock.left_behind(Path(trial.user_attrs["lock"])):
                self.end(trial._trial_id, TrialState.FAIL)

    def end(self, id: int, state: TrialState) -> None:
        """End a trial that has no value, unless somebody has done so."""
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(id, state)

    @contextmanager
    def signs_of_life(self, id: int) -> Iterator[None]:
        """Give them, for a trial, until the end of the block."""
        ended = threading.Event()

        def give() -> None:
            while not ended.wait(self._heartbeat):
                with suppress(StorageInternalError):  # the database may be away for the moment
                    self._storage.record_heartbeat(id)
            self._storage.remove_session()

        thread = threading.Thread(target=give, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _all(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False)


class Attempt:
    """A running trial of Optuna, and what is to be trained in it."""

    def __init__(self, attempts: Attempts, id: int, trial: optuna.trial.Trial, point: Point, seed: int) -> None:
        self.alpha: float = point["alpha"]
        self.noise: dict[str, str] = {axis: point[axis] for axis in AXES}
        self.seed = seed
        self.number = trial.number
        self.folder = attempts.folder / "trials" / f"{trial.number:04d}"
        self._attempts, self._id, self._trial = attempts, id, trial
        self._reported = -1

    @contextmanager
    def running(self) -> Iterator[None]:
        """It counts as running within the block; where an exception leaves it, as interrupted."""
        try:
            with self._attempts.signs_of_life(self._id):
                yield
        except BaseException:
            self._attempts.end(self._id, TrialState.FAIL)
            raise

    def prune(self, step: int, loss: float) -> bool:
        """Tell Optuna's pruner of a loss, and ask whether to stop. A step that was told of is not told again."""
        if step <= self._reported:
            return False
        self._reported = step
        self._trial.report(loss, step)
        return self._trial.should_prune()

    def end(self, record: Trial, value: float | None) -> None:
        """The trial has ended with this record. Raises LostError where it was taken for dead, and counts no more."""
        state = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}[record.state]
        try:
            self._trial.set_user_attr("record", record.as_dict())
            self._attempts.study.tell(self.number, value, state)
        except (UpdateFinishedTrialError, ValueError) as error:
            raise LostError(f"trial {self.number} had been given up by the other workers: {error}") from None


class LostError(NEFTuneError):
    """Others took this worker for dead while it was running a trial."""


def _counts(trial: FrozenTrial) -> bool:
    """Whether its cell is taken: by a training that runs, or by a record."""
    return trial.state == TrialState.RUNNING or "record" in trial.user_attrs


def _opened(url: str, heartbeat: int) -> optuna.storages.RDBStorage:
    for left in reversed(range(TRIES)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
                    heartbeat_interval=heartbeat,
                    grace_period=4 * heartbeat,
                )
            break
        except (SQLAlchemyError, StorageInternalError, ImportError) as error:
            # Two workers that make the tables at the same moment: one of them fails, and finds them there then.
            if not left or isinstance(error, ImportError):
                raise NEFTuneError(f"--storage {url}: {str(error).splitlines()[0]}") from None
            time.sleep(1)
    if url.startswith("sqlite"):
        _one_at_a_time(storage.engine)
    return storage


def _one_at_a_time(engine: sqlalchemy.Engine) -> None:
    """SQLite has no `SELECT ... FOR UPDATE`, on which Optuna relies: a transaction takes the lock at its beginning."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def lock_first(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
