"""Spec: what a user *said*, with the place of every word. No name is resolved and no size computed yet.

Invariant: `grammar.parse(grammar.format(spec)) == spec` (spans do not take part in equality).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from epsc.ir.dims import Axis, DType
from epsc.ir.source import Span


def _span() -> Span | None:
    return field(default=None, compare=False, repr=False)


# --- expressions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    value: int | float
    span: Span | None = _span()


@dataclass(frozen=True)
class Name:
    """A binding, a `let`, a weight, an activation or a word such as `softmax` or `true`, as its place decides."""

    name: str
    span: Span | None = _span()


@dataclass(frozen=True)
class Binary:
    """`left op right`, op one of + - * / // : on numbers, and + * on values."""

    op: str
    left: Expr
    right: Expr
    span: Span | None = _span()


@dataclass(frozen=True)
class Keyword:
    """`name=value` in a call."""

    name: str
    value: Expr
    span: Span | None = _span()


@dataclass(frozen=True)
class Call:
    """`fn(args, keyword=value)`. `fn` is a builtin op or a layer of the same file."""

    fn: str
    args: tuple[Expr, ...] = ()
    keywords: tuple[Keyword, ...] = ()
    span: Span | None = _span()
    fn_span: Span | None = _span()


@dataclass(frozen=True)
class Broken:
    """Stands where a syntax error was, so that the rest of the file can be checked in the same run. Never printed."""

    span: Span | None = _span()


Expr = Number | Name | Binary | Call | Broken


# --- items ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comments:
    """Comment lines above an item or statement and behind it, without `#`; `fmt` keeps them."""

    above: tuple[str, ...] = ()
    behind: str = ""


_NO_COMMENTS = Comments()


@dataclass(frozen=True)
class Let:
    """`let hidden = 5120`: a number that `-D hidden=64` can replace."""

    name: str
    value: Expr
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Preset:
    """`preset small { hidden = 64  experts = 8 }`: several `-D` at once, by `--preset small`."""

    name: str
    values: tuple[Let, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Load:
    """`tokens 512 .. 16384`: tokens per rank that the plan is made for."""

    low: Expr
    high: Expr
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Setting:
    """`ep = 8` or `device = h200` in a cluster."""

    key: str
    value: Expr
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class ClusterDecl:
    """`cluster h200x8 { device = h200  ep = 8 }`."""

    name: str
    settings: tuple[Setting, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Arg:
    """`x: bf16[tokens, hidden]`."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    span: Span | None = _span()


@dataclass(frozen=True)
class Bind:
    """`name = expression`: each name once."""

    name: str
    value: Expr
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Return:
    value: Expr
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class LayerDecl:
    """`layer name(args) { statements }`: a function from values to a value; its last statement is a `return`."""

    name: str
    args: tuple[Arg, ...]
    body: tuple[Bind | Return, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS
    end_comments: tuple[str, ...] = ()


# --- schedules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a directive speaks of: a binding, a weight, or the builtin of a call that has no binding (`mlp`)."""

    name: str
    span: Span | None = _span()


@dataclass(frozen=True)
class Split:
    """`split sent, h, back by expert_group into 5`."""

    targets: tuple[Target, ...]
    axis: Axis
    count: Expr
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class When:
    """`rows < 2048`; the metric and the value are checked when the schedule is resolved."""

    metric: str
    op: str
    value: Expr
    span: Span | None = _span()


@dataclass(frozen=True)
class Use:
    """`use grouped for gate_up, down when rows < 2048 else dense`; `else` may chain further `when`s.

    `impls` and `whens` interleave: impls[i] is taken when whens[i] holds, the last of `impls` otherwise. Without any
    `when` there is one impl.
    """

    impls: tuple[Name, ...]
    whens: tuple[When, ...]
    targets: tuple[Target, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Dedup:
    """`dedup sent`: a token that goes to several experts of one rank crosses the link once."""

    targets: tuple[Target, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class LocalReduce:
    """`local_reduce back`: what the experts of one rank make of a token is weighted and summed before it goes home."""

    targets: tuple[Target, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Room:
    """`room 2 for sent`: memory at the experts for twice the rows of balanced routing, and a clear end if more come."""

    factor: Expr
    targets: tuple[Target, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Offload:
    """`offload gate_up, down into 2 slots`: the host keeps the weights; each expert's comes when it is due."""

    targets: tuple[Target, ...]
    slots: Expr
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Reserve:
    """`reserve 16 sms for sent, back`."""

    sms: Expr
    targets: tuple[Target, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Beside:
    """`run mlp beside sent`: the two may run at the same time."""

    targets: tuple[Target, ...]
    others: tuple[Target, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class Before:
    """`run sent before back`: every chunk of the first is issued before any chunk of the second."""

    targets: tuple[Target, ...]
    others: tuple[Target, ...]
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class On:
    """`run sent on inter`: a lane of that name."""

    targets: tuple[Target, ...]
    lane: str
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


@dataclass(frozen=True)
class OverlapNone:
    """`overlap none`: everything on one lane, cut as said. It measures what cutting costs."""

    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS


Directive = Split | Use | Dedup | LocalReduce | Room | Offload | Reserve | Beside | Before | On | OverlapNone


@dataclass(frozen=True)
class ByLoad:
    """`decode when tokens <= 64 else one_sided when tokens <= 2048 else auto`: which schedule is taken at which load.

    `names` and `whens` interleave as in `Use`; with one name there is no `when`.
    """

    names: tuple[Name, ...]
    whens: tuple[When, ...] = ()


@dataclass(frozen=True)
class ScheduleDecl:
    """`schedule eps { directives }`, `schedule best = auto`, or one that takes others by load."""

    name: str
    directives: tuple[Directive, ...] = ()
    auto: bool = False
    span: Span | None = _span()
    comments: Comments = _NO_COMMENTS
    end_comments: tuple[str, ...] = ()
    by_load: ByLoad | None = None
    by_tokens: bool = False
    """Of `auto`: it also finds the ranges of load that have a plan each."""


Item = Let | Preset | Load | ClusterDecl | LayerDecl | ScheduleDecl


@dataclass(frozen=True)
class Spec:
    """A whole `.eps` file."""

    items: tuple[Item, ...]
    span: Span | None = _span()
    end_comments: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[LayerDecl, ...]:
        return tuple(item for item in self.items if isinstance(item, LayerDecl))

    @property
    def schedules(self) -> tuple[ScheduleDecl, ...]:
        return tuple(item for item in self.items if isinstance(item, ScheduleDecl))

    @property
    def clusters(self) -> tuple[ClusterDecl, ...]:
        return tuple(item for item in self.items if isinstance(item, ClusterDecl))
