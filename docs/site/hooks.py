"""What MkDocs is told: pages that are made, and how our blocks and links are read.

README, CONTRIBUTING and CHANGELOG stand where people look for them, beside docs/; on the site they are pages too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from docs.site import gallery, reference

ROOT = gallery.ROOT
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    try:
        get_lexer_by_name("eps")
    except ClassNotFound:
        raise PluginError("pygments does not know `.eps`: epsc is not installed here; make dev") from None
    shown = [{each.title: f"gallery/{each.name}.md"} for each in gallery.entries(config.extra["gallery"])]
    modules = [{name: path} for name, path in reference.pages(config.extra["reference"])]
    config.nav = [
        _with_pages(item, {"gallery/index.md": shown, "reference/index.md": modules}) for item in config.nav or []
    ]
    return config


def _with_pages(item: dict[str, Any], more: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """A section instead of its one page, where pages are made that belong below it."""
    ((title, path),) = item.items()
    return {title: [path, *more[path]]} if isinstance(path, str) and path in more else item


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in _made(config):
        if found := files.get_file_from_path(path):
            files.remove(found)
        files.append(File.generated(config, path, content=text))
    return files


def _made(config: MkDocsConfig) -> Iterator[tuple[str, str]]:
    for name, path in OUTSIDE.items():
        yield path, from_root((ROOT / name).read_text(encoding="utf-8"))
    yield from gallery.files(config.extra["gallery"])
    yield from reference.files(config.extra["reference"])


def from_root(text: str) -> str:
    """A page that stands beside docs/: its links, from inside."""

    def inside(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        return f"]({OUTSIDE.get(path, path.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)", inside, text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Blocks whose second word is for the tests: MkDocs knows the first alone."""
    return re.sub(r"^(\s*)```eps (?:frame|error|unformatted)$", r"\1```eps", markdown, flags=re.MULTILINE)
