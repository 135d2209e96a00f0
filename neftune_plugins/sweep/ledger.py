"""Reads from the study's database which trainings of a plan have ended, are running, or are free.

Each trial of Optuna is one attempt at one cell of a plan. It ends with a record, or it was interrupted. All of this is
computed from the list of trials and from which of the failed ones are to be tried again, so there is no state that an
interruption could leave half written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.sweep.plan import Cell, Plan, Point
from neftune_plugins.sweep.study import Trial

_RETRIED = "retried "  # and the number of a failed trial whose cell is free again: an attribute of the study


class Ledger:
    """The trials of a study, read from the database at each call.

    id: of the study in the storage.
    plan: of this worker; the study may have trials of other plans, with other alphas and seeds.
    """

    def __init__(self, storage: RDBStorage, id: int, plan: Plan) -> None:
        self._storage, self._id, self.plan = storage, id, plan

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the study."""
        with _readable():
            return self._storage.get_study_user_attrs(self._id)

    def trials(self) -> list[FrozenTrial]:
        """All attempts, in order. Raises NEFTuneError where the study has trials that no sweep has made."""
        with _readable():
            found = self._storage.get_all_trials(self._id, deepcopy=False)
        for trial in found:
            if not {"cell", "host", "lock"} <= trial.user_attrs.keys():
                raise NEFTuneError(
                    f"trial {trial.number} of the study is not a sweep's; start a separate study: --study NAME"
                )
        return found

    def current(self) -> list[FrozenTrial]:
        """The attempts at which somebody is, or that ended with a record and are not to be tried again."""
        trials = self.trials()
        retried = {name for name in self.attributes if name.startswith(_RETRIED)}
        return [trial for trial in trials if _counts(trial) and f"{_RETRIED}{trial.number}" not in retried]

    def records(self) -> list[Trial]:
        """The trainings of the study that have ended, in order, those of other plans included."""
        return list(filter(None, map(ended, self.current())))

    def ended(self) -> list[Trial]:
        """The trainings of the plan that have ended, in order."""
        planned = set(self.plan.cells)
        return list(filter(None, (ended(trial) for trial in self.current() if cell_of(trial) in planned)))

    def running(self) -> int:
        """How many trials are being worked on, here and elsewhere."""
        return sum("record" not in trial.user_attrs for trial in self.current())

    def free(self) -> list[Cell]:
        """The cells at which nobody is. Those of points with which a training has failed come last: that a sweep is
        given up for its first failures should not be because of one alpha. A point that is still to be drawn has its
        first seed alone."""
        current, points = self.current(), self.points()
        taken = set(map(cell_of, current))
        failed = {cell_of(trial)[0] for trial in current if _failed(trial)}
        free = [
            (name, seed)
            for name, seed in self.plan.cells
            if (name, seed) not in taken and (points[name] is not None or seed == self.plan.seeds[0])
        ]
        return sorted(free, key=lambda cell: cell[0] in failed)

    def points(self) -> dict[str, Point | None]:
        """The points of the plan by their names; None for those that are still to be drawn."""
        drawn = {cell_of(trial)[0]: trial.user_attrs.get("point") for trial in self.trials()}
        return {name: point or drawn.get(name) for name, point in self.plan.points.items()}

    def retry(self) -> None:
        """Free the cells of the plan whose trainings have failed."""
        planned = set(self.plan.cells)
        for trial in self.current():
            if cell_of(trial) in planned and _failed(trial):
                self._storage.set_study_user_attr(self._id, f"{_RETRIED}{trial.number}", True)


def cell_of(trial: FrozenTrial) -> Cell:
    """What an attempt is at."""
    match trial.user_attrs["cell"]:
        case [str(name), int(seed)]:
            return name, seed
    raise _damaged(f"trial {trial.number} is of no training")


def ended(trial: FrozenTrial) -> Trial | None:
    """The record of an attempt that has ended with one."""
    return _record(trial) if "record" in trial.user_attrs else None


def _failed(trial: FrozenTrial) -> bool:
    return (record := ended(trial)) is not None and record.state == "failed"


def _counts(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING or "record" in trial.user_attrs


def _record(trial: FrozenTrial) -> Trial:
    try:
        return Trial.from_dict(trial.user_attrs["record"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(f"the record of trial {trial.number}: {error}") from None


@contextmanager
def _readable() -> Iterator[None]:
    """What Optuna cannot make sense of becomes a NEFTuneError."""
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(str(error)) from None


def _damaged(what: str) -> NEFTuneError:
    return NEFTuneError(f"the study's database is damaged ({what}); begin another study: --study NAME, --output FOLDER")
