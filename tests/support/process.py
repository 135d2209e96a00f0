"""Many runs of trainers of transformers in one process."""

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


@contextmanager
def like_new(handler: logging.Handler, loggers: Sequence[str | None], environment: Mapping[str, str]) -> Iterator[None]:
    """Give a run a process as new, and undo what it leaves: everything global that was found to leak is listed here.

    handler: for what these loggers log. environment: variables of the run.
    """
    import accelerate.state
    import numpy
    import torch
    import transformers

    def reset() -> None:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        gc.collect()

    saved_environment = dict(os.environ)
    saved_verbosity = transformers.logging.get_verbosity()
    logging_to = [logging.getLogger(name) for name in loggers]
    reset()
    os.environ.update(environment)
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    for logger in logging_to:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():  # the preference trainers switch all warnings off
            yield
    finally:
        for logger in logging_to:
            logger.removeHandler(handler)
        transformers.logging.set_verbosity(saved_verbosity)
        os.environ.clear()
        os.environ.update(saved_environment)
        reset()
