"""What epsc writes, it reads back as the same Spec: for any Spec."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from epsc.grammar import format_spec, parse
from epsc.ir.dims import Axis, DType
from epsc.ir.source import Source
from epsc.ir.spec import (
    Arg,
    Before,
    Beside,
    Binary,
    Bind,
    ByLoad,
    Call,
    ClusterDecl,
    Comments,
    Dedup,
    Directive,
    Expr,
    Item,
    Keyword,
    LayerDecl,
    Let,
    Load,
    LocalReduce,
    Name,
    Number,
    Offload,
    On,
    OverlapNone,
    Preset,
    Reserve,
    Return,
    Room,
    ScheduleDecl,
    Setting,
    Spec,
    Split,
    Target,
    Use,
    When,
)

RESERVED = {"let", "preset", "layer", "cluster", "schedule", "return"}
KEYWORDS = ["tokens", "split", "by", "into", "use", "for", "when", "else", "reserve", "sms", "run", "beside", "before"]
KEYWORDS += ["offload", "slots", "on", "overlap", "none", "auto"]

names = st.one_of(
    st.sampled_from(KEYWORDS),
    st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(lambda name: name not in RESERVED),
)
numbers = st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)).map(Number)


def keywords(values: st.SearchStrategy[Expr]) -> st.SearchStrategy[Keyword]:
    return st.builds(Keyword, names, values)


def larger(values: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(Binary, st.sampled_from(["+", "-", "*", "/", "//"]), values, values),
        st.builds(Call, names, tuples(values), tuples(keywords(values))),
    )


def tuples(values: st.SearchStrategy, least: int = 0, most: int = 4) -> st.SearchStrategy[tuple]:
    return st.lists(values, min_size=least, max_size=most).map(tuple)


expressions = st.recursive(st.one_of(numbers, names.map(Name)), larger, max_leaves=12)
comment_texts = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=12).map(str.rstrip)
comments = st.one_of(st.just(Comments()), st.builds(Comments, tuples(comment_texts, most=2), comment_texts))
end_comments = st.one_of(st.just(()), tuples(comment_texts, most=2))
targets = tuples(names.map(Target), least=1)


whens_of = st.builds(When, names, st.sampled_from(["<", "<=", ">", ">="]), expressions)


@st.composite
def by_load(draw: st.DrawFn) -> ScheduleDecl:
    whens = draw(tuples(whens_of, most=3))
    taken = draw(tuples(names.map(Name), least=len(whens) + 1, most=len(whens) + 1))
    choice = ByLoad(taken, whens)
    if taken == (Name("auto"),):  # that is a schedule of its own
        return ScheduleDecl(draw(names), auto=True, comments=draw(comments))
    return ScheduleDecl(draw(names), comments=draw(comments), by_load=choice)


@st.composite
def uses(draw: st.DrawFn) -> Use:
    whens = draw(tuples(whens_of, most=2))
    impls = draw(tuples(names.map(Name), least=len(whens) + 1, most=len(whens) + 1))
    return Use(impls, whens, draw(targets), comments=draw(comments))


def commented(kind: type, *fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(kind, *fields, comments=comments)


directives: st.SearchStrategy[Directive] = st.one_of(
    commented(Split, targets, st.sampled_from(Axis), expressions),
    uses(),
    commented(Dedup, targets),
    commented(LocalReduce, targets),
    commented(Room, expressions, targets),
    commented(Offload, targets, expressions),
    commented(Reserve, expressions, targets),
    commented(Beside, targets, targets),
    commented(Before, targets, targets),
    commented(On, targets, names),
    commented(OverlapNone),
)
args = st.builds(Arg, names, st.sampled_from(DType), tuples(expressions))
statements = st.one_of(commented(Bind, names, expressions), commented(Return, expressions))
items: st.SearchStrategy[Item] = st.one_of(
    commented(Let, names, expressions),
    commented(Preset, names, tuples(commented(Let, names, expressions))),
    commented(Load, expressions, expressions),
    commented(ClusterDecl, names, tuples(commented(Setting, names, expressions))),
    st.builds(LayerDecl, names, tuples(args), tuples(statements), comments=comments, end_comments=end_comments),
    st.builds(ScheduleDecl, names, tuples(directives), comments=comments, end_comments=end_comments),
    st.builds(ScheduleDecl, names, auto=st.just(True), comments=comments, by_tokens=st.booleans()),
    by_load(),
)
specs = st.builds(
    Spec,
    st.lists(
        items, max_size=5, unique_by=lambda item: (type(item), id(item) if isinstance(item, Load) else item.name)
    ).map(tuple),
    end_comments=end_comments,
)


@given(specs)
def test_reads_what_it_writes(spec: Spec) -> None:
    text = format_spec(spec)
    again = parse(Source("test.eps", text))
    assert again == spec
    assert repr(again) == repr(spec)  # 16 == 16.0, but they are not the same
    assert format_spec(again) == text


@given(expressions)
def test_writes_no_needless_bracket(expr: Expr) -> None:
    text = format_spec(Spec((Let("a", expr),)))
    spec = parse(Source("test.eps", text))
    for at, sign in enumerate(text):
        if sign == "(" and not (text[at - 1].isidentifier() or text[at - 1] == "_"):
            shorter = text[:at] + " " + text[at + 1 :]
            shorter = _without_closing(shorter, at)
            assert parse(Source("test.eps", shorter)) != spec


def _without_closing(text: str, at: int) -> str:
    depth = 1
    while True:
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return f"{text[:at]} {text[at + 1 :]}"
        at += 1
