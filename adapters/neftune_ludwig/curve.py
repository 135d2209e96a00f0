"""Records the loss that Ludwig's trainers log, for `neftune sweep`."""

import functools
import inspect
from typing import Any

from neftune_plugins import curve


def patch(module: Any) -> None:
    """Patch `ludwig.trainers.trainer` if a sweep asks for the loss curve.

    It holds the loss of each step, which Ludwig writes for TensorBoard unless `skip_save_log` is set, and that of the
    validation set.
    """
    if not curve.wanted():
        return
    trainer = module.Trainer
    write, evaluate = trainer.write_step_summary, trainer.run_evaluation
    written, evaluated = inspect.signature(write), inspect.signature(evaluate)

    @functools.wraps(write)
    def write_and_record(*args: Any, **kwargs: Any) -> Any:
        given = written.bind(*args, **kwargs).arguments
        curve.record(given["step"] + 1, {"loss": float(given["combined_loss"])})
        return write(*args, **kwargs)

    @functools.wraps(evaluate)
    def evaluate_and_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = evaluate(self, *args, **kwargs)
        progress = evaluated.bind(self, *args, **kwargs).arguments["progress_tracker"]
        losses = progress.validation_metrics.get("combined", {}).get("loss", [])
        if losses:
            curve.record(progress.steps, {"eval_loss": float(losses[-1].value)})
        return result

    trainer.write_step_summary = staticmethod(write_and_record)
    trainer.run_evaluation = evaluate_and_record
