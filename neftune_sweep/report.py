"""The report of a study: a page that needs no network, and the numbers for programs."""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from neftune_sweep.chart import Chart, Dot, Line, colour, thinned
from neftune_sweep.findings import NO_NOISE, Findings, Setting, finite, label, number, setting_of
from neftune_sweep.statistics import Difference, summary
from neftune_sweep.study import Study, Trial

SAMPLES = 3  # prompts whose answers are shown
_DASHES = ("", "7 3", "2 3", "9 3 2 3")  # of the lines, by the type of noise
_MARKERS = ("circle", "square", "triangle", "diamond")

Answers = Mapping[int, Sequence[Mapping[str, Any]]]
"""Of trials, by their number: the `answers` that `neftune_sweep.measure` wrote."""


def write(study: Study, folder: Path, answers: Answers | None = None) -> Path:
    """Write into the folder, which is made where it is missing, and return the page.

    report.html: for people. study.json: the study as it is; summary.json: what was found, for each setting and metric.
    trials.csv: a line for each trial. Values that are not finite are null there, or empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    findings = Findings(study)
    page = folder / "report.html"
    page.write_text(_html(findings, answers or {}), encoding="utf-8")
    _write_json(study.as_dict(), folder / "study.json")
    _write_json(_summary(findings), folder / "summary.json")
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_lines(study))
    return page


def _write_json(values: Any, path: Path) -> None:
    path.write_text(json.dumps(_without_infinities(values), indent=1, ensure_ascii=False), encoding="utf-8")


def _without_infinities(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _without_infinities(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(one) for one in value]
    return None if isinstance(value, float) and not finite(value) else value


def _summary(findings: Findings) -> dict[str, Any]:
    settings = []
    differences = {metric: findings.differences(metric) for metric in findings.metrics}
    for setting in findings.complete:
        metrics = {}
        for metric in findings.metrics:
            if not (values := findings.by_seed(setting, metric)):
                continue
            own = summary(values)
            metrics[metric] = {"mean": own.mean, "spread": own.spread, "seeds": own.seeds}
            if one := differences[metric].get(setting):
                against = {"difference": one.difference, "margin": one.margin, "supported": one.supported}
                metrics[metric]["against_no_noise"] = against | {"how": one.how}
        settings.append({"alpha": setting.alpha, "type": setting.type or None, "metrics": metrics})
    return {"sentence": findings.sentence, "warnings": findings.warnings, "settings": settings}


def _lines(study: Study) -> list[list[Any]]:
    metrics = list(dict.fromkeys(name for trial in study.trials for name in trial.values))
    lines: list[list[Any]] = [["number", "state", "alpha", "type", "seed", "seconds", *metrics, "log", "error"]]
    for trial in study.trials:
        values = [trial.values.get(name) for name in metrics]
        values = [value if finite(value) else None for value in values]
        about = [trial.number, trial.state, trial.alpha, trial.type, trial.seed, trial.seconds]
        lines.append([*about, *values, trial.log, trial.error])
    return lines


def _html(findings: Findings, answers: Answers) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neftune_sweep", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"label": label, "duration": _duration}
    looks = _Looks(findings)
    return environment.get_template("report.html.jinja").render(
        study=findings.study,
        findings=findings,
        counts=_counts(findings.study),
        looks=looks,
        curves=[chart for name in ("loss", "clean_loss") if (chart := _curves(findings, looks, name)).lines],
        metrics=[_metric(findings, looks, name) for name in findings.metrics if _measured(findings, name)],
        table=[(label(name), _cells(findings, name)) for name in findings.metrics if _measured(findings, name)],
        samples=_samples(findings, answers),
        number=number,
        setting_of=setting_of,
    )


class _Looks:
    """The colour of each alpha, the dashes and markers of each type of noise."""

    def __init__(self, findings: Findings) -> None:
        self.settings = sorted({setting_of(trial) for trial in findings.study.trials})
        self._alphas = sorted({setting.alpha for setting in self.settings} - {0.0})
        self._types = sorted(findings.types)

    def colour(self, setting: Setting) -> str:
        if setting == NO_NOISE:
            return "var(--ink)"
        return colour(self._alphas.index(setting.alpha) / max(1, len(self._alphas) - 1))

    def dashes(self, setting: Setting) -> str:
        return _DASHES[self._type(setting) % len(_DASHES)]

    def marker(self, setting: Setting) -> str:
        return _MARKERS[self._type(setting) % len(_MARKERS)]

    def _type(self, setting: Setting) -> int:
        return self._types.index(setting.type) if setting.type else 0


def _curves(findings: Findings, looks: _Looks, name: str) -> Chart:
    lines = []
    for trial in findings.study.trials:
        setting = setting_of(trial)
        values = [(float(point.step), getattr(point, name)) for point in trial.curve]
        if points := thinned([(step, value) for step, value in values if finite(value)]):
            title = f"{findings.name(setting)}, seed {trial.seed}: {number(points[-1][1])} at the end"
            lines.append(Line(points, looks.colour(setting), title, looks.dashes(setting)))
    title = {"loss": "training loss, with the noise", "clean_loss": "loss without noise, in training"}[name]
    return Chart(title, "step", f"{title}: a line for each of {len(lines)} trials", lines)


def _measured(findings: Findings, metric: str) -> bool:
    return any(findings.by_seed(setting, metric) for setting in findings.complete)


def _metric(findings: Findings, looks: _Looks, metric: str) -> Chart:
    """The metric against alpha: each seed, mean and spread, and for each type of noise a line through the means."""
    dots, lines, told = [], [], []
    means: dict[str, list[tuple[float, float]]] = {}
    for setting in findings.complete:
        if not (values := findings.by_seed(setting, metric)):
            continue
        own, name = summary(values), findings.name(setting)
        look = looks.colour(setting)
        for seed, value in values.items():
            dots.append(Dot((setting.alpha, value), look, f"{name}, seed {seed}: {number(value)}", "seed"))
        shown = number(own.mean, own.spread) + (f" ± {number(own.spread, own.spread)}" if own.spread else "")
        told.append(f"{name}: {shown}")
        title = f"{name}, mean of {own.seeds}: {shown}"
        dots.append(Dot((setting.alpha, own.mean), look, title, looks.marker(setting), own.spread))
        means.setdefault(setting.type, []).append((setting.alpha, own.mean))
    none = means.pop("", [])
    for type, points in means.items():
        lines.append(Line([*none, *points], "var(--muted)", type, looks.dashes(Setting(1.0, type))))
    marks = sorted({setting.alpha for setting in findings.complete})
    return Chart(label(metric), "alpha", f"{label(metric)} against alpha. {'; '.join(told)}", lines, dots, marks)


def _cells(findings: Findings, metric: str) -> list[dict[str, str]]:
    """Of one line of the table: what stands in each setting's cell, its sign, and what it says of the difference."""
    cells = []
    differences = findings.differences(metric)
    for setting in findings.complete:
        values = findings.by_seed(setting, metric)
        if not values:
            cells.append({"mean": "–", "spread": "", "sign": "", "title": "not measured"})
            continue
        own, one = summary(values), differences.get(setting)
        cells.append(
            {
                "mean": number(own.mean, own.spread),
                "spread": "" if own.spread is None else f"± {number(own.spread, own.spread)}",
                "sign": "" if one is None or not one.supported else "▲" if one.difference > 0 else "▼",
                "title": "" if one is None else _told(one),
            }
        )
    return cells


def _told(one: Difference) -> str:
    amount = f"{'+' if one.difference > 0 else ''}{number(one.difference, one.margin)}"
    seeds = f"{one.seeds[0]} seeds" if one.seeds[0] == one.seeds[1] else f"{one.seeds[0]} and {one.seeds[1]} seeds"
    if one.margin is None:
        why = {"few": "too few seeds for an interval", "constant": "the seeds change nothing"}[one.how]
        return f"against no noise {amount}, {why}"
    return f"against no noise {amount} ± {number(one.margin, one.margin)}, {one.how}, {seeds}"


def _counts(study: Study) -> list[str]:
    states = [trial.state for trial in study.trials]
    named = [(len(states), "trials")] + [(states.count(state), state) for state in ("failed", "pruned")]
    return [f"{count} {name}" for count, name in named if count or name == "trials"]


def _samples(findings: Findings, answers: Answers) -> list[dict[str, Any]]:
    """The first held-out prompts with what each setting answered, in its first seed."""
    first: dict[Setting, tuple[Trial, list[Mapping[str, Any]]]] = {}
    for setting, trials in findings.complete.items():
        for trial in sorted(trials, key=lambda trial: trial.seed):
            if own := [answer for answer in answers.get(trial.number, ()) if answer["rows"] == "held_out"]:
                first.setdefault(setting, (trial, own))
    samples = []
    for row in list(zip_longest(*(own for _, own in first.values())))[:SAMPLES]:
        given = [answer for answer in row if answer is not None]
        samples.append(
            {
                "prompt": given[0]["prompt"],
                "reference": given[0]["reference"],
                "answers": [
                    (setting, trial.seed, answer)
                    for (setting, (trial, _)), answer in zip(first.items(), row, strict=True)
                    if answer is not None
                ],
            }
        )
    return samples


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
