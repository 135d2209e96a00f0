"""Describes Hugging Face Trainer and TRL to the `neftune` command, without importing them."""

from collections.abc import Iterable

from neftune_plugins import Framework, hookimpl

# The hook of the Trainer, in transformers 5 and before.
NATIVE = (
    "transformers.integrations.neftune:neftune_post_forward_hook",
    "transformers.trainer_utils:neftune_post_forward_hook",
)


def _adapter() -> str:
    from neftune_transformers.notice import EFFECT, is_active

    logged = "one log line says so" if is_active() else "no log line says so, because PyTorch's autoload is off"
    return (
        "if you pass neftune_transformers.NEFTuneCallback() to the Trainer; a Trainer with neftune_noise_alpha and "
        f"without the callback uses its own hook, {EFFECT}, and {logged}"
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
