"""A headless Chromium for tests of pages and for the screenshots of the docs; None where there is none."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
        return "" if os.path.exists(play.chromium.executable_path) else "no Chromium on this machine"  # noqa: PTH110


def _path() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=_path(), args=["--no-sandbox"])
        yield started
        started.close()
