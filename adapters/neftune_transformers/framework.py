"""Describes Hugging Face Trainer and TRL to the `neftune` command, without importing them."""

from collections.abc import Iterable

from neftune_plugins import Framework, hookimpl

# The hook of the Trainer, in transformers 5 and before.
NATIVE = (
    "transformers.integrations.neftune:neftune_post_forward_hook",
    "transformers.trainer_utils:neftune_post_forward_hook",
)


def _adapter() -> str:
    return (
        "if you pass neftune_transformers.NEFTuneCallback() to the Trainer; without it the native hook reads "
        "neftune_noise_alpha in TrainingArguments, and a log line says so"
    )


@hookimpl
def neftune_frameworks() -> Iterable[Framework]:
    return [
        Framework(
            "transformers",
            distribution="transformers",
            modules=("transformers.trainer", "neftune_transformers.callback"),
            native=NATIVE,
            adapter=_adapter,
        )
    ]
