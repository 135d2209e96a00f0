"""What a run left for TensorBoard."""

from pathlib import Path

METRICS = {
    "neftune/alpha",
    "neftune/noise_norm",
    "neftune/noise_norm_expected",
    "neftune/signal_to_noise_db",
    "neftune/sequences",
    "neftune/mean_length",
}
LOSSES = {"neftune/clean_loss", "neftune/noisy_loss"}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) of each scalar by name, from the one event file anywhere in the folder that has scalars."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    return found
