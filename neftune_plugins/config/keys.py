"""The one place where the keys are described.

Adapters make their frameworks' schemas, and the documentation its table, from the fields of `NoiseConfig`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from neftune_plugins.config import names
from neftune_plugins.config.values import how_read, integer, number, off, truth
from neftune_plugins.errors import NoiseConfigError

_LARGEST_ALPHA = 1e30  # float32, the precision of the noise, can represent it and the values computed from it

Length = Literal["sequence", "padded"]
Schedule = Literal["constant", "linear", "cosine"]
Audit = Literal["stop", "warn", "off"]
BUILT_IN_TYPES = ("uniform", "gaussian", "bernoulli")


def _field(
    default: Any, *, key: str, annotation: Any, help: str, said: Callable[[Any], Any] | None = None, **bounds: float
) -> Any:
    """Return a field of `NoiseConfig`.

    said: converts a value of the key to a number or a boolean; None if it is neither.
    bounds: `least` and `most` of a number.
    """
    metadata = {"key": key, "annotation": annotation, "help": help, "said": said or (lambda value: value), **bounds}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """How noisy the embeddings are: one field for each configuration key.

    >>> NoiseConfig(alpha=5, schedule="linear").alpha
    5

    Each field is one key. Its metadata hold the name of the `key`, the type `annotation` of the optional key in a
    framework's schema, and the `help` text.

    Raises NoiseConfigError for a value that cannot be used, naming key, value and remedy.
    """

    alpha: float = _field(
        dataclasses.MISSING,
        key="neftune_noise_alpha",
        annotation=float | None,
        said=number,
        least=0,
        most=_LARGEST_ALPHA,
        help="Strength of the noise: alpha in alpha / sqrt(L d). A finite number above 0; the paper uses 5, 10 and "
        "15. Left out or 0, there is no noise.",
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
        said=integer,
        least=0,
        most=2**64 - 1,
        help="Seed of the noise, an integer of at least 0. Left out, it is the run's seed.",
    )
    metrics: bool = _field(
        True,
        key="neftune_metrics",
        annotation=bool | None,
        said=truth,
        help="true: log size and length of the noise together with the training's loss.",
    )
    clean_loss_steps: int | None = _field(
        None,
        key="neftune_clean_loss_steps",
        annotation=int | None,
        said=integer,
        least=1,
        help="Every N optimisation steps, evaluate the batches once more without noise and log that loss: N, an "
        "integer of at least 1. Left out: never.",
    )
    audit: Audit = _field(  # noqa: RUF009
        "warn",
        key="neftune_audit",
        annotation=Audit | None,
        said=off,
        help="Whether to measure, at the first step and then every 100 steps, the noise that enters the model, and to "
        "compare it with its specification. stop: end the run with an error if they differ. warn: log it. off: never.",
    )

    def __post_init__(self) -> None:
        alpha = number(self.alpha)
        if alpha is None:
            raise _error("alpha", self.alpha, "must be a number, such as 5", how_read(self.alpha))
        if not 0 <= alpha <= _LARGEST_ALPHA:
            raise _error("alpha", alpha, "must be finite and above 0, such as 5; 0 is no noise")
        # `plugins.check_type` checks that the type exists, which depends on the installed plugins.
        if not isinstance(self.type, str) or not self.type:
            raise _error("type", self.type, "must be the name of a noise type, such as uniform")
        vars(self).update(audit=off(self.audit))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown_choice(name, getattr(self, name), choices)
        seed = None if self.seed is None else integer(self.seed)
        if self.seed is not None and (seed is None or not 0 <= seed < 2**64):
            raise _error("seed", self.seed, "must be an integer from 0 to 2^64 - 1; left out, it is the run's seed")
        metrics = truth(self.metrics)
        if metrics is None:
            raise _error("metrics", self.metrics, "must be true or false", how_read(self.metrics))
        steps = None if self.clean_loss_steps is None else integer(self.clean_loss_steps)
        if self.clean_loss_steps is not None and (steps is None or steps < 1):
            problem = "must be an integer of at least 1; for none leave the key out"
            raise _error("clean_loss_steps", self.clean_loss_steps, problem)
        # From here on the fields hold numbers, not the text that they were read from.
        vars(self).update(alpha=alpha, seed=seed, metrics=metrics, clean_loss_steps=steps)

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> "NoiseConfig | None":
        """Return the configuration from a framework's keys; None if `neftune_noise_alpha` is absent, null or 0.

        Ignores keys that do not look like ours. Raises NoiseConfigError for a bad value, for such a key that does
        not exist, and for other keys without `neftune_noise_alpha`.
        """
        config, is_on = read(keys)
        return config if is_on else None


_CHOICES = {"length": get_args(Length), "schedule": get_args(Schedule), "audit": get_args(Audit)}

NO_NOISE = "neftune_noise_alpha: 0 asks for no noise: the embeddings are left as they are"
"""The line that is logged once if alpha is 0."""


def read(keys: Mapping[str, Any]) -> tuple[NoiseConfig | None, bool]:
    """Return the configuration from a framework's keys, and whether there is noise: with an alpha of 0 there is none.

    Raises as `NoiseConfig.from_keys`.
    """
    refuse_unknown(keys)
    fields = [field for field in dataclasses.fields(NoiseConfig) if keys.get(key(field)) is not None]
    given: dict[str, Any] = {field.name: keys[key(field)] for field in fields}
    if not given:
        return None, False
    if "alpha" not in given:
        companions = ", ".join(sorted(map(key, fields)))
        raise NoiseConfigError(
            f"{companions} without neftune_noise_alpha has no effect; set neftune_noise_alpha, such as "
            "neftune_noise_alpha: 5, or leave the other key out"
        )
    config = NoiseConfig(**given)
    return config, config.alpha != 0


def key(field: "dataclasses.Field[Any]") -> str:
    """The configuration key of a field of `NoiseConfig`."""
    return str(field.metadata["key"])


KEYS = tuple(map(key, dataclasses.fields(NoiseConfig)))


def keys_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keys among a framework's that are set, with values converted to Python's numbers and booleans."""
    found = {}
    for field in dataclasses.fields(NoiseConfig):
        value = values.get(key(field))
        if value is not None:
            said = field.metadata["said"](value)
            found[key(field)] = value if said is None else said
    return found


def refuse_unknown(keys: Mapping[Any, Any]) -> None:
    """Raise NoiseConfigError for a key that looks like ours and does not exist."""
    for name, value in keys.items():
        if name in KEYS or not looks_like_ours(name):
            continue
        remedy = names.remedy(KEYS, name, value)
        if str(name).startswith("-"):  # after a file LLaMA-Factory reads only key=value
            remedy += " After a configuration file, write key=value without --"
        raise NoiseConfigError(f"{name}: there is no such key (value {names.brief(value)}){remedy}")


def looks_like_ours(name: object) -> bool:
    """Whether a key in a framework's own mapping is one of ours or is meant to be one."""
    return names.begins_like_ours(name) or is_like_ours(name)


def is_like_ours(name: object) -> bool:
    """Whether a key in any mapping is one of ours, a misspelt one, or an older name of one."""
    return names.means_one_of(KEYS, name)


def _error(name: str, value: object, problem: str, how: str = "") -> NoiseConfigError:
    field = NoiseConfig.__dataclass_fields__[name]
    return NoiseConfigError(f"{key(field)}: {names.brief(value)} {problem}{how}")


def unknown_choice(name: str, value: object, choices: tuple[str, ...]) -> NoiseConfigError:
    """Return the error for a value of the field `name` that is none of its choices."""
    return _error(name, value, f"must be one of: {', '.join(choices)}{names.guess(value, choices)}")
