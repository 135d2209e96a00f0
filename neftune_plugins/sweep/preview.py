"""`neftune sweep --dry-run`: the trials, without running one."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from neftune_plugins.commands.terminal import table
from neftune_plugins.sweep import attempts, storage
from neftune_plugins.sweep.ledger import Ledger, cell_of, ended
from neftune_plugins.sweep.plan import Plan
from neftune_plugins.sweep.progress import duration
from neftune_plugins.sweep.study import AXES

Row = tuple[str, ...]


def preview(where: storage.Where, name: str, plan: Plan, about: Mapping[str, Any], *, retry: bool) -> str:
    """The trainings of a plan, which of them have ended, and how long the others will take. Writes nothing.

    retry: those that failed are to be run again.

    Raises NEFTuneError where the study was begun with something else.
    """
    rows: list[Row] = [("alpha", *AXES, "seed", "trial", "state", "time")]
    ledger = _begun(where, name, plan, about)
    found = {} if ledger is None else {cell_of(trial): trial for trial in ledger.current()}
    points = plan.points if ledger is None else ledger.points()
    low, high = plan.drawn_from or (0.0, 0.0)
    to_run = 0
    for cell in plan.cells:
        point, trial = points[cell[0]], found.get(cell)
        noise = [
            f"{low:g}..{high:g}",
            *("drawn" if len(plan.choices[axis]) > 1 else plan.choices[axis][0] for axis in AXES),
        ]
        if point is not None:
            noise = [f"{point['alpha']:g}", *(point[axis] if point["alpha"] else "-" for axis in AXES)]
        record = None if trial is None else ended(trial)
        state = "to run" if trial is None else "running" if record is None else record.state
        again = retry and state == "failed"
        to_run += state == "to run" or again
        number = "-" if trial is None else str(trial.number)
        took = "-" if record is None else duration(record.seconds)
        rows.append((*noise, str(cell[1]), number, f"{state}, to run again" if again else state, took))
    times = [] if ledger is None else [one.seconds for one in ledger.records() if one.state == "complete"]
    return f"{table(rows, right=(0, len(AXES) + 1, len(AXES) + 2))}\n\n{_estimate(to_run, len(plan.cells), times)}"


def _estimate(to_run: int, cells: int, times: list[float]) -> str:
    told = f"{to_run} of {cells} trials are to run"
    if not to_run:
        return f"{told}."
    if not times:
        return f"{told}. How long they take is not known: no trial of this study has finished."
    each = fmean(times)
    return (
        f"{told}: about {duration(each)} each, the mean of {len(times)} that finished, and {duration(each * to_run)} "
        "in all with one worker."
    )


def _begun(where: storage.Where, name: str, plan: Plan, about: Mapping[str, Any]) -> Ledger | None:
    """The study, if it was begun."""
    opened = storage.read(where)
    if opened is None:
        return None
    try:
        ledger = Ledger(opened, opened.get_study_id_from_name(name), plan)
    except KeyError:
        return None
    if attempts.ABOUT in ledger.attributes or ledger.trials():
        attempts.agreed(name, ledger.attributes.get(attempts.ABOUT), about)
    return ledger
