"""Pages link to files beside docs/; the site carries these files, so that a link works there and on GitHub."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"\]\(\.\./([^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    docs = Path(config.docs_dir)
    linked = {target for page in docs.glob("*.md") for target in OUTSIDE.findall(page.read_text())}
    for target in sorted(linked):
        source = docs.parent / target
        if source.is_file():  # what is missing, mkdocs itself reports
            files.append(File.generated(config, target, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    return OUTSIDE.sub(r"](\1)", markdown)
