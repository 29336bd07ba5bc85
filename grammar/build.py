"""The tree of a file to its Spec. What the grammar cannot say is checked here: sizes of numbers, words, doubles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from epsc.grammar.comments import CommentTaker
from epsc.grammar.expressions import Expressions
from epsc.grammar.tree import Node, Part, Token, word
from epsc.ir.dims import Axis, DType
from epsc.ir.errors import Faults, Note, did_you_mean
from epsc.ir.source import Source, Span
from epsc.ir.spec import (
    Arg,
    Before,
    Beside,
    Bind,
    Broken,
    ByLoad,
    ClusterDecl,
    Comments,
    Dedup,
    Directive,
    Item,
    LayerDecl,
    Let,
    Load,
    LocalReduce,
    Name,
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

Statement = TypeVar("Statement")
_Word = TypeVar("_Word", Axis, DType)
_Block = tuple[tuple[Statement, ...], Comments, tuple[str, ...]]


class Builder:
    """Builds the Spec of one file. A piece that cannot be built is left out, and its fault gathered."""

    def __init__(self, source: Source, comments: CommentTaker, faults: Faults) -> None:
        self._source = source
        self._comments = comments
        self._faults = faults
        self._expressions = Expressions(source, faults)
        self._expr = self._expressions.build
        self._first: dict[tuple[type, str], Span] = {}

    def spec(self, tree: Node) -> Spec:
        items = tuple(item for part in tree.children if (item := self._item(part)) is not None)
        end = len(self._source.text)
        return Spec(items, Span(self._source, 0, end), self._comments.before(end))

    def _item(self, part: Part) -> Item | None:
        if isinstance(part, Token):
            return None  # BROKEN_ITEM
        build: Callable[[Node, Span], Item | None] = getattr(self, f"_{part.kind}")
        item = build(part, self._span(part))
        if item is None or isinstance(item, Load):
            return item
        name = part.children[0]
        assert isinstance(name, Token)
        key = (type(item), item.name)
        span = self._span(name)
        if key in self._first:
            note = Note("the first one is here", self._first[key])
            self._faults.add("duplicate", f"there is a `{_WORDS[type(item)]} {item.name}` already", span, notes=[note])
            return None
        self._first[key] = span
        return item

    # --- items --------------------------------------------------------------------------------------------------------

    def _let(self, tree: Node, span: Span) -> Let:
        name, value = tree.children
        return Let(word(name), self._expr(value), span, self._comments.of(span.end))

    def _load(self, tree: Node, span: Span) -> Load:
        low, high = (tree.children * 2)[:2]  # one BROKEN_VALUE stands for both
        return Load(self._expr(low), self._expr(high), span, self._comments.of(span.end))

    def _preset(self, tree: Node, span: Span) -> Preset | None:
        name, settings, comments = self._settings(tree, span)
        values = tuple(Let(s.key, s.value, s.span, s.comments) for s in settings)
        return Preset(word(name), values, span, comments) if name.kind == "NAME" else None

    def _cluster(self, tree: Node, span: Span) -> ClusterDecl | None:
        name, settings, comments = self._settings(tree, span)
        return ClusterDecl(word(name), settings, span, comments) if name.kind == "NAME" else None

    def _settings(self, tree: Node, span: Span) -> tuple[Token, tuple[Setting, ...], Comments]:
        name, (settings, comments, end) = tree.children[0], self._block(tree, span, self._setting)
        assert isinstance(name, Token)
        return name, settings, replace(comments, above=comments.above + end)

    def _setting(self, tree: Node, span: Span) -> Setting:
        key, value = tree.children
        return Setting(word(key), self._expr(value), span, self._comments.of(span.end))

    def _layer(self, tree: Node, span: Span) -> LayerDecl | None:
        block: _Block[Bind | Return] = self._block(tree, span, self._statement)
        body, comments, end = block
        name, params = tree.children[:2]
        if not isinstance(params, Node):
            return None  # BROKEN_HEAD
        args = tuple(self._param(part) for part in params.children if isinstance(part, Node))
        if len(args) < len(params.children):
            # A body without all of its arguments would be accused of using names that nobody bound.
            body = (Return(Broken(span), span),)
        return LayerDecl(word(name), args, body, span, comments, end)

    def _schedule(self, tree: Node, span: Span) -> ScheduleDecl | None:
        block: _Block[Directive] = self._block(tree, span, self._directive)
        directives, comments, end = block
        name = tree.children[0]
        if not isinstance(name, Token) or name.kind != "NAME":
            return None
        return ScheduleDecl(word(name), directives, False, span, comments, end)

    def _choice(self, tree: Node, span: Span) -> ScheduleDecl | None:
        name, first, *rest = tree.children
        comments = self._comments.of(span.end)
        if not isinstance(name, Token) or name.kind != "NAME":
            return None
        made = ScheduleDecl(word(name), span=span, comments=comments)
        by_tokens = bool(rest) and rest[0].kind == "by_tokens"
        if first.kind == "AUTO" and (by_tokens or not rest):
            return replace(made, auto=True, by_tokens=by_tokens)
        names = tuple(Name(word(part), self._span(part)) for part in (first, *rest[1::2]))
        return replace(made, by_load=ByLoad(names, tuple(map(self._when, rest[::2]))))

    def _block(self, tree: Node, span: Span, build: Callable[[Node, Span], Statement | None]) -> _Block[Statement]:
        """The statements between the braces, the comments of the item, and those above its `}`."""
        parts = tree.children
        begin = next(i for i, part in enumerate(parts) if isinstance(part, Token) and part.kind == "OPEN")
        opened = self._span(parts[begin]).end
        above, behind = self._comments.before(opened), self._comments.behind(opened)
        made = (build(part, self._span(part)) for part in parts[begin + 1 :] if isinstance(part, Node))
        statements = tuple(statement for statement in made if statement is not None)
        end = self._comments.before(span.end)
        if not behind:
            behind = self._comments.behind(span.end)
        return statements, Comments(above, behind), end

    # --- layers -------------------------------------------------------------------------------------------------------

    def _param(self, tree: Node) -> Arg:
        name, *said = tree.children
        span = self._span(tree)
        if len(said) == 1:  # BROKEN_PARAM
            return Arg(word(name), DType.BF16, (Broken(span),), span)
        dtype, shape = said
        assert isinstance(shape, Node)
        # BF16 for a dtype that is none: the fault is gathered, and the rest of the layer can be checked.
        return Arg(
            word(name),
            self._word(dtype, DType, "element type") or DType.BF16,
            tuple(map(self._expr, shape.children)),
            span,
        )

    def _statement(self, tree: Node, span: Span) -> Bind | Return:
        if tree.kind == "bind":
            name, value = tree.children
            return Bind(word(name), self._expr(value), span, self._comments.of(span.end))
        return Return(self._expr(tree.children[0]), span, self._comments.of(span.end))

    # --- schedules ----------------------------------------------------------------------------------------------------

    def _directive(self, tree: Node, span: Span) -> Directive | None:
        comments = self._comments.of(span.end)
        parts = tree.children
        match tree.kind:
            case "split":
                axis = self._word(parts[1], Axis, "axis")
                return Split(self._targets(parts[0]), axis, self._expr(parts[2]), span, comments) if axis else None
            case "use":
                first, targets, *rest = parts
                impls = tuple(Name(word(part), self._span(part)) for part in (first, *rest[1::2]))
                whens = tuple(map(self._when, rest[::2]))
                return Use(impls, whens, self._targets(targets), span, comments)
            case "dedup":
                return Dedup(self._targets(parts[0]), span, comments)
            case "local_reduce":
                return LocalReduce(self._targets(parts[0]), span, comments)
            case "room":
                return Room(self._expr(parts[0]), self._targets(parts[1]), span, comments)
            case "offload":
                return Offload(self._targets(parts[0]), self._expr(parts[1]), span, comments)
            case "reserve":
                return Reserve(self._expr(parts[0]), self._targets(parts[1]), span, comments)
            case "beside":
                return Beside(self._targets(parts[0]), self._targets(parts[1]), span, comments)
            case "before":
                return Before(self._targets(parts[0]), self._targets(parts[1]), span, comments)
            case "on":
                return On(self._targets(parts[0]), word(parts[1]), span, comments)
        return OverlapNone(span, comments)

    def _targets(self, part: Part) -> tuple[Target, ...]:
        assert isinstance(part, Node)
        return tuple(Target(word(name), self._span(name)) for name in part.children)

    def _when(self, part: Part) -> When:
        assert isinstance(part, Node)
        metric, op, value = part.children
        return When(word(metric), word(op), self._expr(value), self._span(part))

    # --- places and words ---------------------------------------------------------------------------------------------

    def _span(self, part: Part) -> Span:
        return self._expressions.span(part)

    def _word(self, part: Part, words: type[_Word], what: str) -> _Word | None:
        """The member of an enumeration that a name stands for."""
        name = word(part)
        if name in set(words):
            return words(name)
        self._faults.add("unknown-word", f"`{name}` is no {what}", self._span(part), help=did_you_mean(name, words))
        return None


_WORDS: dict[type, str] = {
    Let: "let",
    Preset: "preset",
    ClusterDecl: "cluster",
    LayerDecl: "layer",
    ScheduleDecl: "schedule",
}
