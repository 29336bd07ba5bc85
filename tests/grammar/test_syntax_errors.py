"""Each file of tests/cases/errors/syntax is wrong; what epsc says about it stands beside it, in *.expect."""

from pathlib import Path

import pytest

from epsc.grammar import parse, parse_recovering
from epsc.ir.errors import EpsError
from epsc.ir.source import Source

FOLDER = Path(__file__).parents[1] / "cases" / "errors" / "syntax"
FILES = sorted(FOLDER.glob("*.eps"))


def source_of(path: Path) -> Source:
    return Source(path.name, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_says_what_is_expected(path: Path, update_golden: bool) -> None:
    source = source_of(path)
    assert source.text.startswith("# epsc check %s\n")
    with pytest.raises(EpsError) as caught:
        parse(source)
    got = f"{caught.value}\n"
    golden = path.with_suffix(".expect")
    if update_golden:
        if not golden.exists() or golden.read_text(encoding="utf-8") != got:
            golden.write_text(got, encoding="utf-8")
            pytest.fail(f"rewrote {golden.name}: read the diff")
        return
    assert got == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_complete(path: Path) -> None:
    for fault in parse_recovering(source_of(path))[1].errors:
        assert fault.span
        assert fault.message
        assert fault.span.start <= fault.span.end


def test_no_golden_without_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.expect")} == {path.stem for path in FILES}
