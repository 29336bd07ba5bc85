"""A headless Chromium for tests of pages and for the screenshots of the docs; None where there is none."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def missing() -> str:
    """Why there is no browser here; empty if there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if _path():
        return ""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        return "" if Path(play.chromium.executable_path).exists() else "no Chromium on this machine"


def axe() -> Path | None:
    """The script of axe-core, which finds faults of accessibility."""
    spec = importlib.util.find_spec("axe_playwright_python")
    return Path(spec.origin).with_name("axe.min.js") if spec and spec.origin else None


def _path() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=_path(), args=["--no-sandbox"])
        yield started
        started.close()
