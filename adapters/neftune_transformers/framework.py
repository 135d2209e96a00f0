"""Hugging Face Trainer and TRL as the `neftune` command knows them; imports nothing of them."""

from collections.abc import Iterable

from neftune_plugins import Framework, hookimpl

# The hook of the Trainer, in transformers 5 and before.
NATIVE = (
    "transformers.integrations.neftune:neftune_post_forward_hook",
    "transformers.trainer_utils:neftune_post_forward_hook",
)


def _adapter() -> str:
    return (
        "where the Trainer is given neftune_transformers.NEFTuneCallback(); without it, neftune_noise_alpha in "
        "TrainingArguments is read by the native hook, and a log line says so"
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
