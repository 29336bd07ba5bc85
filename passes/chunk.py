"""chunk: cut steps into pieces, and say how rows lie so that a piece is contiguous."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import Axis, Cut, Cuts
from epsc.ir.errors import Faults, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.schedule import Layout, Ref, Schedule, Stage, Step
from epsc.passes.questions import LOWERED_AXES, axes_of, is_dispatch, is_row_op
from epsc.passes.wishes import Context, Wishes

MOST_CHUNKS = 256
"""Each is a step of its own, written out: long before this many, a chunk is less work than its launches."""


@dataclass(frozen=True)
class Chunk:
    """Cut every step that a `split` names.

    rewrite (sent split by expert_group into 2):
        sent.all2all reads sent.permute
        -->  sent.all2all[expert_group:0/2] reads sent.permute[expert_group:0/2]
             sent.all2all[expert_group:1/2] reads sent.permute[expert_group:1/2]
    A step that is not cut reads whole values, and so comes after all chunks that make them.

    Refuses what no row layout can serve: dispatch and combine of the same rows cut differently; with tokens, an op
    between them left uncut.
    """

    name: ClassVar[str] = "chunk"

    n: int = 0
    """Cut everything that is split into this many chunks instead of what the schedule says; 0: as it says."""
    axis: str = ""
    """Cut along this axis instead of what the schedule says: expert_group or tokens."""

    def __call__(self, schedule: Schedule, context: Context) -> Schedule:
        graph, wishes, faults = schedule.graph, context.wishes, Faults()
        if self.axis and self.axis not in LOWERED_AXES:
            faults.add(
                "axis",
                f"`chunk{{axis={self.axis}}}`: nothing can be cut along that",
                help=did_you_mean(self.axis, LOWERED_AXES),
            )
            faults.raise_if_any()
        splits: dict[str, tuple[Axis, int]] = {}
        for name, (said_axis, said_count) in wishes.splits.items():
            axis, count = Axis(self.axis or said_axis), self.n or said_count
            if axis in axes_of(graph, graph.node[name]) and count > 1:
                splits[name] = (axis, count)
        for name, (_, count) in splits.items():
            if count > MOST_CHUNKS:
                message = f"`{graph.node[name].origin}` is cut into {count} chunks: {MOST_CHUNKS} are the most"
                faults.add("too-many-chunks", message, wishes.split_spans.get(name))
        faults.raise_if_any()
        layouts = _layouts(schedule, splits, wishes, faults)
        faults.raise_if_any()
        steps: list[Step] = []
        for step in schedule.steps:
            if step.node not in splits:
                steps.append(step)
                continue
            axis, count = splits[step.node]
            for i in range(count):
                cuts = (Cut(axis, i, count),)
                steps.append(
                    replace(
                        step,
                        cuts=cuts,
                        reads=tuple(Ref(r.value, _part(graph, r.value, cuts)) for r in step.reads),
                        writes=tuple(Ref(r.value, _part(graph, r.value, cuts)) for r in step.writes),
                    )
                )
        return replace(schedule, stage=Stage.CUT, steps=tuple(steps), layouts=layouts)


_MOVED = ("all2all", "all_gather_rows", "regroup", "ungroup", "reduce_scatter_rows")
"""Kinds that need the rows of a chunk in one piece."""


def _part(graph: Graph, value: str, cuts: Cuts) -> Cuts:
    """The region of `value` that a step with these cuts uses: indices and counts are used whole."""
    maker = graph.maker.get(value)
    return cuts if maker is None or is_row_op(maker) else ()


def _layouts(
    schedule: Schedule, splits: dict[str, tuple[Axis, int]], wishes: Wishes, faults: Faults
) -> tuple[Layout, ...]:
    """One layout per dispatch, from the cuts of the transfers of its rows."""
    graph = schedule.graph
    branches: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if (branch := _branch(graph, node)) is not None:
            branches.setdefault(branch, []).append(node)
    layouts = []
    for dispatch, nodes in branches.items():
        moved = [node for node in nodes if node.kind in _MOVED]
        if not moved:  # one-sided, or rows that stay: in one piece
            for node in nodes:
                own = splits.get(node.name)
                if own and own[0] is not Axis.EXPERT_GROUP:
                    faults.add(
                        "split-mismatch",
                        f"`{node.origin}` is {_text(own)}, but `{graph.node[dispatch].origin}`, which brings its rows,"
                        " has them by expert",
                        wishes.split_spans.get(node.name) or node.span,
                        help="split by expert_group",
                    )
            continue
        cut = splits.get(moved[0].name)
        for node in moved[1:]:
            if splits.get(node.name) != cut:
                faults.add(
                    "split-mismatch",
                    f"`{moved[0].origin}` is {_text(cut)} and `{node.origin}` is {_text(splits.get(node.name))}:"
                    " rows come back in the order in which they were sent",
                    wishes.split_spans.get(node.name) or wishes.split_spans.get(moved[0].name) or node.span,
                    help=f"split `{moved[0].origin}` and `{node.origin}` the same way",
                )
                break
        axis, count = cut or (None, 1)
        if axis is Axis.TOKENS and _attrs(graph, dispatch).selective:
            faults.add(
                "split-selective",
                f"`{moved[0].origin}` sends some copies of a token only, and cannot be cut by tokens: what it sends of"
                " a piece has no place of a known size",
                wishes.split_spans.get(moved[0].name) or moved[0].span,
                help="split by expert_group",
            )
        local = _experts(graph, dispatch) // schedule.ep
        if axis is Axis.EXPERT_GROUP and count > local:
            faults.add(
                "chunks-over-experts",
                f"cannot make {count} groups of {local} experts on each of {schedule.ep} ranks",
                wishes.split_spans.get(moved[0].name),
                help=f"use at most {local}",
            )
        for node in nodes:
            own = splits.get(node.name)
            fits = own == cut or own is None or (cut is None and own[0] is Axis.EXPERT_GROUP)
            if axis is Axis.TOKENS and own != cut and node not in moved:
                fits = False
            if not fits and not faults.errors:
                faults.add(
                    "split-mismatch",
                    f"`{node.origin}` is {_text(own)}, but `{moved[0].origin}`, which brings its rows, is {_text(cut)}",
                    wishes.split_spans.get(node.name) or wishes.split_spans.get(moved[0].name) or node.span,
                    help=f"split `{node.origin}` as `{moved[0].origin}` is",
                )
        permute = next(graph.maker[n.ins[0]] for n in moved if is_dispatch(n))
        own = splits.get(permute.name)
        if own is not None and own != cut:
            del splits[permute.name]
        layouts.append(Layout(dispatch, axis, count))
    return tuple(layouts)


def _branch(graph: Graph, node: Node) -> str | None:
    """The dispatch whose routed rows this op works on; None for ops on tokens."""
    for value in (*node.outs, *node.ins):
        symbol = graph.types[value].shape[0].symbol if graph.types[value].shape else ""
        if symbol.startswith(("rows(", "gets(")) and is_row_op(node):
            return symbol[len("rows(") : -1]
    return None


def _experts(graph: Graph, dispatch: str) -> int:
    return _attrs(graph, dispatch).experts


def _attrs(graph: Graph, dispatch: str) -> RowsAttrs:
    attrs = graph.node[dispatch].attrs
    assert isinstance(attrs, RowsAttrs)
    return attrs


def _text(cut: tuple[Axis, int] | None) -> str:
    return f"cut by {cut[0]} into {cut[1]}" if cut else "not cut"
