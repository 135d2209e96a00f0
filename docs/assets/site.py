"""Pages link to files beside docs/; the site carries these files, so that a link works there and on GitHub."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"(?<=\]\()\.\./(?=[^)]+\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    docs = Path(config.docs_dir)
    for page in docs.glob("*.md"):
        for link in OUTSIDE.finditer(text := page.read_text()):
            target = text[link.end() :].split(")", 1)[0]
            if files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(docs.parent / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    return OUTSIDE.sub("", markdown)
