"""What a run left for TensorBoard."""

from collections.abc import Collection
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


def event_files(folder: Path) -> list[Path]:
    """Those anywhere in the folder."""
    return sorted(folder.rglob("events.out.tfevents.*"))


def scalars(folder: Path, *, but: Collection[Path] = ()) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) of each scalar by name, from the event files in the folder but for some."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for file in event_files(folder):
        if file in but:
            continue
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    return found
