"""The configuration keys: the one place where they are described.

Adapters make their frameworks' schemas, and the documentation its table, from the fields of `NoiseConfig`.
"""

import dataclasses
import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from neftune_plugins.errors import NoiseConfigError

_LARGEST_ALPHA = 1e30  # float32, the noise's own precision, holds it and what is made of it

Length = Literal["sequence", "padded"]
Schedule = Literal["constant", "linear", "cosine"]


def _field(default: Any, *, key: str, annotation: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"key": key, "annotation": annotation, "help": help})


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """How noisy the embeddings are: one field for each configuration key.

    >>> NoiseConfig(alpha=5, schedule="linear").alpha
    5

    Every field stands for one key; its metadata hold the `key`, the type `annotation` of the key in a framework's
    schema, where it may be left out, and the `help` text.

    Raises NoiseConfigError for a value that cannot be used, naming key, value and remedy.
    """

    alpha: float = _field(
        dataclasses.MISSING,
        key="neftune_noise_alpha",
        annotation=float | None,
        help="Strength of the noise: alpha in alpha / sqrt(L d). A finite number above 0; the paper uses 5, 10 and "
        "15. Left out, there is no noise.",
    )
    type: str = _field(
        "uniform",
        key="neftune_noise_type",
        annotation=str | None,
        help="Distribution of the noise: uniform (the paper's), gaussian, bernoulli, or one that a plugin registers.",
    )
    length: Length = _field(  # noqa: RUF009  (it gives a dataclass field)
        "sequence",
        key="neftune_noise_length",
        annotation=Length | None,
        help="What L counts. sequence: the real tokens of each example, as in the paper. padded: the width of the "
        "padded or packed row, the magnitude of the frameworks' native hook.",
    )
    schedule: Schedule = _field(  # noqa: RUF009
        "constant",
        key="neftune_noise_schedule",
        annotation=Schedule | None,
        help="Alpha over the run. constant: as given. linear, cosine: from there to 0, as the learning-rate schedules "
        "of these names.",
    )
    seed: int | None = _field(
        None,
        key="neftune_noise_seed",
        annotation=int | None,
        help="Seed of the noise, an integer of at least 0. Left out, it is the run's seed.",
    )
    metrics: bool = _field(
        True,
        key="neftune_metrics",
        annotation=bool | None,
        help="true: what the noise was is logged beside the training's loss.",
    )
    clean_loss_steps: int | None = _field(
        None,
        key="neftune_clean_loss_steps",
        annotation=int | None,
        help="In every so many-th optimisation step the batches are evaluated once more without noise, and that loss "
        "is logged. An integer of at least 1. Left out, it never is.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float):
            raise _error("alpha", self.alpha, "must be a number, without quotes in YAML, such as 5")
        if not 0 < self.alpha <= _LARGEST_ALPHA:
            raise _error("alpha", self.alpha, "must be finite and above 0, such as 5; for no noise leave the key out")
        # That the type exists is checked by `plugins.check_type`: it depends on which plugins are installed.
        if not isinstance(self.type, str) or not self.type:
            raise _error("type", self.type, "must be the name of a noise type, such as uniform")
        for name, choices in (("length", get_args(Length)), ("schedule", get_args(Schedule))):
            if getattr(self, name) not in choices:
                raise unknown_choice(name, getattr(self, name), choices)
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64
        ):
            raise _error("seed", self.seed, "must be an integer from 0 to 2^64 - 1; left out, it is the run's seed")
        if not isinstance(self.metrics, bool):
            raise _error("metrics", self.metrics, "must be true or false, without quotes in YAML")
        steps = self.clean_loss_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise _error("clean_loss_steps", steps, "must be an integer of at least 1; for none leave the key out")

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> "NoiseConfig | None":
        """The configuration that a framework's keys ask for; None where `neftune_noise_alpha` is absent or null.

        Only keys that look like ours are looked at. Raises NoiseConfigError for a bad value, for such a key that
        does not exist, and for companion keys without `neftune_noise_alpha`.
        """
        names = {key(field): field.name for field in dataclasses.fields(cls)}
        ours = {name: value for name, value in keys.items() if looks_like_ours(name)}
        for name, value in ours.items():
            if name not in names:
                raise NoiseConfigError(f"{name}: there is no such key (value {value!r}){_guess(name, names)}")
        given = {names[name]: value for name, value in ours.items() if value is not None}
        if not given:
            return None
        if "alpha" not in given:
            companions = ", ".join(sorted(name for name, value in ours.items() if value is not None))
            raise NoiseConfigError(
                f"{companions} without neftune_noise_alpha has no effect; set neftune_noise_alpha, such as "
                "neftune_noise_alpha: 5, or leave the other key out"
            )
        return cls(**given)


def key(field: "dataclasses.Field[Any]") -> str:
    """The configuration key of a field of `NoiseConfig`."""
    return str(field.metadata["key"])


def keys_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of our keys that are set among a framework's."""
    names = (key(field) for field in dataclasses.fields(NoiseConfig))
    return {name: values[name] for name in names if values.get(name) is not None}


def looks_like_ours(name: object) -> bool:
    """Whether a key is one of ours, or was meant to be, among keys that are all a framework's."""
    return str(name).lower().startswith("neftune") or is_like_ours(name)


def is_like_ours(name: object) -> bool:
    """Whether a key is one of ours, or misspelt, among whatever else."""
    names = [key(field) for field in dataclasses.fields(NoiseConfig)]
    return bool(difflib.get_close_matches(str(name), names, cutoff=0.85))


def _error(name: str, value: object, problem: str) -> NoiseConfigError:
    field = NoiseConfig.__dataclass_fields__[name]
    return NoiseConfigError(f"{key(field)}: {reprlib.repr(value)} {problem}")


def unknown_choice(name: str, value: object, choices: tuple[str, ...]) -> NoiseConfigError:
    """The error for a value of the field `name` that is none of its choices."""
    return _error(name, value, f"must be one of: {', '.join(choices)}{_guess(value, choices)}")


def _guess(value: object, choices: Mapping[str, Any] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value), list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""
