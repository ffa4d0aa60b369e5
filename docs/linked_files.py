"""Takes into the site what its pages link to outside of docs/, such as recipes and CONTRIBUTING.md.

MkDocs calls these two functions (`hooks` of mkdocs.yml).
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"(?<=\]\()\.\./([\w./-]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that a page links to by way of the folder above docs/."""
    root = Path(config.docs_dir).parent
    linked = {
        found
        for page in files.documentation_pages()
        for found in OUTSIDE.findall(page.content_string)
    }
    for name in sorted(linked):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links lead to where the site has those files."""
    if page.file.generated_by is None:
        return OUTSIDE.sub(r"\1", markdown)
    return markdown.replace("](docs/", "](")
