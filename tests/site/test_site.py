"""The built site: `tox run -e docs`. That its links and anchors lead somewhere, `mkdocs build --strict` has seen."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
PAGES = sorted(SITE.rglob("*.html"))

# What a browser fetches by itself; links that a reader may follow are none of it.
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "object": "data", "source": "src"}


class Fetched(HTMLParser):
    """Collects what a page has a browser fetch."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        address = dict(attributes).get(FETCHED.get(tag, ""))
        if address:
            self.addresses.append(address)


def test_every_page_of_the_documentation_is_there():
    assert {page.stem for page in PAGES} >= {page.stem for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_read_without_a_network(page):
    text = page.read_text()
    for address in Fetched(page).addresses:
        address = address.split("?")[0].split("#")[0]
        assert not re.match(r"(https?:)?//", address), address
        if page.name != "404.html":  # which has addresses from the root of the site
            assert (page.parent / address).exists(), address
    # The theme fetches mermaid from elsewhere where a page has such a diagram, and stars where it has a repository.
    assert 'class="mermaid"' not in text
    assert 'data-md-component="source"' not in text


def test_the_style_sheets_fetch_nothing_from_elsewhere():
    for sheet in SITE.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet.name


def test_the_site_carries_the_files_that_its_pages_link_to():
    for page in (ROOT / "docs").glob("*.md"):
        for file in re.findall(r"\]\(\.\./([^)]+)\)", page.read_text()):
            assert (SITE / file).read_bytes() == (ROOT / file).read_bytes()


def test_tables_and_footnotes_became_such():
    """Markdown of GitHub that the site does not know would stay as it is."""
    for page in PAGES:
        text = re.sub(r"<(code|pre).*?</\1>", "", page.read_text(), flags=re.DOTALL)
        assert "|---" not in text and "| --- |" not in text, page.name
        assert "[^" not in text, page.name
