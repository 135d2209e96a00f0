"""`neftune sweep`."""

import argparse
import hashlib
import shlex
import time
from pathlib import Path
from typing import Any

import optuna

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.sweep import progress, trial
from neftune_plugins.sweep.attempts import Attempts, LostError
from neftune_plugins.sweep.page import write
from neftune_plugins.sweep.plan import Plan
from neftune_plugins.sweep.results import Results
from neftune_plugins.sweep.runs import Source, source
from neftune_plugins.sweep.study import AXES, HELD_OUT_LOSS, Study

WAIT = 2.0  # seconds between two looks at the other workers


def sweep(options: argparse.Namespace) -> int:
    """Run trials until all have ended, those of other workers included, and report. Returns the exit status.

    Raises NEFTuneError for what is asked for and cannot be done.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = options.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    swept = source(options.config, options.framework, options.more)
    plan = _plan(options, swept)
    chosen = _trial_options(options)
    attempts = Attempts(
        options.storage or f"sqlite:///{folder}/study.db",
        options.study or options.config.stem,
        plan,
        folder,
        about=_about(options, swept, plan, chosen),
        direction=options.direction,
        sampler=_of(optuna.samplers, "--sampler", options.sampler, optuna.samplers.BaseSampler),
        pruner=_of(optuna.pruners, "--pruner", options.pruner, optuna.pruners.BasePruner),
        heartbeat=options.heartbeat,
    )
    try:
        _work(attempts, swept, chosen)
    except KeyboardInterrupt:
        ended = len(attempts.records())
        print(f"\nStopped; {ended} of {plan.cells} trials have ended. The same command goes on from there.")
        return 130
    trials = attempts.records()
    attempts.close()
    study = Study(
        config=str(options.config),
        framework=swept.framework,
        objective=chosen.objective,
        direction=options.direction,
        trials=trials,
    )
    print(f"\n{progress.summary(Results(study))}\n\n{write(study, folder)}")
    return int(all(one.state == "failed" for one in trials))


def _work(attempts: Attempts, swept: Source, chosen: trial.Options) -> None:
    cells = attempts.plan.cells
    while len(ended := attempts.records()) < cells:
        attempt = attempts.claim()
        if attempt is None:
            with progress.shown("waiting for the other workers", cells, ended, attempts.running()):
                time.sleep(WAIT)
            continue
        what = progress.setting(attempt.alpha, attempt.noise.values(), attempt.seed)
        try:
            with progress.shown(f"trial {attempt.number}: {what}", cells, ended, attempts.running()):
                record = trial.run(attempt, swept, chosen, attempts.lock)
        except LostError as error:
            print(error, flush=True)
            continue
        ended = attempts.records()
        rest = progress.estimate(cells, ended, attempts.running() + 1)
        print(f"[{len(ended)}/{cells}{rest}] {progress.line(record, chosen.objective)}", flush=True)


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
    if options.held_out is not None and not options.held_out.exists():
        raise NEFTuneError(f"--held-out {options.held_out}: there is no such file")
    if options.pruner != "NopPruner" and options.direction != "minimize":
        raise NEFTuneError("--pruner compares losses while a model is trained; it goes with --direction minimize alone")
    default = trial.LOSS if options.held_out is None else HELD_OUT_LOSS
    return trial.Options(
        objective=options.objective or default,
        varied=[axis for axis in AXES if getattr(options, axis)],
        held_out=options.held_out and options.held_out.absolute(),
        measure=shlex.split(options.measure),
        metrics=dict(options.metric),
        discard=options.discard_models,
    )


def _about(options: argparse.Namespace, swept: Source, plan: Plan, chosen: trial.Options) -> dict[str, Any]:
    """What all workers have to agree on."""
    return {
        "framework": swept.framework,
        f"content of {options.config.name}": _digest(options.config),
        **plan.as_dict(),
        "--objective": chosen.objective,
        "--direction": options.direction,
        "--held-out": chosen.held_out and _digest(chosen.held_out),
        "--measure": list(chosen.measure),
        "--metric": dict(chosen.metrics),
        "arguments for the framework": list(options.more),
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _of(module: Any, option: str, name: str, base: type) -> Any:
    """An object of a class of Optuna's, as it comes."""
    known = [one for one in module.__all__ if isinstance(getattr(module, one), type) and one != base.__name__]
    if name not in known:
        raise NEFTuneError(f"{option} {name}: {module.__name__} has no such class; it has {', '.join(known)}")
    try:
        return getattr(module, name)()
    except TypeError as error:
        raise NEFTuneError(f"{option} {name}: it cannot be made without arguments ({error})") from None
