"""`epsc check --json` speaks as language servers do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from epsc.cli import cli
from epsc.commands.lsp import published
from epsc.ir.errors import Diagnostic, Note, Severity
from epsc.ir.source import Source, Span

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "examples/mixtral_8x7b.eps"


def check(*files: Path) -> tuple[int, list[dict[str, Any]]]:
    result = CliRunner().invoke(cli, ["check", "--json", *map(str, files)], catch_exceptions=False)
    return result.exit_code, json.loads(result.output)


def test_one_entry_per_file_and_an_empty_one_clears() -> None:
    bad = ROOT / "tests/cases/errors/semantic/unknown_op.eps"
    code, found = check(GOOD, bad)
    assert code == 1
    assert [each["uri"] for each in found] == [GOOD.as_uri(), bad.as_uri()]
    assert found[0]["diagnostics"] == []
    (wrong,) = found[1]["diagnostics"]
    assert (wrong["severity"], wrong["source"]) == (1, "epsc")
    start, end = wrong["range"]["start"], wrong["range"]["end"]
    line = bad.read_text().splitlines()[start["line"]]
    assert start["line"] == end["line"] and line[start["character"] : end["character"]] in wrong["message"]
    assert wrong["message"].endswith(f"help: {wrong['data']['help']}")
    assert check(GOOD) == (0, found[:1])


def test_every_error_case_has_a_place_in_its_file() -> None:
    for file in sorted((ROOT / "tests/cases/errors/syntax").glob("*.eps"))[:10]:
        _, ((found),) = check(file)
        lines = file.read_text().split("\n")
        assert found["diagnostics"]
        for each in found["diagnostics"]:
            assert set(each) <= {"range", "severity", "code", "source", "message", "relatedInformation", "data"}
            start, end = each["range"]["start"], each["range"]["end"]
            assert (start["line"], start["character"]) <= (end["line"], end["character"])
            assert end["line"] < len(lines) and start["character"] <= len(lines[start["line"]])


def test_characters_are_utf16_units_from_zero() -> None:
    source = Source("a.eps", "# x\n# \U0001f600 é bad\n")
    span = Span(source, source.text.index("bad"), source.text.index("bad") + 3)
    note = Note("first here", Span(source, 0, 3))
    given = Diagnostic("c", "m", span, (note, Note("no place")), severity=Severity.WARNING)
    (found,) = published(Path("a.eps"), [given])["diagnostics"]
    assert found["range"] == {"start": {"line": 1, "character": 7}, "end": {"line": 1, "character": 10}}
    assert found["severity"] == 2 and "data" not in found
    first, second = found["relatedInformation"]
    assert first["message"] == "first here" and first["location"]["range"]["end"] == {"line": 0, "character": 3}
    assert second["location"]["range"] == found["range"]


def test_files_that_cannot_be_read_are_told_in_the_same_form(tmp_path: Path) -> None:
    code, (found,) = check(tmp_path / "none.eps")
    assert code == 1 and found["uri"] == (tmp_path / "none.eps").as_uri()
    assert found["diagnostics"][0]["range"]["start"] == {"line": 0, "character": 0}


@pytest.mark.parametrize("plain", [True, False])
def test_both_forms_agree_on_the_exit_code(plain: bool) -> None:
    bad = ROOT / "tests/cases/errors/semantic/unknown_op.eps"
    arguments = ["check", str(bad)] if plain else ["check", "--json", str(bad)]
    assert CliRunner().invoke(cli, arguments).exit_code == 1
