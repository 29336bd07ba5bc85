"""Reading `.eps`: places, words, comments, and what is left of a file that is partly wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epsc.grammar import format_spec, parse, parse_recovering
from epsc.grammar.generate import tables_text
from epsc.grammar.language import PIECE
from epsc.ir.errors import EpsError
from epsc.ir.source import Source, Span
from epsc.ir.spec import Bind, Broken, Call, Comments, Let, Name, Number, Split, Use

SAMPLE = (Path(__file__).parents[1] / "cases" / "grammar" / "every_construct.eps").read_text(encoding="utf-8")
GAPS = [match.end() for match in PIECE.finditer(SAMPLE) if match.lastgroup not in ("SPACE", "COMMENT")]


def read(text: str) -> list[object]:
    return list(parse(Source("test.eps", text)).items)


def nodes(node: object) -> Iterator[object]:
    """A node of a Spec and all below it."""
    yield node
    if dataclasses.is_dataclass(node) and not isinstance(node, (Span, Source)):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            for each in value if isinstance(value, tuple) else [value]:
                yield from nodes(each)


def text_of(span: Span | None) -> str:
    assert span
    return span.source.text[span.start : span.end]


def test_sample_is_written_as_it_was() -> None:
    spec = parse(Source("sample.eps", SAMPLE))
    text = format_spec(spec)
    assert parse(Source("sample.eps", text)) == spec
    assert format_spec(parse(Source("sample.eps", text))) == text
    assert [line.split() for line in text.splitlines() if line] == [
        line.split() for line in SAMPLE.splitlines() if line
    ]


def test_every_node_has_a_place() -> None:
    spec = parse(Source("sample.eps", SAMPLE))
    spanned = [node for node in nodes(spec) if hasattr(node, "span")]
    assert len(spanned) > 100
    for node in spanned:
        assert node.span
        text = text_of(node.span)
        assert text
        assert text == text.strip() or node is spec
        if isinstance(node, Name):
            assert text == node.name
        if isinstance(node, Number):
            assert float(text) == node.value
        if isinstance(node, Call):
            assert text.startswith(f"{node.fn}(")
            assert text_of(node.fn_span) == node.fn
            assert text.endswith(")")
        if isinstance(node, (Bind, Let)):
            assert node.name in text
            assert text_of(node.value.span) in text


def test_brackets_belong_to_the_place() -> None:
    (let,) = read("let a = 2*( b + c )")
    assert text_of(let.value.right.span) == "( b + c )"


def test_keywords_are_names_where_nothing_else_can_stand() -> None:
    (layer,) = read("layer run(split: bf16[tokens, by]) { use = for(split, into=on) + when return tokens*use }")
    assert layer.name == "run"
    found = [each.name for each in nodes(layer) if isinstance(each, Name)]
    assert found == ["tokens", "by", "split", "on", "when", "tokens", "use"]
    (schedule,) = read("schedule auto { split use, run by tokens into into use for for for when rows < by else use }")
    split, use = schedule.directives
    assert isinstance(split, Split)
    assert isinstance(use, Use)
    assert [target.name for target in split.targets] == ["use", "run"]
    assert split.count == Name("into")
    assert use.impls == (Name("for"), Name("use"))


def test_choices_interleave() -> None:
    (schedule,) = read("schedule s { use A for t when m < 1 else B when n >= 2 else D }")
    (use,) = schedule.directives
    assert [impl.name for impl in use.impls] == ["A", "B", "D"]
    assert [(when.metric, when.op) for when in use.whens] == [("m", "<"), ("n", ">=")]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("0005", 5), ("-5", -5), ("1.5e3", 1500.0), ("1e-05", 1e-5), ("9223372036854775807", 2**63 - 1)],
)
def test_numbers(text: str, value: float) -> None:
    (let,) = read(f"let a = {text}")
    assert repr(let.value) == repr(Number(value))


def test_line_breaks_mean_nothing() -> None:
    words = " ".join(match[0] for match in PIECE.finditer(SAMPLE) if match.lastgroup not in ("SPACE", "COMMENT"))
    assert _bare(parse(Source("one_line.eps", words))) == _bare(parse(Source("sample.eps", SAMPLE)))
    windows = SAMPLE.replace("\n", "\r\n")
    assert parse(Source("windows.eps", "\ufeff" + windows)) == parse(Source("sample.eps", SAMPLE))


# --- comments ---------------------------------------------------------------------------------------------------------


def _bare(spec: object) -> object:
    """A Spec without its comments."""
    if isinstance(spec, tuple):
        return tuple(map(_bare, spec))
    if isinstance(spec, Comments):
        return Comments()
    if dataclasses.is_dataclass(spec) and not isinstance(spec, (type, Span)):
        changed = {field.name: _bare(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
        if "end_comments" in changed:
            changed["end_comments"] = ()
        return type(spec)(**changed)
    return spec


@given(st.sets(st.sampled_from([0, *GAPS]), max_size=8), st.booleans())
def test_no_comment_is_lost(places: set[int], own_lines: bool) -> None:
    plain = parse(Source("sample.eps", SAMPLE))
    text = SAMPLE
    for place in sorted(places, reverse=True):
        before = "\n" if own_lines else " "
        text = f"{text[:place]}{before}# remark {place}\n{text[place:]}"
    spec = parse(Source("remarks.eps", text))
    assert _bare(spec) == _bare(plain)
    written = format_spec(spec)
    for place in places:
        assert written.count(f"# remark {place}\n") == 1
    assert parse(Source("again.eps", written)) == spec


def test_comments_stay_with_what_they_are_about() -> None:
    text = """\
# above
let a = 1  # behind

schedule s {    # head
  # above
  overlap none  # behind
  # end
}

# last
"""
    assert format_spec(parse(Source("test.eps", text))) == text


# --- wrong files ------------------------------------------------------------------------------------------------------


def test_the_rest_of_a_wrong_file_is_there() -> None:
    text = """\
let a = 1 +
layer one(x: bf16[tokens, a], y bf16[tokens, a]) {
  r = route(x, experts=)
  h = swiglu(x)
  retrun h
}
schedul s {
  split h by heights into 2
  overlap none
}
"""
    spec, faults = parse_recovering(Source("test.eps", text))
    assert len(faults.errors) == 6
    let, layer, schedule = spec.items
    assert let.value == Broken()
    assert [arg.name for arg in layer.args] == ["x", "y"]
    assert layer.args[1].shape == (Broken(),)
    assert layer.body[0] == Bind("r", Broken())
    assert layer.body[1] == Bind("h", Call("swiglu", (Name("x"),)))
    assert layer.body[2].value == Name("h")
    assert schedule.name == "s"
    assert len(schedule.directives) == 1


def check(text: str) -> None:
    """Only EpsError, soon; and no part is Broken without a fault."""
    begin = time.perf_counter()
    spec, faults = parse_recovering(Source("fuzz.eps", text))
    assert time.perf_counter() - begin < 1
    if faults.errors:
        with pytest.raises(EpsError) as caught:
            faults.raise_if_any()
        assert len(str(caught.value)) < 100_000
    else:
        assert parse(Source("again.eps", format_spec(spec))) == spec


PIECES = [match[0] for match in PIECE.finditer(SAMPLE) if match.lastgroup not in ("SPACE", "COMMENT")]
CHANGE = st.tuples(
    st.integers(0, len(SAMPLE)),
    st.integers(0, 30),
    st.one_of(st.just(""), st.sampled_from([*PIECES, "\n", "#", "\0", "@", "1.", "é"]), st.text(max_size=5)),
)


@given(st.lists(CHANGE, min_size=1, max_size=6))
def test_any_change_of_the_sample_is_read_or_refused(changes: list[tuple[int, int, str]]) -> None:
    text = SAMPLE
    for place, length, new in changes:
        text = text[:place] + new + text[place + length :]
    check(text)


@given(st.lists(st.one_of(st.sampled_from([*PIECES, "\n"]), st.text(max_size=3)), max_size=60))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    check(" ".join(words))


def test_one_missing_word_is_one_fault() -> None:
    twice = []
    for match in PIECE.finditer(SAMPLE):
        if match.lastgroup in ("SPACE", "COMMENT"):
            continue
        text = SAMPLE[: match.start()] + SAMPLE[match.end() :]
        _, faults = parse_recovering(Source("missing.eps", text))
        if len(faults.errors) > 1:
            twice.append(match[0])
    assert twice == ["["]  # the type of an argument ends at its next comma


@pytest.mark.parametrize(
    "text",
    [
        "let a = " + "(" * 10_000 + "1" + ")" * 10_000,
        "let a = " + "(" * 10_000,
        "let a = " + "f(" * 10_000 + "1" + ")" * 10_000,
        "let a = " + "-" * 10_000 + "b",
        "let a = " + "1+" * 10_000 + "1",
        "let a = " + "9" * 100_000,
        "let a = " + "9." * 10_000,
        "{" * 10_000,
        "}" * 10_000,
        "\0" * 10_000,
        "\0\n" * 10_000,
        "let " * 10_000,
        "layer l(x: bf16[a]) {\n" + "a = f(\n" * 3_000,
        "layer l(x: bf16[a]) {\n" + "a = f(x\n" * 1_000,
        "schedule s {" * 3_000,
        "# " * 100_000,
    ],
    ids=lambda text: ascii(text[8:20]),
)
def test_hostile_files_are_read_or_refused(text: str) -> None:
    spec, faults = parse_recovering(Source("hostile.eps", text))
    assert len(str(EpsError(*faults.errors))) < 100_000
    if not faults.errors:
        assert parse(Source("again.eps", format_spec(spec))) == spec


# --- the parser itself ------------------------------------------------------------------------------------------------


def test_tables_are_those_of_the_grammar() -> None:
    tables = Path(__file__).parents[2] / "grammar" / "tables.py"
    assert tables.read_text(encoding="utf-8") == tables_text(), "run `python -m epsc.grammar.generate`"


def test_reading_loads_nothing_slow() -> None:
    code = "import sys, epsc.grammar; print(*sorted({'lark', 'networkx', 'rich', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
