"""What the report says of a study, and that its page stands by itself."""

import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from neftune_plugins.commands.chart import BOTTOM, HEIGHT, TOP, Chart, Line, colour, steps
from neftune_plugins.sweep import conclusions, progress
from neftune_plugins.sweep.page import _Looks, _metric, write
from neftune_plugins.sweep.results import Results, label
from neftune_plugins.sweep.study import Point, Study, Trial

HOSTILE = "</title><script>alert(1)</script><img src=https://example.org/x.png onerror='alert(2)'>&\"{{ 7 * 7 }}"
VOID = {"meta", "br", "img", "link", "input"}


def study(values, *, metric="held_out_loss", others=None, **options):
    """A study of the values of its metric, of the seeds 0, 1, ...: by alpha, or alpha and type and perhaps length; None
    is a failure.

    others: the same of further metrics, by their names.
    """
    trials = []
    for setting, own in values.items():
        given = setting if isinstance(setting, tuple) else (setting,)
        alpha, type, length = (*given, *(0, "uniform", "sequence")[len(given) :])
        for seed, value in enumerate(own):
            more = {name: found[setting][seed] for name, found in (others or {}).items()}
            trials.append(
                Trial(
                    number=len(trials),
                    state="complete" if value is not None else "failed",
                    alpha=alpha,
                    type=type,
                    length=length,
                    seed=seed,
                    seconds=61.0,
                    values={metric: value} | more if value is not None else {},
                    error="" if value is not None else "out of memory",
                )
            )
    return Study(config="sft.yaml", framework="axolotl", objective=metric, trials=trials, **options)


def sentence(*args, **options):
    return conclusions.sentence(Results(study(*args, **options)))


def warned(*args, **options):
    return conclusions.warnings(Results(study(*args, **options)))


class Page(HTMLParser):
    """What a page shows, its tags, and whatever it would fetch or run."""

    def __init__(self, path):
        super().__init__()
        self.open, self.texts, self.tags, self.fetched = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "xlink:href") or name.startswith("on"):
                self.fetched.append((tag, name, value))
            if name == "style":
                assert "url(" not in value

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data
        else:
            self.texts.append(data)


def page(found, folder):
    return Page(write(found, folder))


# The finding

NONE = (2.30, 2.34, 2.32)


def test_a_gain_beyond_the_spread_is_named():
    assert sentence({0: NONE, 5: (2.21, 2.25, 2.229)}) == (
        "With 3 seeds, held-out loss is significantly lower than without noise at alpha 5 (by 0.0903 ± 0.0014)."
    )


def test_of_a_score_more_is_better():
    found = sentence({0: NONE, 5: (2.21, 2.25, 2.229)}, metric="win_rate", direction="maximize")
    assert found == (
        "With 3 seeds, no alpha gives a significantly better win_rate than no noise. It is significantly worse than "
        "without noise at alpha 5 (by 0.0903 ± 0.0014)."
    )


def test_a_gain_within_the_spread_is_not_named():
    found = sentence({0: NONE, 5: (2.29, 2.29, 2.33), 10: (2.33, 2.31, 2.30)})
    assert found == "With 3 seeds, no alpha gives a significantly better held-out loss than no noise."


def test_one_seed_says_nothing():
    assert sentence({0: (2.3,), 5: (1.3,)}).startswith("There are too few seeds to compare held-out loss")


def test_the_best_of_several_is_named_where_the_spread_does():
    better = sentence({0: NONE, 5: (2.21, 2.25, 2.229), 10: (2.11, 2.151, 2.13)})
    assert better.endswith("Of these, alpha 10 is significantly better than each of the others.")
    alike = sentence({0: NONE, 5: (2.11, 2.15, 2.131), 10: (2.11, 2.151, 2.13)})
    assert "alpha 5 (by 0.1897 ± 0.0021) and alpha 10 (by 0.1897 ± 0.0021)." in alike
    assert alike.endswith("None of these is significantly better than all the others.")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "No trial has finished, so nothing can be compared."),
        ({5: (None,)}, "No trial has finished, so nothing can be compared."),
        (
            {5: (2.3, 2.2)},
            "No trial without noise (alpha 0) has finished, so this sweep cannot say whether noise helps.",
        ),
        ({0: (2.3, 2.2)}, "Only trials without noise (alpha 0) have finished, so"),
        ({0: (math.nan,), 5: (math.inf,)}, "No trial that finished has a value of held-out loss"),
    ],
)
def test_what_cannot_be_compared(values, said, tmp_path):
    assert sentence(values).startswith(said)
    assert said in page(study(values), tmp_path).text


def test_runs_that_are_alike_count_once():
    """Without noise its type makes no difference: the same seed twice is no second seed."""
    values = {(0, "uniform"): (2.3,), (0, "gaussian"): (2.4,), (5, "uniform"): (2.2,), (5, "gaussian"): (2.1,)}
    results = Results(study(values))
    assert [results.name(setting) for setting in results.complete] == [
        "no noise",
        "alpha 5 gaussian",
        "alpha 5 uniform",
    ]
    assert results.by_seed(next(iter(results.complete)), "held_out_loss") == {0: pytest.approx(2.35)}


def test_a_setting_is_named_by_what_varies(tmp_path):
    values = {0: (2.3,), (5, "uniform", "sequence"): (2.2,), (5, "uniform", "padded"): (2.1,)}
    own = study(values)
    assert [Results(own).name(setting) for setting in Results(own).complete] == [
        "no noise",
        "alpha 5 padded",
        "alpha 5 sequence",
    ]
    write(own, tmp_path)
    [none, *noisy] = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert (none["type"], none["length"]) == (None, None)
    assert [(one["type"], one["length"]) for one in noisy] == [("uniform", "padded"), ("uniform", "sequence")]


# Warnings

LENGTHS = {0: (100, 104, 96), 5: (150, 154, 146)}


def test_a_gain_that_length_explains_is_warned_of():
    metric = {alpha: [length / 100 for length in own] for alpha, own in LENGTHS.items()}
    metric[5] = [metric[5][0] + 0.001, metric[5][1], metric[5][2] - 0.001]
    options = {"metric": "win_rate", "direction": "maximize"}
    [warning] = warned(metric, others={"held_out_length": LENGTHS}, **options)
    assert warning.startswith(
        "The length of the answers alone may explain the effect on win_rate: alpha 5 raises it by 0.5000, with answers "
        "that are 50.0 tokens longer; that length alone changes it by +0.4"
    )
    gained = {0: metric[0], 5: [value + 1 for value in metric[5]]}
    assert warned(gained, others={"held_out_length": LENGTHS}, **options) == []
    assert warned(metric, others={"trained_on_length": LENGTHS}, **options) == []


def test_the_length_of_answers_explains_no_loss():
    loss = {
        alpha: [3 - length / 100 + alpha * seed / 1e4 for seed, length in enumerate(own)]
        for alpha, own in LENGTHS.items()
    }
    for metric in ("held_out_loss", "train_loss"):
        assert "alpha 5" in sentence(loss, metric=metric, others={"held_out_length": LENGTHS})
        assert warned(loss, metric=metric, others={"held_out_length": LENGTHS}) == []


def test_failed_trials_and_unequal_seeds_are_warned_of(tmp_path):
    found = study({0: NONE, 5: (2.2, None, 2.3), 10: (2.2,)})
    text = page(found, tmp_path).text
    for warning in (
        "1 of 7 trials failed and are excluded from the means: alpha 5, seed 1.",
        "Only one seed, so the spread over the seeds is unknown: alpha 10.",
        "The settings were not trained with the same seeds (no noise: 0, 1, 2; alpha 5: 0, 2; alpha 10: 0).",
    ):
        assert warning in text
    assert "7 trials, 1 failed" in text
    assert "Trial 4: alpha 5, seed 1 out of memory" in text


def test_pruned_trials_are_warned_of():
    complete = study({0: NONE, 5: (2.2, 2.3)}).trials
    pruned = Trial(
        number=5,
        state="pruned",
        alpha=5,
        type="uniform",
        length="sequence",
        seed=2,
        seconds=1,
        values={"held_out_loss": 9},
    )
    results = Results(Study(config="", framework="", trials=[*complete, pruned]))
    assert conclusions.warnings(results)[0] == (
        "1 of 6 trials were pruned for poor values and are excluded from the means, which look better than they are: "
        "alpha 5, seed 2."
    )
    assert results.by_seed(list(results.complete)[1], "held_out_loss") == {0: 2.2, 1: 2.3}


def test_a_value_that_is_not_finite_is_warned_of():
    warnings = warned({0: NONE, 5: (2.2, math.nan, 2.3)})
    assert warnings[0] == "held-out loss is not a finite number and is excluded from the means: alpha 5, seed 1."


def test_seeds_that_change_nothing_are_warned_of():
    assert warned({0: (2.3, 2.3, 2.3), 5: (2.2, 2.2, 2.2)}) == [
        "held-out loss at alpha 5 differs from the value without noise by the same amount in each seed, so there is no "
        "confidence interval."
    ]


def test_answers_that_tell_little_are_warned_of():
    others = {
        "held_out_unfinished": {0: (0.0,) * 3, 5: (0.5,) * 3},
        "trained_on_chunked": {0: (0.9,) * 3, 5: (0.2,) * 3},
    }
    assert warned({0: NONE, 5: NONE[::-1]}, others=others) == [
        "Many held-out answers were cut off at the maximum length, so their mean length is too small; raise "
        "--max-new-tokens: 50% (alpha 5).",
        "Few trained-on answers have enough words to measure repetition; lower --chunk: 20% (alpha 5).",
    ]


# The files


def full(tmp_path, text="plain"):
    """A study with everything in it, and answers beside the logs."""
    trials = []
    for number in range(8):
        alpha, seed = float(number // 2 * 5), number % 2
        log = tmp_path / "trials" / str(number) / "log.txt"
        log.parent.mkdir(parents=True)
        answer = {"prompt": f"Why? {text}", "reference": "So.", "answer": f"alpha {alpha:g} {text}", "length": 3}
        rows = [answer | {"rows": name, "finished": alpha < 15} for name in ("trained_on", "held_out", "held_out")]
        log.with_name("measured.json").write_text(json.dumps({"held_out_loss": 1, "answers": rows}))
        curve = [Point(step=step, loss=3 / step + number / 10, clean_loss=3 / step) for step in range(1, 20)]
        trials.append(
            Trial(
                number=number,
                state="failed" if number == 7 else "complete",
                alpha=alpha,
                type="uniform",
                length="sequence",
                seed=seed,
                seconds=3700.0,
                values={"held_out_loss": 2 - alpha / 10 + seed / 7, "held_out_length": 90 + alpha, text: 1.0},
                curve=(*curve, Point(step=20, loss=math.nan)),
                log=str(log),
                error=text if number == 7 else "",
            )
        )
    return Study(config=f"sft {text}.yaml", framework=text, trials=trials)


def test_the_page_stands_by_itself_and_says_what_it_is_given(tmp_path):
    shown = page(full(tmp_path, HOSTILE), tmp_path / "report")
    assert shown.fetched == []
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(shown.tags)
    plain = " ".join(HOSTILE.split())
    for text in (f"sft {plain}.yaml", f"Why? {plain}", f"alpha 5 {plain}", f"alpha 15, seed 1 {plain}"):
        assert text in shown.text
    source = (tmp_path / "report" / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s&]+", source)) == {"https://example.org/x.png"}  # as text
    assert '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'' in source


def test_the_page_has_plots_with_words_beside_them(tmp_path):
    path = write(full(tmp_path), tmp_path / "report")
    source = path.read_text()
    plots = re.findall(r'<svg viewBox="0 0 360 240" role="img" aria-label="([^"]+)"', source)
    means = "no noise: 2.07 ± 0.10; alpha 5: 1.57 ± 0.10; alpha 10: 1.07 ± 0.10; alpha 15: 0.50"
    assert plots[0] == f"held-out loss against alpha. {means}"
    assert plots[-2:] == ["training loss, with the noise, of 8 trials", "loss without noise, in training, of 8 trials"]
    assert len(plots) == 5
    assert source.count('class="bar"') == 3  # those of the loss; alpha 15 has one seed, the other values no spread
    assert "<title>alpha 5, seed 1: 0.4579 at step 19</title>" in source
    assert "<title>alpha 5, seed 1: 0.1579 at step 19</title>" in source
    assert "nan" not in source
    shown = Page(path).text
    assert "In the data So. no noise seed 0, 3 tokens alpha 0 plain" in shown
    assert "alpha 15 seed 0, 3 tokens, cut off" in shown
    assert shown.count("Prompt Why? plain") == 2  # those to training rows are not shown


def test_one_alpha_without_curves(tmp_path):
    shown = page(study({0: (2.3,)}), tmp_path)
    assert "Training" not in shown.text and "Answers" not in shown.text
    assert "no noise 1 seed" in shown.text


def test_many_settings_and_types(tmp_path):
    values = {(alpha, type): (2.0 + alpha, 2.1) for alpha in range(1, 21) for type in "abcdef"}
    source = write(study(values), tmp_path).read_text()
    assert len(set(re.findall(r"#[0-9a-f]{6}", source.split("</style>")[1]))) == 20
    Page(tmp_path / "report.html")


def test_kinds_of_noise_stand_side_by_side():
    values = {0: NONE} | {(alpha, type): (2.0, 2.1) for alpha in (5, 10) for type in "ab"}
    results = Results(study(values))
    looks = _Looks(results)
    places = [looks.x(setting) for setting in results.complete]
    assert places == pytest.approx([0, 5 - 0.125, 5 + 0.125, 10 - 0.125, 10 + 0.125])


def test_what_one_of_several_settings_has_is_in_the_table_alone(tmp_path):
    trials = study({0: NONE, 5: (2.2, 2.3)}).trials
    clean = replace(trials[0], values={**trials[0].values, "clean_loss": 2.0})
    found = page(Study(config="", framework="", trials=[clean, *trials[1:]]), tmp_path)
    assert not re.search("aria-label=.last loss in training, without noise", (tmp_path / "report.html").read_text())
    assert "last loss in training, without noise" in found.text


def test_the_table_marks_what_the_spread_supports(tmp_path):
    shown = page(study({0: NONE, 5: (2.21, 2.25, 2.229), 10: (2.2, 2.35, 2.32)}), tmp_path).text
    assert "held-out loss 2.320 ± 0.020 ▼ 2.230 ± 0.020 better 2.290 ± 0.079" in shown
    assert "difference from no noise, 95 % confidence interval -0.0903 ± 0.0021 -0.03" in shown


def test_a_worse_value_is_marked_by_a_word_an_arrow_and_a_colour(tmp_path):
    worse = {0: NONE, 5: (2.41, 2.45, 2.431)}
    others = {"held_out_rouge_l": {0: (0.1, 0.11, 0.12), 5: (0.2, 0.21, 0.221)}}
    write(study(worse, others=others), tmp_path)
    source = (tmp_path / "report.html").read_text()
    assert '<span class="sign worse">▲</span>' in source and '<small class="verdict worse">worse</small>' in source
    assert ".worse { color: var(--bad); }" in source
    assert '<span class="sign ">▲</span>' in source  # of ROUGE it is not known whether more is better
    write(study(worse, metric="win_rate", direction="maximize"), tmp_path)
    assert '<span class="sign better">▲</span>' in (tmp_path / "report.html").read_text()


def test_what_is_the_same_in_each_seed_is_shown_as_it_is(tmp_path):
    others = {"size": {0: (16.0,) * 3, 5: (17.5,) * 3}, "held_out_length": {0: (16.0,) * 3, 5: (16.0, 17.0, 18.0)}}
    found = study({0: NONE, 5: (2.2, 2.3, 2.4)}, others=others)
    shown = page(found, tmp_path)
    assert "size 16 in each seed 17.5 in each seed" in shown.text
    assert "answer length, tokens 16 in each seed 17.0 ± 1.0" in shown.text
    source = (tmp_path / "report.html").read_text()
    assert "0.0000" not in source and ".0000" not in source
    assert "size against alpha. no noise: 16 in each seed; alpha 5: 17.5 in each seed" in source
    assert "size against no noise +1.5: the same in each seed, so there is no confidence interval" in shown.text
    text = progress.summary(Results(study({0: (16.0,) * 3, 5: (17.5,) * 3}, metric="size")))
    assert [line.split()[3:5] for line in text.splitlines()[1:3]] == [["16", "0"], ["17.5", "0"]]


def test_the_files_for_programs(tmp_path):
    found = study({0: (2.3, math.nan), 5: (2.2, None)}, others={'a,\n"b"': {0: (1.0, 2.0), 5: (3.0, 4.0)}})
    write(found, tmp_path)
    assert Study.from_dict(json.loads((tmp_path / "study.json").read_text())).trials[0] == found.trials[0]
    assert json.loads((tmp_path / "study.json").read_text())["trials"][1]["values"]["held_out_loss"] is None
    with (tmp_path / "trials.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["held_out_loss"] for line in lines] == ["2.3", "", "2.2", ""]
    assert [line['a,\n"b"'] for line in lines] == ["1.0", "2.0", "3.0", ""]
    assert lines[3]["state"] == "failed" and lines[3]["error"] == "out of memory"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["finding"] == conclusions.sentence(Results(found))
    assert summary["warnings"] == conclusions.warnings(Results(found))
    assert summary["settings"][1]["metrics"]["held_out_loss"] == {
        "mean": 2.2,
        "spread": None,
        "seeds": 1,
        "difference": pytest.approx(-0.1),
        "margin": None,
        "supported": False,
    }


# Plots


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.2213, 2.3387), (-5, 105), (1e-5, 9e-5), (0, 60), (99.999, 100)])
def test_marks_of_an_axis_are_round_and_within(low, high):
    found = steps(low, high, 6)
    assert 3 <= len(found) <= 6
    assert low <= found[0] and found[-1] <= high
    assert all(len(f"{value:.12g}") <= 8 for value in found)


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.3, 0.1 + 0.2), (-3.0, -3.0), (1e4, 1e4 + 1)])
def test_a_plot_of_one_value_has_room_and_few_marks(values):
    chart = Chart("", "", "", lines=[Line([(5.0, value) for value in values], "")])
    assert 2 <= len(chart.y_ticks) <= 6 and 2 <= len(chart.x_ticks) <= 6
    assert all(TOP < chart.y(value) <= HEIGHT - BOTTOM - (value != 0) for value in values)
    assert all(len(tick.text) <= 8 for tick in chart.y_ticks)


@pytest.mark.parametrize("metric", ["held_out_rouge_l", "trained_on_bleu", "held_out_loss", "held_out_length", "own"])
@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (0.0, 0.9, 0.0), (0.01, 0.02, 0.5)])
def test_no_axis_begins_below_zero_where_nothing_can_be(metric, values):
    results = Results(study({0: values, 5: values}, metric=metric))
    chart = _metric(results, _Looks(results), metric)
    assert chart.ranges[1][0] >= (0 if metric != "own" or values[0] == values[1] else -math.inf)
    assert all(chart.y(chart.bar(dot)[0]) <= HEIGHT - BOTTOM + 1e-9 for dot in chart.dots)


def test_a_score_of_one_at_most_has_an_axis_to_one_at_most():
    results = Results(study({0: (0.9, 1.0), 5: (1.0, 0.2)}, metric="held_out_rouge_l"))
    assert _metric(results, _Looks(results), "held_out_rouge_l").ranges[1] == (pytest.approx(0.0, abs=0.1), 1.0)


def test_colours_run_through_the_range():
    assert colour(0) == "#2f6fde" and colour(1) == "#e26b14"
    assert len({colour(place / 20) for place in range(21)}) == 21


def test_a_users_own_metric_goes_by_its_name():
    assert label("held_out_rouge_l") == "held-out ROUGE-L"
    assert label("trained_on_speed") == "trained_on_speed"
    assert label("train_loss") == "last loss in training, with the noise"
    assert label("win_rate") == "win_rate"
