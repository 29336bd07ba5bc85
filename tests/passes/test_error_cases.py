"""Each file of tests/cases/errors/semantic reads well but means nothing that can be had.

Line 1 is the command; what it prints stands beside the file, in *.expect.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from epsc.cli import main

FOLDER = Path(__file__).parents[1] / "cases" / "errors" / "semantic"
FILES = sorted(FOLDER.glob("*.eps"))
WARNINGS_ONLY = {"more_than_memory", "unused_name"}
ABOUT_THE_COMMAND = {"pass_option", "unknown_cluster", "unknown_define", "unknown_layer", "unknown_preset"}
"""Faults of the command line have no place in the file."""


def run(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of the command, and what a terminal would show."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# epsc check %s")
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "argv", shlex.split(first.removeprefix("# ").replace("%s", path.name)))
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    shown = capsys.readouterr()
    return code, shown.err + shown.out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_says_what_is_expected(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    code, got = run(path, monkeypatch, capsys)
    assert code == (0 if path.stem in WARNINGS_ONLY else 1), got
    golden = path.with_suffix(".expect")
    if update_golden:
        if not golden.exists() or golden.read_text(encoding="utf-8") != got:
            golden.write_text(got, encoding="utf-8")
            pytest.fail(f"rewrote {golden.name}: read the diff")
        return
    assert got == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_complete(path: Path) -> None:
    """Every message has a place in the file, and none speaks of the inside of the compiler."""
    text = path.with_suffix(".expect").read_text(encoding="utf-8")
    heads = [line for line in text.splitlines() if "error: " in line or "warning: " in line]
    assert heads
    assert "after pass" not in text
    for head in heads:
        assert head.startswith(f"{path.name}:") or path.stem in ABOUT_THE_COMMAND, head


def test_no_golden_without_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.expect")} == {path.stem for path in FILES}
