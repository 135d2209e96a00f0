"""`neftune sweep`: runs the trials of a worker and writes the report."""

import argparse
import hashlib
import shlex
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.sweep import failures, preview, progress, rows, storage, trial
from neftune_plugins.sweep.attempts import UNSETTLED, Attempts, LostError
from neftune_plugins.sweep.page import write
from neftune_plugins.sweep.plan import Plan
from neftune_plugins.sweep.results import Results
from neftune_plugins.sweep.runs import Source, source
from neftune_plugins.sweep.study import AXES, HELD_OUT_LOSS, Study, Trial

WAIT = 2.0  # seconds between two checks of the other workers
FORMAT = 1  # version of what a study's database holds in addition to Optuna's data
INTERRUPTED = 130


def sweep(options: argparse.Namespace) -> int:
    """Run trials until all have ended, those of other workers included, and report. Returns the exit status.

    Raises NEFTuneError for options that cannot be satisfied.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    swept = source(options.config, options.framework, options.more)
    plan = _plan(options, swept)
    chosen = _trial_options(options)
    about = _about(options, swept, plan, chosen)
    folder = options.output.absolute()
    where: storage.Where = options.storage or folder / "study.db"
    name = _utf8("--study", options.study or options.config.stem)
    classes = {
        "sampler": _of(optuna.samplers, "--sampler", options.sampler, optuna.samplers.BaseSampler),
        "pruner": _of(optuna.pruners, "--pruner", options.pruner, optuna.pruners.BasePruner),
    }
    with storage.problems(where):
        if options.dry_run:
            print(preview.preview(where, name, plan, about, retry=options.retry_failed))
            return 0
        _make(folder)
        attempts = Attempts(
            where,
            name,
            plan,
            folder,
            about=about,
            direction=options.direction,
            heartbeat=options.heartbeat,
            **classes,
        )
        if options.retry_failed:
            attempts.ledger.retry()
        return _Sweep(options, swept, chosen, attempts).run()


class _Sweep:
    """The trials of one worker, and the report."""

    def __init__(self, options: argparse.Namespace, swept: Source, chosen: trial.Options, attempts: Attempts) -> None:
        self.options, self.swept, self.chosen, self.attempts = options, swept, chosen, attempts
        self.cells = len(attempts.plan.cells)

    def run(self) -> int:
        try:
            failed = self._work()
        except KeyboardInterrupt:
            self._say_stopped()
            return INTERRUPTED
        except BaseException:  # the disk is full, or the reader of our output has closed it
            with suppress(Exception):
                self._write()
            raise
        self.attempts.close()
        trials = self.attempts.ledger.records()
        page = self._write()
        print(f"\n{progress.summary(Results(self._study()))}\n")
        if failed:
            print(f"{failed}\n")
        print(page, flush=True)
        return int(bool(failed) or all(one.state == "failed" for one in trials))

    def _work(self) -> str:
        """Run free trials until all have ended. Returns why it stopped earlier, if it did."""
        ledger, own = self.attempts.ledger, list[Trial]()
        while len(ended := ledger.ended()) < self.cells:
            if problem := self._hopeless(own):
                return problem
            attempt = self.attempts.claim()
            if attempt is None:
                with progress.shown("waiting for the other workers", self.cells, ended, ledger.running()):
                    time.sleep(WAIT)
                continue
            what = progress.setting(attempt.alpha, attempt.noise.values(), attempt.seed)
            try:
                with progress.shown(f"trial {attempt.number}: {what}", self.cells, ended, ledger.running()):
                    record = trial.run(attempt, self.swept, self.chosen, self.attempts.lock)
            except LostError as error:
                print(error, flush=True)
                continue
            own.append(record)
            ended = ledger.ended()
            rest = progress.estimate(self.cells, ended, ledger.running() + 1)
            print(f"[{len(ended)}/{self.cells}{rest}] {progress.line(record, self.chosen.objective)}", flush=True)
        return ""

    def _hopeless(self, own: list[Trial]) -> str:
        """Return why the sweep has to stop; empty if it does not."""
        last = own[-self.options.stop_after :]
        if not self.options.stop_after or len(last) < self.options.stop_after or not failures.alike(last):
            return ""
        if any(one.state != "failed" for one in self.attempts.ledger.records()):
            return ""
        several = f"The last {len(last)} trials failed for the same cause" if len(last) > 1 else "The trial failed"
        return (
            f"{several}, and none has succeeded: {failures.first_line(last[-1])}. The sweep stops here. Fix the cause, "
            "and run the same command with --retry-failed; with --stop-after 0 it does not stop."
        )

    def _say_stopped(self) -> None:
        ended = len(self.attempts.ledger.ended())
        print(f"\nStopped; {ended} of {self.cells} trials have ended. Run the same command to continue.", flush=True)
        if self.attempts.ledger.records():
            print(f"The report so far: {self._write()}", flush=True)

    def _study(self) -> Study:
        return Study(
            config=str(self.options.config),
            framework=self.swept.framework,
            objective=self.chosen.objective,
            direction=self.options.direction,
            trials=self.attempts.ledger.records(),
        )

    def _write(self) -> Path:
        return write(self._study(), self.attempts.folder)


def _make(folder: Path) -> None:
    """Create the folder for the trials and check that it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        file = next(one for one in (folder, *folder.parents) if one.exists())
        raise NEFTuneError(f"--output {folder}: {file} is a file; name a folder, for trials and report") from None
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise NEFTuneError(f"--output {folder}: {told}; name a folder that can be written to") from None


def _plan(options: argparse.Namespace, swept: Source) -> Plan:
    alphas, drawn_from = options.alpha
    return Plan(
        alphas=alphas,
        choices={axis: getattr(options, axis) or (swept.noise[axis],) for axis in AXES},
        seeds=range(options.seeds),
        drawn_from=drawn_from,
        draws=options.trials,
    )


def _trial_options(options: argparse.Namespace) -> trial.Options:
    if options.held_out is not None:
        rows.read(options.held_out)  # finds errors before hours of training
    if options.pruner != "NopPruner" and options.direction != "minimize":
        raise NEFTuneError("--pruner compares losses during training, so it needs --direction minimize")
    metrics = dict(options.metric)
    if len(metrics) < len(options.metric):
        raise NEFTuneError("--metric: two metrics have the same name; use different names")
    for name, command in metrics.items():
        if not _words(f"--metric {name}=", command):
            raise NEFTuneError(f"--metric {name}: the command is empty; write NAME=COMMAND")
    default = trial.LOSS if options.held_out is None else HELD_OUT_LOSS
    return trial.Options(
        objective=options.objective or default,
        varied=[axis for axis in AXES if getattr(options, axis)],
        held_out=options.held_out and options.held_out.absolute(),
        measure=_words("--measure ", options.measure),
        metrics=metrics,
        discard=options.discard_models,
    )


def _words(option: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise NEFTuneError(f"{option}{text}: {str(error).lower()}; close the quotes, as for a shell") from None


def _about(options: argparse.Namespace, swept: Source, plan: Plan, chosen: trial.Options) -> Mapping[str, Any]:
    """Return the settings that all workers must share. Alphas, seeds and the number of drawn alphas may differ."""
    return {
        "format of the study": FORMAT,
        "framework": swept.framework,
        "content of the configuration": _digest(options.config),
        **{f"--{axis}": list(plan.choices[axis]) if plan.draws else UNSETTLED for axis in AXES},
        "--objective": chosen.objective,
        "--direction": options.direction,
        "--held-out": chosen.held_out and _digest(chosen.held_out),
        "--measure": list(chosen.measure),
        "--metric": dict(chosen.metrics),
        "arguments for the framework": list(options.more),
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _utf8(option: str, name: str) -> str:
    """Return the name of the study, if a database can store it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise NEFTuneError(f"{option}: the name {name!r} is no UTF-8; give the study another: --study NAME") from None
    return name


def _of(module: Any, option: str, name: str, base: type) -> Any:
    """Make an object of one of Optuna's classes, without arguments."""
    known = [one for one in module.__all__ if isinstance(getattr(module, one), type) and one != base.__name__]
    if name not in known:
        raise NEFTuneError(f"{option} {name}: {module.__name__} has no such class; it has {', '.join(known)}")
    try:
        return getattr(module, name)()
    except TypeError as error:
        raise NEFTuneError(f"{option} {name}: it cannot be made without arguments ({error})") from None
    except ImportError as error:
        raise NEFTuneError(f"{option} {name}: {storage.cause(error)}") from None
