"""A Spec to text: the one way in which epsc writes `.eps`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from epsc.grammar.format_expression import INDENT, WIDTH, flat, wrapped
from epsc.ir.spec import (
    Before,
    Beside,
    Bind,
    ByLoad,
    ClusterDecl,
    Comments,
    Dedup,
    Directive,
    Expr,
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


def format_spec(spec: Spec) -> str:
    """The text of a Spec that has no Broken parts: `parse(Source(name, format_spec(spec))) == spec`."""
    out = ""
    run: list[_Line] = []
    before: Item | None = None
    for item in spec.items:
        lines = _item(item)
        if before and (_is_block(run) or _is_block(lines) or _FAMILY[type(before)] != _FAMILY[type(item)]):
            out += _text(run) + "\n"
            run = []
        run += lines
        before = item
    out += _text(run)
    if spec.end_comments:
        out += ("\n" if out else "") + _text([_Line(_comment(text)) for text in spec.end_comments])
    return out


@dataclass(frozen=True)
class _Line:
    """A line, or several where an expression is wrapped; the comment goes behind the last."""

    text: str
    behind: str = ""


_FAMILY: dict[type, str] = {
    Let: "numbers",
    Preset: "numbers",
    LayerDecl: "layers",
    ClusterDecl: "machines",
    Load: "machines",
    ScheduleDecl: "schedules",
}
"""Kinds of items that stand together, without a blank line between them."""


def _text(lines: Iterable[_Line]) -> str:
    """The lines, with the comments behind them aligned."""
    lines = list(lines)
    column = max((len(line.text) for line in lines if line.behind and "\n" not in line.text), default=0)
    out = ""
    for line in lines:
        width = len(line.text.rpartition("\n")[2])
        behind = f"{' ' * (max(0, column - width) + 2)}{_comment(line.behind)}" if line.behind else ""
        out += f"{line.text}{behind}\n"
    return out


def _comment(text: str) -> str:
    return f"# {text}" if text else "#"


def _is_block(lines: list[_Line]) -> bool:
    return lines[-1].text == "}"


def _commented(comments: Comments, text: str, indent: int = 0) -> list[_Line]:
    space = " " * indent
    return [*(_Line(space + _comment(above)) for above in comments.above), _Line(space + text, comments.behind)]


# --- items ------------------------------------------------------------------------------------------------------------


def _item(item: Item) -> list[_Line]:
    match item:
        case Let():
            return _commented(item.comments, _assignment(f"let {item.name}", item.value, 0))
        case Load():
            return _commented(item.comments, f"tokens {flat(item.low)} .. {flat(item.high)}")
        case Preset():
            settings = [Setting(let.name, let.value, comments=let.comments) for let in item.values]
            return _settings(f"preset {item.name}", settings, item.comments)
        case ClusterDecl():
            return _settings(f"cluster {item.name}", item.settings, item.comments)
        case LayerDecl():
            return _block(_layer_head(item), _statements(item.body), item.comments, item.end_comments)
        case ScheduleDecl(auto=True):
            return _commented(item.comments, f"schedule {item.name} = auto{' by tokens' if item.by_tokens else ''}")
        case ScheduleDecl(by_load=ByLoad(names, whens)):
            first, *others = names
            text = f"schedule {item.name} = {first.name}{_choices(whens, others)}"
            wrapped_text = text if len(text) <= WIDTH else text.replace(" else ", f"\n{' ' * INDENT}else ")
            return _commented(item.comments, wrapped_text)
        case ScheduleDecl():
            lines = [line for each in item.directives for line in _commented(each.comments, _directive(each), INDENT)]
            return _block(f"schedule {item.name}", lines, item.comments, item.end_comments)


def _block(head: str, lines: list[_Line], comments: Comments, end: Sequence[str] = ()) -> list[_Line]:
    lines = [*lines, *(_Line(" " * INDENT + _comment(text)) for text in end)]
    if not lines:
        return _commented(comments, f"{head} {{ }}")
    return [*_commented(comments, f"{head} {{"), *lines, _Line("}")]


def _assignment(left: str, value: Expr, indent: int) -> str:
    return f"{left} = {wrapped(value, indent, indent + len(left) + len(' = '))}"


def _settings(head: str, settings: Sequence[Setting], comments: Comments) -> list[_Line]:
    line = f"{head} {{ {'  '.join(f'{s.key} = {flat(s.value)}' for s in settings)} }}"
    if settings and len(line) <= WIDTH and all(s.comments == Comments() for s in settings):
        return _commented(comments, line)
    width = max((len(s.key) for s in settings), default=0)
    lines = [
        line
        for s in settings
        for line in _commented(s.comments, _assignment(f"{s.key:<{width}}", s.value, INDENT), INDENT)
    ]
    return _block(head, lines, comments)


def _layer_head(layer: LayerDecl) -> str:
    args = [f"{arg.name}: {arg.dtype}[{', '.join(map(flat, arg.shape))}]" for arg in layer.args]
    line = f"layer {layer.name}({', '.join(args)})"
    if len(line) + len(" {") <= WIDTH or not args:
        return line
    return "\n".join([f"layer {layer.name}(", *(f"{' ' * INDENT}{arg}," for arg in args), ")"])


def _statements(body: Sequence[Bind | Return]) -> list[_Line]:
    width = max((len(each.name) for each in body if isinstance(each, Bind)), default=0)
    lines = []
    for each in body:
        if isinstance(each, Bind):
            text = _assignment(f"{each.name:<{width}}", each.value, INDENT)
        else:
            text = f"return {wrapped(each.value, INDENT, INDENT + len('return '))}"
        lines += _commented(each.comments, text, INDENT)
    return lines


# --- schedules --------------------------------------------------------------------------------------------------------


def _directive(directive: Directive) -> str:
    match directive:
        case Split():
            return f"split {_names(directive.targets)} by {directive.axis} into {flat(directive.count)}"
        case Use():
            return _use(directive)
        case Dedup():
            return f"dedup {_names(directive.targets)}"
        case LocalReduce():
            return f"local_reduce {_names(directive.targets)}"
        case Room():
            return f"room {flat(directive.factor)} for {_names(directive.targets)}"
        case Offload():
            return f"offload {_names(directive.targets)} into {flat(directive.slots)} slots"
        case Reserve():
            return f"reserve {flat(directive.sms)} sms for {_names(directive.targets)}"
        case Beside():
            return f"run {_names(directive.targets)} beside {_names(directive.others)}"
        case Before():
            return f"run {_names(directive.targets)} before {_names(directive.others)}"
        case On():
            return f"run {_names(directive.targets)} on {directive.lane}"
        case OverlapNone():
            return "overlap none"


def _use(use: Use) -> str:
    first, *others = use.impls
    return f"use {first.name} for {_names(use.targets)}{_choices(use.whens, others)}"


def _choices(whens: Sequence[When], others: Sequence[Name]) -> str:
    choices = (
        f" when {when.metric} {when.op} {flat(when.value)} else {other.name}"
        for when, other in zip(whens, others, strict=True)
    )
    return "".join(choices)


def _names(targets: Sequence[Target]) -> str:
    return ", ".join(target.name for target in targets)
