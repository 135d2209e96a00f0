"""What noise does to a small model: the data, and the record of the sweep that docs/results.md shows.

python -m benchmarks.alpha split ROWS.json FOLDER --model MODEL      # FOLDER/train.jsonl, FOLDER/held_out.jsonl
python -m benchmarks.alpha record SWEEP --json FILE                  # what `neftune sweep` left in its folder SWEEP
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import RESULTS, table

if TYPE_CHECKING:
    from neftune_plugins.sweep.study import Trial

RECORD = RESULTS / "alpha.json"
NO_NOISE = "no noise"

# By their names in a sweep: how they are called, and the decimals shown.
METRICS = {
    "held_out_loss": ("held-out loss", 4),
    "trained_on_loss": ("trained-on loss", 4),
    "held_out_length": ("answer length", 1),
    "held_out_two_gram_repetition": ("2-gram repetition", 4),
    "held_out_log_diversity": ("log-diversity", 2),
    "held_out_rouge_l": ("ROUGE-L", 4),
    "held_out_bleu": ("BLEU", 2),
    "trained_on_rouge_l": ("trained-on ROUGE-L", 4),
    "trained_on_bleu": ("trained-on BLEU", 2),
}


def split(rows: Path, folder: Path, model: str, longest: int, train: int, held_out: int) -> None:
    """Write rows of at most `longest` tokens, prompt and answer as a chat: some to train on, and others."""
    from transformers import AutoTokenizer

    from neftune_plugins.sweep.rows import read

    tokenizer = AutoTokenizer.from_pretrained(model)
    found = zip(json.loads(rows.read_text(encoding="utf-8")), read(rows, "chat"), strict=True)
    taken = [given for given, row in found if sum(map(len, row.encode(tokenizer))) <= longest]
    random.Random(0).shuffle(taken)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", taken[:train]), ("held_out", taken[train : train + held_out])):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(part)} of the {len(taken)} rows of {longest} tokens or less")


def record(sweep: Path) -> dict[str, Any]:
    """Of a sweep over alphas and both lengths: its findings and means, and how far the two lengths are apart."""
    from neftune_plugins.sweep.results import Results, Setting
    from neftune_plugins.sweep.statistics import difference
    from neftune_plugins.sweep.study import Study

    results = Results(Study.from_dict(json.loads((sweep / "study.json").read_text(encoding="utf-8"))))
    trials = results.study.trials
    alphas = sorted({trial.alpha for trial in trials} - {0.0})

    def between(alpha: float, metric: str) -> dict[str, Any] | None:
        values = [results.by_seed(Setting(alpha, ("uniform", length)), metric) for length in ("padded", "sequence")]
        if not all(values):
            return None
        found = difference(*values, comparisons=len(alphas))
        return {"difference": found.difference, "margin": found.margin, "supported": found.supported}

    return {
        "summary": json.loads((sweep / "summary.json").read_text(encoding="utf-8")),
        "padded less sequence": {
            f"alpha {alpha:g}": {name: between(alpha, name) for name in METRICS} for alpha in alphas
        },
        "noise": [
            {"alpha": setting.alpha, "length": setting.noise[-1], **_logged(own)}
            for setting, own in results.complete.items()
            if setting.alpha
        ],
        "seconds": [round(trial.seconds) for trial in trials],
        "trials": [
            {"alpha": trial.alpha, "length": trial.length, "seed": trial.seed, "values": dict(trial.values)}
            for trial in trials
        ],
    }


def _logged(trials: Iterable["Trial"]) -> dict[str, float]:
    """The means of what the trainings have logged of the noise."""
    curves = [Path(trial.log).with_name("curve.jsonl").read_text(encoding="utf-8") for trial in trials]
    logs = [json.loads(line) for curve in curves for line in curve.splitlines()]
    logs = [one for one in logs if "neftune/noise_norm" in one]
    return {
        "norm": math.sqrt(statistics.fmean(one["neftune/noise_norm"] ** 2 for one in logs)),
        "signal_to_noise_db": statistics.fmean(one["neftune/signal_to_noise_db"] for one in logs),
    }


def recorded() -> str:
    """The record as Markdown."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    summary = found["summary"]
    settings = {_name(one): one["metrics"] for one in summary["settings"]}
    noisy = {name: metrics for name, metrics in settings.items() if name != NO_NOISE}
    noise = []
    for one in found["noise"]:
        share = one["norm"] / (one["alpha"] / math.sqrt(3))
        noise.append((_name(one), f"{one['norm']:.3f}", f"{share:.3f}", f"{one['signal_to_noise_db']:.1f}"))
    return "\n\n".join(
        [
            f"{len(found['seconds'])} runs of {min(found['seconds'])} to {max(found['seconds'])} s, "
            f"{sum(found['seconds']) / 3600:.1f} hours of one core.",
            f"The report's finding: {summary['finding']}",
            "Mean ± standard deviation over the seeds; significant differences from no noise are in **bold**:",
            _metrics(settings, _mean),
            "The differences from no noise, with their confidence intervals:",
            _metrics(noisy, _difference),
            "*padded* minus *sequence* at the same alpha:",
            _metrics(found["padded less sequence"], _difference),
            "The noise in the model, as [logged by the runs](metrics.md); the paper's norm is alpha / sqrt(3):",
            table(("", "norm", "relative to the paper's", "signal to noise, dB"), noise),
            "The report's warnings:",
            "\n".join(f"- {warning}" for warning in summary["warnings"]),
        ]
    )


def _metrics(rows: Mapping[str, Mapping[str, Any]], cell: Callable[[Any, int], str]) -> str:
    def cells(one: Mapping[str, Any]) -> list[str]:
        found = [(one.get(metric), places) for metric, (_, places) in METRICS.items()]
        return ["-" if value is None else cell(value, places) for value, places in found]

    return table(["", *(label for label, _ in METRICS.values())], [[name, *cells(one)] for name, one in rows.items()])


def _name(one: Mapping[str, Any]) -> str:
    return f"alpha {one['alpha']:g}, {one['length']}" if one["alpha"] else NO_NOISE


def _mean(one: Mapping[str, Any], places: int) -> str:
    return _cell(f"{one['mean']:.{places}f}", one["spread"], one["supported"], places)


def _difference(one: Mapping[str, Any], places: int) -> str:
    return _cell(f"{one['difference']:+.{places}f}", one["margin"], one["supported"], places)


def _cell(text: str, around: float | None, supported: bool | None, places: int) -> str:
    return (f"**{text}**" if supported else text) + ("" if around is None else f" ± {around:.{places}f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alpha")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("split")
    data.add_argument("rows", type=Path)
    data.add_argument("folder", type=Path)
    data.add_argument("--model", required=True)
    data.add_argument("--longest", type=int, default=192)
    data.add_argument("--train", type=int, default=192)
    data.add_argument("--held-out", type=int, default=96)
    swept = commands.add_parser("record")
    swept.add_argument("sweep", type=Path)
    swept.add_argument("--json", type=Path, default=RECORD)
    options = vars(parser.parse_args())
    if options.pop("command") == "split":
        split(**options)
    else:
        text = json.dumps(record(options["sweep"]), indent=1)
        options["json"].write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
