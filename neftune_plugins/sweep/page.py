"""Write the report of a study: a page that needs no network, and files with the numbers for programs."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from neftune_plugins.commands import files
from neftune_plugins.commands.chart import Chart, Dot, Line, colour, marker, style
from neftune_plugins.sweep import conclusions
from neftune_plugins.sweep.results import NO_NOISE, Results, Setting, bounds, finite, label, setting_of
from neftune_plugins.sweep.statistics import Difference, Summary, summary
from neftune_plugins.sweep.study import AXES, Study, Trial

MEASURED = "measured.json"  # written by `neftune_plugins.sweep.measure` into the trial's folder
SAMPLES = 3  # prompts whose answers are shown

# Dashes of lines and markers of means, one for each combination of noise type and length.
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_MARKERS = ("circle", "square", "triangle", "diamond")

_APART = 0.025  # distance between markers with the same alpha, as a share of the largest alpha

# Shown in the table only, because they tell whether other values can be trusted.
_NOT_PLOTTED = ("unfinished", "chunked")

Answer = Mapping[str, Any]


def write(study: Study, folder: Path) -> Path:
    """Write the report into the folder, creating it if necessary. Returns the path of the page.

    report.html: for people. Contains answers if a trial's folder has `measured.json`.
    study.json: the whole study.
    summary.json: the finding, the warnings, and the mean, spread and difference of each metric.
    trials.csv: a line for each trial.
    Values that are not finite are null in JSON and empty in CSV.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(study)
    page = folder / "report.html"
    files.write(page, _page(results))
    _write_json(study.as_dict(), folder / "study.json")
    _write_json(_summary(results), folder / "summary.json")
    lines = io.StringIO()
    csv.writer(lines).writerows(_lines(study))
    files.write(folder / "trials.csv", lines.getvalue())
    return page


def _write_json(values: Any, path: Path) -> None:
    files.write(path, json.dumps(_without_infinities(values), indent=1, ensure_ascii=False))


def _without_infinities(value: Any) -> Any:
    """The value with None for numbers that are not finite, because JSON cannot represent them."""
    if isinstance(value, dict):
        return {key: _without_infinities(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(one) for one in value]
    return None if isinstance(value, float) and not finite(value) else value


def _summary(results: Results) -> dict[str, Any]:
    settings: list[dict[str, Any]] = [
        {
            "alpha": setting.alpha,
            **{axis: value or None for axis, value in zip(AXES, setting.noise, strict=True)},
            "metrics": {},
        }
        for setting in results.complete
    ]
    for metric in results.metrics:
        differences = results.differences(metric)
        for setting, found in zip(results.complete, settings, strict=True):
            if values := results.by_seed(setting, metric):
                own, one = summary(values), differences.get(setting)
                found["metrics"][metric] = {
                    "mean": own.mean,
                    "spread": own.spread,
                    "seeds": own.seeds,
                    "difference": one and one.difference,
                    "margin": one and one.margin,
                    "supported": one and one.supported,
                }
    return {"finding": conclusions.sentence(results), "warnings": conclusions.warnings(results), "settings": settings}


def _lines(study: Study) -> list[list[Any]]:
    metrics = list(dict.fromkeys(name for trial in study.trials for name in trial.values))
    lines: list[list[Any]] = [["number", "state", "alpha", *AXES, "seed", "seconds", *metrics, "log", "error"]]
    for trial in study.trials:
        values = [trial.values.get(name) for name in metrics]
        values = [value if finite(value) else None for value in values]
        about = [trial.number, trial.state, trial.alpha, *trial.noise, trial.seed, trial.seconds]
        lines.append([*about, *values, trial.log, trial.error])
    return lines


def _page(results: Results) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neftune_plugins.sweep", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"label": label, "duration": _duration, "number": conclusions.shown}
    looks = _Looks(results)
    states = [trial.state for trial in results.study.trials]
    plotted = [name for name in results.metrics if not name.endswith(_NOT_PLOTTED) and _comparable(results, name)]
    curves = [_curves(results, looks, name, title) for name, title in _CURVES.items()]
    return environment.get_template("page.html.jinja").render(
        study=results.study,
        results=results,
        finding=conclusions.sentence(results),
        warnings=conclusions.warnings(results),
        counts=[f"{len(states)} trials", *(f"{states.count(one)} {one}" for one in _ENDS if one in states)],
        looks=looks,
        curves=[chart for chart in curves if chart.lines],
        metrics=[_metric(results, looks, name) for name in plotted],
        differences=_against(results),
        table={name: _cells(results, name) for name in results.metrics},
        samples=_samples(results),
        setting_of=setting_of,
        marker=marker,
        chart_style=style(),
        zip=zip,
    )


def _comparable(results: Results, metric: str) -> bool:
    """Whether two settings have the metric, so that a plot compares them; true if there is only one setting."""
    return sum(bool(results.by_seed(one, metric)) for one in results.complete) > 1 or len(results.complete) == 1


_ENDS = ("failed", "pruned")
_CURVES = {"loss": "training loss, with the noise", "clean_loss": "loss without noise, in training"}


class _Looks:
    """The appearance of settings: a colour for each alpha; dashes, marker and x offset for each kind of noise."""

    def __init__(self, results: Results) -> None:
        self.settings = sorted(set(map(setting_of, results.study.trials)))
        self._alphas = sorted({setting.alpha for setting in self.settings} - {0.0})
        self._noises = {noise: number for number, noise in enumerate(results.noises)}

    def colour(self, setting: Setting) -> str:
        if setting == NO_NOISE:
            return "var(--ink)"
        return colour(self._alphas.index(setting.alpha) / max(1, len(self._alphas) - 1))

    def x(self, setting: Setting) -> float:
        """The x coordinate: alpha, shifted so that markers of several kinds of noise do not overlap."""
        if setting == NO_NOISE:
            return 0.0
        middle = (len(self._noises) - 1) / 2
        return setting.alpha + (self._noises[setting.noise] - middle) * _APART * max(self._alphas)

    def dashes(self, setting: Setting) -> str:
        return _DASHES[self._noises.get(setting.noise, 0) % len(_DASHES)]

    def marker(self, setting: Setting) -> str:
        return _MARKERS[self._noises.get(setting.noise, 0) % len(_MARKERS)]


def _curves(results: Results, looks: _Looks, name: str, title: str) -> Chart:
    """A chart with a line for each trial, including failed and pruned ones."""
    lines = []
    for trial in results.study.trials:
        setting = setting_of(trial)
        values = [(float(point.step), getattr(point, name)) for point in trial.curve]
        if points := [(step, value) for step, value in values if finite(value)]:
            step, last = points[-1]
            told = f"{results.name(setting)}, seed {trial.seed}: {conclusions.shown(last, 1e-3)} at step {step:g}"
            lines.append(Line(points, looks.colour(setting), told, looks.dashes(setting)))
    return Chart(title, "step", f"{title}, of {len(lines)} trials", lines)


def _metric(results: Results, looks: _Looks, metric: str) -> Chart:
    """A chart of the metric against alpha: each seed, mean and spread, and a line through the means of each noise."""
    dots, told = [], []
    means: dict[Setting, list[tuple[float, float]]] = {}
    precision = _precision(results, metric)
    for setting in results.complete:
        if not (values := results.by_seed(setting, metric)):
            continue
        own, name, look = summary(values), results.name(setting), looks.colour(setting)
        for seed, value in values.items():
            told_of_one = f"{name}, seed {seed}: {conclusions.shown(value, precision)}"
            dots.append(Dot((looks.x(setting), value), look, told_of_one, "seed"))
        text = f"{name}: {' '.join(_mean_and_spread(own, precision))}".strip()
        dots.append(Dot((looks.x(setting), own.mean), look, text, looks.marker(setting), own.spread))
        told.append(text)
        means.setdefault(replace(setting, alpha=0.0), []).append((looks.x(setting), own.mean))
    none = means.pop(NO_NOISE, [])
    lines = [
        Line([*none, *points], "var(--muted)", results.varied(kind.noise), looks.dashes(kind))
        for kind, points in means.items()
    ]
    marks = sorted({setting.alpha for setting in results.complete})
    described = f"{label(metric)} against alpha. {'; '.join(told)}"
    return Chart(label(metric), "alpha", described, lines, dots, marks, bounds(metric))


def _precision(results: Results, metric: str) -> float | None:
    """The largest spread of a metric; None if all spreads are 0 or unknown."""
    spreads = [summary(own).spread or 0.0 for one in results.complete if (own := results.by_seed(one, metric))]
    return max(spreads) or None


def _mean_and_spread(own: Summary, precision: float | None) -> tuple[str, str]:
    """Mean and spread as texts. A value that is the same in each seed is shown exactly, not rounded to a precision."""
    if own.spread == 0:
        return conclusions.shown(own.mean), "in each seed"
    mean = conclusions.shown(own.mean, precision)
    return mean, "" if own.spread is None else f"± {conclusions.shown(own.spread, precision)}"


def _cells(results: Results, metric: str) -> list[dict[str, str]]:
    """A row of the table: for each setting the mean, the spread, the sign and verdict of a significant difference from
    no noise, and that difference in words."""
    differences, precision = results.differences(metric), _precision(results, metric)
    cells = []
    for setting in results.complete:
        if not (values := results.by_seed(setting, metric)):
            cells.append({"mean": "–", "spread": "", "sign": "", "verdict": "", "told": "not measured"})
            continue
        mean, spread = _mean_and_spread(summary(values), precision)
        one = differences.get(setting)
        supported = one is not None and one.supported
        cells.append(
            {
                "mean": mean,
                "spread": spread,
                "sign": "" if one is None or not supported else "▲" if one.difference > 0 else "▼",
                "verdict": "" if one is None or not supported else _verdict(results, metric, one.difference),
                "told": "" if one is None else _told(one),
            }
        )
    return cells


def _verdict(results: Results, metric: str, difference: float) -> str:
    """`better` or `worse`; empty if neither direction of the metric is known to be better."""
    good = results.good(metric)
    return "" if good == 0 else "better" if good * difference > 0 else "worse"


def _against(results: Results) -> list[str]:
    """The difference of the objective from no noise for each setting, with its confidence interval."""
    differences = results.differences(results.study.objective)
    shown = [_difference(one) if (one := differences.get(setting)) else "" for setting in results.complete]
    return shown if differences else []


def _difference(one: Difference) -> str:
    amount = conclusions.shown(one.difference, one.margin, "+")
    return amount if one.margin is None else f"{amount} ± {conclusions.shown(one.margin, one.margin)}"


def _told(one: Difference) -> str:
    amount = f"against no noise {_difference(one)}"
    if one.margin is None:
        why = "too few seeds" if one.how == "few" else "the same in each seed"
        return f"{amount}: {why}, so there is no confidence interval"
    return f"{amount}, {one.how}, {' and '.join(map(str, dict.fromkeys(one.seeds)))} seeds"


def _samples(results: Results) -> list[dict[str, Any]]:
    """The first held-out prompts, with the answers of the first seed of each setting."""
    given: dict[Setting, tuple[Trial, list[Answer]]] = {}
    for setting, trials in results.complete.items():
        for trial in sorted(trials, key=lambda trial: trial.seed):
            if found := _answers(trial):
                given.setdefault(setting, (trial, found))
    samples = []
    for row in list(zip_longest(*(found for _, found in given.values())))[:SAMPLES]:
        first = next(answer for answer in row if answer is not None)
        answers = [
            (setting, trial.seed, answer)
            for (setting, (trial, _)), answer in zip(given.items(), row, strict=True)
            if answer is not None
        ]
        samples.append({"prompt": first["prompt"], "reference": first["reference"], "answers": answers})
    return samples


def _answers(trial: Trial) -> list[Answer]:
    """The trial's answers to held-out rows; empty if the file is missing or is not a measurement."""
    if not trial.log:
        return []
    try:
        found = json.loads(Path(trial.log).with_name(MEASURED).read_text(encoding="utf-8"))
        answers = [answer for answer in found["answers"] if answer["rows"] == "held_out"]
        return [answer for answer in answers if answer.keys() >= _ANSWER]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # deleted, or not ours
        return []


_ANSWER = {"prompt", "reference", "answer", "length", "finished"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
