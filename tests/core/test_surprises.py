"""The rows of docs/surprises.md: where they were seen, and what the doctor says of the installed releases."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from neftune_plugins.commands import surprises
from tests.core.test_commands import findings
from tests.support.documentation import ROOT, anchors
from tests.support.little import distribution

ROWS = [row for section in surprises.sections() for row in section.rows]
PINS = re.compile(r"([a-z0-9-]+)(?:\[\w+\])?==([0-9][0-9a-z.]*)")


def pinned(text: str) -> set[tuple[str, str]]:
    return set(PINS.findall(text))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.expected)
def test_a_row_was_seen_in_releases_that_something_pins(row):
    """Its bounds are releases that a script or an environment of ours installs."""
    texts = [(ROOT / path).read_text() for path in row.seen]  # they exist
    known = pinned((ROOT / "tox.ini").read_text()).union(*(pinned(text) for text in texts))
    assert row.releases and row.seen
    for release in row.releases:
        ends = [str(part).lstrip("<>=") for part in release.specifier]
        assert sorted(part.operator for part in release.specifier) in (["=="], ["<=", ">="])
        named = {version for name, version in known if name == release.name}
        named |= SEEN_WITH.get(release.name, set())
        assert set(ends) <= named, f"{release}: {named}"


# Rows of tests alone: the release that was installed when the row was written, which no environment of ours pins.
SEEN_WITH = {"ms-swift": {"4.6.0"}, "torch": {"2.14.1"}, "peft": {"0.21.2"}}


def test_a_script_is_in_the_row_of_its_first_package():
    for row in ROWS:
        for path in row.seen:
            if path.startswith("findings/"):
                head = re.search(r"^# With: +(.*)$", (ROOT / path).read_text(), re.MULTILINE)[1]
                name, version = PINS.findall(head)[0]
                [release] = [release for release in row.releases if release.name == name]
                assert release.specifier.contains(version), path


def test_no_row_is_there_twice_and_each_has_its_words():
    assert len({row.expected for row in ROWS}) == len(ROWS) > 30
    for row in ROWS:
        assert all("|" not in words and words.strip() for words in (row.expected, row.happens, row.effect, row.ours))


def test_the_sections_are_headings_of_the_page():
    page = ROOT / "docs" / "surprises.md"
    assert {section.anchor for section in surprises.sections()} <= anchors(page)
    linked = [re.findall(r"surprises\.md#([\w-]+)", path.read_text()) for path in (ROOT / "docs").glob("*.md")]
    assert {name for names in linked for name in names} <= anchors(page)


@pytest.mark.parametrize(
    ("installed", "applies"),
    [
        ({"little": "1.0"}, True),
        ({"little": "1.4"}, True),
        ({"little": "1.5rc1"}, True),
        ({"little": "1.5"}, True),
        ({"little": "0.9"}, False),
        ({"little": "1.5.1"}, False),
        ({}, False),
        ({"other": "1.0"}, False),
    ],
    ids=str,
)
def test_a_row_applies_within_its_releases(monkeypatch, installed, applies):
    monkeypatch.setattr(surprises, "version", installed.get)
    release = Requirement("little>=1.0,<=1.5")
    assert surprises.Surprise((release,), "", "", "", "", ()).applies() is applies
    both = surprises.Surprise((release, Requirement("absent==1")), "", "", "", "", ())
    assert not both.applies()


def test_the_doctor_counts_what_applies_to_the_installed_releases(little, tmp_path):
    environment = little()
    rows = next(section for section in surprises.sections() if section.title == "PEFT").rows
    bound = next(iter(SpecifierSet(str(rows[0].releases[0].specifier)))).version
    told = {}
    for version in (bound, "0.0.1"):
        distribution(tmp_path / "site", "peft", version)
        _, found = findings(environment, "environment")
        told[version] = found.get("surprises", {"found": "", "state": "info"})
        (tmp_path / "site" / f"peft-{version}.dist-info" / "METADATA").unlink()
        (tmp_path / "site" / f"peft-{version}.dist-info").rename(tmp_path / f"peft-{version}")
    assert f"known of what is installed: docs/surprises.md#peft ({len(rows)})" in told[bound]["found"]
    assert "#peft" not in told["0.0.1"]["found"]
    assert {one["state"] for one in told.values()} == {"info"}
