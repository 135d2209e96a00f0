"""The site and the report of a sweep as a browser shows them, opened as files: `tox run -e docs`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from neftune_plugins.sweep.page import write
from neftune_plugins.sweep.study import Point, Study, Trial
from tests.site.test_site import PAGES, SITE
from tests.support.browser import LOCAL, Browser, browser

# The addresses in the page for errors are from the root of the site: it is nothing to open as a file.
OPENED = [page for page in PAGES if page.name != "404.html"]
ENTER = "\ue007"
PATIENCE = 2.0  # seconds in which a report of 200 trials is to be there


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def large(folder: Path) -> Path:
    """The report of 200 trials: 10 alphas of 2 types with 10 seeds, with everything that a report can have."""
    trials = []
    for number in range(200):
        alpha, type, seed = float(number // 20), ("uniform", "gaussian")[number // 10 % 2], number % 10
        failed = number in (150, 190)
        log = folder / "trials" / f"{number:04d}" / "log.txt"
        log.parent.mkdir(parents=True)
        answer = {"rows": "held_out", "prompt": "Why does bread rise? " * 5, "reference": "Yeast. " * 20, "length": 90}
        answers = [answer | {"answer": f"Because of yeast, {alpha:g}. " * 20, "finished": alpha < 9}] * 3
        log.with_name("measured.json").write_text(json.dumps({"answers": answers}))
        values = {
            "held_out_loss": 2 + (alpha - 4) ** 2 / 50 + seed / 100 + number % 3 / 300,
            "held_out_rouge_l": 0.02 * (number % 5),
            "held_out_length": 90 + alpha + seed % 3,
            "train_loss": 2 + alpha / 9 + seed / 100,
            "a_metric_with_a_name_that_is_longer_than_a_telephone_is_wide": 16.0,
        }
        trials.append(
            Trial(
                number=number,
                state="failed" if failed else "complete",
                alpha=alpha,
                type=type,
                length="sequence",
                seed=seed,
                seconds=754.2,
                values={} if failed else values,
                curve=[Point(step=n, loss=4 / (n + 1) + alpha / 9, clean_loss=4 / (n + 1)) for n in range(99)],
                log=str(log),
                error="out of memory: " + "tried_to_allocate_" * 20 if failed else "",
            )
        )  # fmt: skip
    config = "a_configuration_in_a_folder_with_a_long_name/" * 3 + "axolotl.yml"
    return write(Study(config=config, framework="axolotl", trials=trials), folder)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large(tmp_path_factory.mktemp("report"))


WRONG = """<!DOCTYPE html><body style="background: #eee"><p style="color: #888">pale</p><p style="color: #555">dark</p>
<p style="opacity: .5; color: #222">faint</p><p style="width: 600px">wide</p><img src="http://127.0.0.1:9/x.png">
<input type="checkbox" id="box" style="display: none"><label for="box" style="cursor: pointer">open</label>
<a href="#">a</a><figure><svg><polyline points="0,0 9,9" style="stroke: #bbb; fill: none"/></svg></figure></body>"""


def test_a_page_with_all_these_faults_is_found_out(chromium, tmp_path):
    (tmp_path / "wrong.html").write_text(WRONG)
    chromium.open(tmp_path / "wrong.html", width=360)
    assert chromium.sideways() > 200
    assert [found.split(": ")[1] for found in chromium.poor_contrast()] == ["P  pale", "P  faint", "polyline mark"]
    assert [found[:10] for found in chromium.unreached()] == ["<label for"]
    with pytest.raises(AssertionError, match=r"127\.0\.0\.1"):
        assert_nothing_left_the_page(chromium)


OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"


def test_the_search_works_in_a_page_that_was_opened_as_a_file(chromium):
    chromium.open(SITE / "index.html")
    chromium.press("/")
    chromium.until("return document.activeElement.matches('.md-search__input')")
    chromium.press(*"heartbeat")
    found = chromium.until(
        "return [...document.querySelectorAll('.md-search-result__link')].map(one => one.getAttribute('href'))"
    )
    assert any("sweep.html" in address for address in found), found
    assert_nothing_left_the_page(chromium)


@pytest.mark.parametrize("page", OPENED, ids=lambda page: page.name)
def test_a_page_of_the_site_is_read_on_a_telephone_by_day_and_by_night(chromium, page):
    chromium.open(page, width=360)
    assert chromium.sideways() <= 0
    colours = []
    for dark in (False, True):
        chromium.scheme(dark)
        chromium.until(f"return document.body.dataset.mdColorScheme === '{'slate' if dark else 'default'}'")
        colours.append(chromium.run("return getComputedStyle(document.body).backgroundColor"))
        assert chromium.poor_contrast() == []
    assert colours[0] != colours[1]
    assert_nothing_left_the_page(chromium)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_keyboard_reaches_each_control_of_the_site(chromium, width):
    chromium.open(SITE / "sweep.html", width=width)
    assert chromium.unreached() == []


def test_the_keyboard_opens_the_navigation_on_a_telephone(chromium):
    chromium.open(SITE / "sweep.html", width=360)
    chromium.run("document.querySelector('label.md-header__button[for=__drawer]').focus()")
    chromium.press(ENTER)
    chromium.until("return document.querySelector('#__drawer').checked")
    assert chromium.unreached() == []
    section = "document.querySelector('.md-nav__toggle:checked ~ .md-nav > label.md-nav__title[for^=__nav]')"
    chromium.run(f"{section}.focus()")  # back from the section of the page to the list of them
    chromium.press(ENTER)
    assert chromium.until(f"return {section} === null")
    assert chromium.unreached() == []
    assert chromium.sideways() <= 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_is_read_on_a_telephone_by_day_and_by_night(chromium, report, dark):
    chromium.open(report, width=360, dark=dark)
    chromium.run(OPEN_ALL)
    for width in (360, 500, 1280):
        chromium.resize(width)
        assert chromium.sideways() <= 0, width
    assert chromium.poor_contrast() == []
    assert chromium.run("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)"
    )
    assert_nothing_left_the_page(chromium)


def test_no_column_of_a_small_report_is_cut_off(chromium, tmp_path):
    trials = [
        Trial(number=n, state="complete", alpha=alpha, type="uniform", length="sequence", seed=seed, seconds=61,
              values={"held_out_loss": 2.3 + (alpha - 5) / 100 + seed / 37, "held_out_length": 91.0 + seed})
        for n, (alpha, seed) in enumerate((alpha, seed) for alpha in (0, 5, 10) for seed in range(3))
    ]  # fmt: skip
    chromium.open(write(Study(config="sft.yaml", framework="axolotl", trials=trials), tmp_path), width=500)
    table = "const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth"
    assert chromium.run(table) <= 0


def test_the_keyboard_reaches_each_control_of_the_report(chromium, report):
    chromium.open(report, width=360)
    chromium.run(OPEN_ALL)
    assert chromium.unreached() == []
    # What scrolls sideways can be scrolled by keys.
    cannot = """return [...document.querySelectorAll("*")].filter(one => one.scrollWidth > one.clientWidth + 1 &&
      getComputedStyle(one).overflowX === "auto" && one.tabIndex < 0).length"""
    assert chromium.run(cannot) == 0


def test_a_report_of_200_trials_opens_at_once(chromium, report):
    """By the browser's own clock; the best of three, as the machine may be busy."""
    times = []
    for _ in range(3):
        chromium.open(report)
        times.append(chromium.run("return performance.getEntriesByType('navigation')[0].domComplete / 1000"))
        if times[-1] < PATIENCE:
            break
    assert min(times) < PATIENCE, times


def assert_nothing_left_the_page(chromium: Browser) -> None:
    away = [address for address in chromium.requests() if not address.startswith(LOCAL)]
    assert away == [], "\n".join(away)
