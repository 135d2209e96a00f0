"""A worker's attempts at the trainings of a study, which any number of workers share.

Two workers may pick the same cell at the same moment. The storage numbers trials in the order in which it creates them,
and a trial has its cell from the beginning. So the worker with the larger number sees the other trial and withdraws.
"""

import socket
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.sweep import lock, storage
from neftune_plugins.sweep.ledger import Ledger, cell_of
from neftune_plugins.sweep.plan import Cell, Plan, Point
from neftune_plugins.sweep.study import AXES, Direction, Trial

ABOUT = "neftune"  # attribute of a study: the settings that its workers share
UNSETTLED = "any"  # settings that the first worker which needs them decides for all


class Attempts:
    """A worker's access to the study.

    where: URL of the database.
    name: name of the study.
    folder: folder of this worker, with a folder for each attempt.
    about: settings that all workers must share, by the names used in messages.
    heartbeat: seconds between signs of life of a running attempt; after four times that without one it counts as
        interrupted. Workers on the same machine notice it at once.

    Raises NEFTuneError if the database cannot be reached, or if the study was begun with other settings.
    """

    def __init__(
        self,
        where: storage.Where,
        name: str,
        plan: Plan,
        folder: Path,
        *,
        about: Mapping[str, Any],
        direction: Direction,
        sampler: BaseSampler,
        pruner: BasePruner,
        heartbeat: int,
    ) -> None:
        self.plan, self.folder, self._heartbeat = plan, folder, heartbeat
        self._storage = storage.opened(where, heartbeat)
        self.study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction=direction,
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
        self._id = self._storage.get_study_id_from_name(name)
        self.ledger = Ledger(self._storage, self._id, plan)
        if ABOUT not in self.ledger.attributes and not self.study.get_trials(deepcopy=False):
            self.study.set_user_attr(ABOUT, dict(about))
        self.study.set_user_attr(ABOUT, agreed(name, self.ledger.attributes.get(ABOUT), about))
        self._file = folder / "workers" / f"{uuid.uuid4().hex}.lock"
        self._lock = lock.taken(self._file)

    @property
    def lock(self) -> int:
        """File descriptor of a lock that is held as long as this worker lives."""
        return self._lock.fileno()

    def close(self) -> None:
        """Release the lock. Call it when no process of this worker is running."""
        self._file.unlink(missing_ok=True)
        self._lock.close()

    def claim(self) -> "Attempt | None":
        """Begin an attempt at a free cell; None if there is no free cell now."""
        while True:
            self._free_the_dead()
            free = self.ledger.free()
            if not free:
                return None
            cell = free[0]
            id = self._create(cell, self.ledger.points()[cell[0]])
            number = self._storage.get_trial(id).number
            if not any(other.number < number and cell_of(other) == cell for other in self.ledger.current()):
                return self._attempt(id, cell)
            self._storage.set_trial_state_values(id, TrialState.FAIL)

    def _create(self, cell: Cell, point: Point | None) -> int:
        """Create a running trial of Optuna, with everything that other workers need, in one transaction."""
        attributes: dict[str, Any] = {"cell": list(cell), "host": socket.gethostname(), "lock": str(self._file)}
        known: dict[str, Any] = {}
        if point is not None:
            attributes["point"] = dict(point)
            if self.plan.known_to_optuna(point):
                distributions = self.plan.distributions
                known = {"params": {name: point[name] for name in distributions}, "distributions": distributions}
        template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes, **known)
        id = self._storage.create_new_trial(self._id, template)
        self._storage.record_heartbeat(id)
        return id

    def _attempt(self, id: int, cell: Cell) -> "Attempt":
        self.study.get_trials(deepcopy=False)  # updates the cache of the study
        trial = optuna.trial.Trial(self.study, id)
        if "point" not in trial.user_attrs:
            low, high = self.plan.drawn_from or (0.0, 0.0)
            drawn: dict[str, Any] = {"alpha": trial.suggest_float("alpha", low, high)}
            drawn |= {axis: trial.suggest_categorical(axis, list(self.plan.choices[axis])) for axis in AXES}
            trial.set_user_attr("point", drawn)
        return Attempt(self, id, trial, trial.user_attrs["point"], cell[1])

    def _free_the_dead(self) -> None:
        """End the running trials of workers that have died."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        for trial in self.ledger.trials():
            mine = trial.user_attrs["host"] == socket.gethostname()
            if trial.state == TrialState.RUNNING and mine and lock.left_behind(Path(trial.user_attrs["lock"])):
                self.end(trial._trial_id, TrialState.FAIL)

    def end(self, id: int, state: TrialState) -> None:
        """End a trial without a value, unless another worker has ended it."""
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(id, state)

    @contextmanager
    def signs_of_life(self, id: int) -> Iterator[None]:
        """Send signs of life for a trial until the end of the block."""
        ended = threading.Event()

        def give() -> None:
            while not ended.wait(self._heartbeat):
                with suppress(StorageInternalError, SQLAlchemyError):  # the database may be unreachable for a moment
                    self._storage.record_heartbeat(id)
            self._storage.remove_session()

        thread = threading.Thread(target=give, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Attempt:
    """A running trial of Optuna, and the setting that it trains."""

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
        """The trial is running within the block; if an exception leaves the block, it is interrupted."""
        try:
            with self._attempts.signs_of_life(self._id):
                yield
        except BaseException:
            self._attempts.end(self._id, TrialState.FAIL)
            raise

    def prune(self, step: int, loss: float) -> bool:
        """Report a loss to Optuna's pruner, once for each step, and return whether to stop."""
        if step <= self._reported:
            return False
        self._reported = step
        self._trial.report(loss, step)
        return self._trial.should_prune()

    def end(self, record: Trial, value: float | None) -> None:
        """End the trial with this record. Raises LostError if other workers have already ended it as dead."""
        state = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}[record.state]
        try:
            self._trial.set_user_attr("record", record.as_dict())
            self._attempts.study.tell(self.number, value, state)
        except (UpdateFinishedTrialError, ValueError) as error:
            raise LostError(f"trial {self.number} had been given up by the other workers: {error}") from None


class LostError(NEFTuneError):
    """Other workers ended a trial of this worker because they got no sign of life."""


def agreed(name: str, begun: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a study was begun with, with `UNSETTLED` ones decided. Raises NEFTuneError if a worker's
    settings differ."""
    if not isinstance(begun, Mapping):
        raise NEFTuneError(f"the study {name!r} is not a sweep's; give this one another name: --study NAME")
    given = {key: value for key, value in about.items() if value != UNSETTLED}
    other = [key for key, value in given.items() if begun.get(key) not in (value, UNSETTLED)]
    if other:
        told = "; ".join(f"{key}: {begun.get(key)}, now {about[key]}" for key in other)
        raise NEFTuneError(
            f"the study {name!r} was begun with other settings ({told}). Continue it with the same, or begin another "
            "one: --study NAME, --output FOLDER"
        )
    return {**begun, **given}
