"""Defines the errors that users see."""


class NEFTuneError(Exception):
    """Base of the package's own errors."""


class NoiseConfigError(NEFTuneError, ValueError):
    """A `neftune_*` key has a value that cannot be used; the message names key, value and remedy."""


class NoiseNotAppliedError(NEFTuneError, RuntimeError):
    """Noise cannot be added to a model, or a training step had none."""
