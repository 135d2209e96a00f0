"""Defines the errors that users see."""


class NEFTuneError(Exception):
    """Base of the package's own errors."""


class NoiseConfigError(NEFTuneError, ValueError):
    """A `neftune_*` key has a value that cannot be used; the message names key, value and remedy."""


class NoiseNotAppliedError(NEFTuneError, RuntimeError):
    """Noise cannot be added to a model, or a training step had none."""


class WrongNoiseError(NEFTuneError, RuntimeError):
    """The noise that entered the model, measured from outside, is not the specified one (`neftune_audit`)."""
