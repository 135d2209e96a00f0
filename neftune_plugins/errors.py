"""The errors that users meet."""


class NEFTuneError(Exception):
    """Base of the package's own errors."""


class NoiseConfigError(NEFTuneError, ValueError):
    """A `neftune_*` key has a value that cannot be used; the message names key, value and remedy."""


class NoiseNotAppliedError(NEFTuneError, RuntimeError):
    """A model cannot be noised, or a training forward went by without noise."""
