"""chunk: cut steps into pieces, and say how rows lie so that a piece is contiguous."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import Axis, Cut
from epsc.ir.errors import Faults, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.rows import by_source, part_read
from epsc.ir.schedule import Layout, Ref, Schedule, Stage, Step
from epsc.passes.questions import (
    LOWERED_AXES,
    axes_of,
    is_dispatch,
    is_row_op,
    name_of,
    one_sided_rows,
    uneven,
    why_not_persistent,
)
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

    By peer, the other ranks come in turn, this one first. By columns, a step makes some columns of all rows.

    Refuses what no row layout can serve: dispatch and combine of the same rows cut differently by expert group or by
    tokens; with tokens, an op between them left uncut; columns of what is not sent home in the same ones.
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
        for name, (axis, count) in splits.items():
            if why := uneven(graph, graph.node[name], axis, count, schedule.ep):
                faults.add("uneven-chunks", why.message, wishes.split_spans.get(name), help=why.help)
            if count > MOST_CHUNKS:
                message = f"`{graph.node[name].origin}` is cut into {count} chunks: {MOST_CHUNKS} are the most"
                faults.add("too-many-chunks", message, wishes.split_spans.get(name))
        faults.raise_if_any()
        if context.device and context.device.backend == "cuda":
            _check_groups(schedule, splits, wishes, faults)
        layouts = _layouts(schedule, splits, wishes, faults)
        _check_gathers(schedule.graph, splits, wishes, faults)
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
                        reads=tuple(
                            Ref(r.value, part_read(graph, graph.node[step.node], r.value, cuts)) for r in step.reads
                        ),
                        writes=tuple(Ref(r.value, cuts) for r in step.writes),
                    )
                )
        return replace(schedule, stage=Stage.CUT, steps=tuple(steps), layouts=layouts)


_MOVED = ("all2all", "all_gather_rows", "regroup", "ungroup", "reduce_scatter_rows")
"""Kinds that need the rows of a chunk in one piece."""


def _check_groups(schedule: Schedule, splits: dict[str, tuple[Axis, int]], wishes: Wishes, faults: Faults) -> None:
    """Where a group of experts begins among rows that came one-sided only the device knows."""
    graph = schedule.graph
    for step in schedule.steps:
        node = graph.node[step.node]
        of_groups = _axis(splits, node) is Axis.EXPERT_GROUP and one_sided_rows(
            graph, graph.types[node.outs[0]].shape[0].symbol
        )
        others = [name for name in step.impl.possible("cuda") if name != "persistent"]
        if node.kind in _PRODUCTS and of_groups and others:
            why = why_not_persistent(graph, node)
            faults.add(
                "needs",
                f"`{others[0]}` cannot run `{name_of(node)}` by groups of experts: where one begins among rows that"
                " come one-sided only the device knows, and only `persistent` asks it",
                wishes.split_spans.get(node.name) or node.span,
                help=f"leave `{name_of(node)}` whole: `persistent` cannot run it, {why}" if why else "use `persistent`",
            )


def _layouts(
    schedule: Schedule, splits: dict[str, tuple[Axis, int]], wishes: Wishes, faults: Faults
) -> tuple[Layout, ...]:
    """One layout per dispatch by a collective, from the cuts of the transfers of its rows."""
    graph = schedule.graph
    branches: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if (branch := _branch(graph, node)) is not None:
            branches.setdefault(branch, []).append(node)

    def mismatch(node: Node, other: Node, why: str) -> None:
        faults.add(
            "split-mismatch",
            f"`{name_of(node)}` is {_text(splits.get(node.name))}, but {why}",
            wishes.split_spans.get(node.name) or wishes.split_spans.get(other.name) or node.span,
            help=f"split `{name_of(node)}` and `{name_of(other)}` the same way",
        )

    layouts = []
    for dispatch, nodes in branches.items():
        before = len(faults.errors)
        _check_columns(graph, nodes, splits, mismatch)
        moved = [node for node in nodes if node.kind in _MOVED]
        if len(faults.errors) > before:
            continue
        if not moved:  # one-sided, or rows that stay: by expert
            for node in nodes:
                own = splits.get(node.name)
                if own and own[0] not in (Axis.EXPERT_GROUP, Axis.COLUMNS):
                    faults.add(
                        "split-mismatch",
                        f"`{node.origin}` is {_text(own)}, but `{graph.node[dispatch].origin}`, which brings its rows,"
                        " has them by expert",
                        wishes.split_spans.get(node.name) or node.span,
                        help="split by expert_group",
                    )
            continue
        sends = next(node for node in moved if node.kind == "all2all" and is_dispatch(node))
        cut = splits.get(sends.name)
        for node in moved:
            own = splits.get(node.name)
            if own != cut and not _in_one_order(cut, own):
                faults.add(
                    "split-mismatch",
                    f"`{sends.origin}` is {_text(cut)} and `{node.origin}` is {_text(own)}:"
                    " rows come back in the order in which they were sent",
                    wishes.split_spans.get(node.name) or wishes.split_spans.get(sends.name) or node.span,
                    help=f"split `{sends.origin}` and `{node.origin}` the same way",
                )
                break
        axis, count = cut or (None, 1)
        if cut is None and (peers := next((splits[n.name] for n in moved if _axis(splits, n) is Axis.PEER), None)):
            axis, count = peers
        if axis in (Axis.TOKENS, Axis.PEER) and _attrs(graph, dispatch).selective:
            faults.add(
                "split-selective",
                f"`{sends.origin}` sends some copies of a token only, and cannot be cut by {axis}: what it sends"
                " of a piece has no place of a known size",
                wishes.split_spans.get(sends.name) or sends.span,
                help="split by expert_group",
            )
        local = _experts(graph, dispatch) // schedule.ep
        if axis is Axis.EXPERT_GROUP and count > local:
            faults.add(
                "chunks-over-experts",
                f"cannot make {count} groups of {local} experts on each of {schedule.ep} ranks",
                wishes.split_spans.get(sends.name),
                help=f"use at most {local}",
            )
        for node in nodes:
            own = splits.get(node.name)
            fits = node in moved or _fits(own, cut, axis)  # those that move were told above
            if schedule.ep > 1 and node.kind in _PRODUCTS and by_source(graph, node.ins[0]) and own != cut:
                fits = False
            if not fits and not faults.errors:
                mismatch(node, sends, f"`{sends.origin}`, which brings its rows, is {_text(cut)}")
        permute = graph.maker[sends.ins[0]]
        own = splits.get(permute.name)
        if own is not None and own != cut:
            del splits[permute.name]
        layouts.append(Layout(dispatch, axis, count))
    return tuple(layouts)


def _check_gathers(graph: Graph, splits: dict[str, tuple[Axis, int]], wishes: Wishes, faults: Faults) -> None:
    """What came home from one rank is gathered as it comes, or all of it at once."""
    for node in graph.nodes:
        if node.kind == "all_gather_copies" and node.name in splits:
            came = graph.maker[node.ins[0]]
            if splits.get(came.name) != splits[node.name]:
                faults.add(
                    "split-mismatch",
                    f"the all_gather of `{node.origin}` is {_text(splits[node.name])}, but its all2all is"
                    f" {_text(splits.get(came.name))}",
                    wishes.split_spans.get(node.name) or node.span,
                    help=f"split `{node.origin}`, which is both",
                )


_PRODUCTS = ("expert_gemm", "expert_gemm_act")


def _axis(splits: dict[str, tuple[Axis, int]], node: Node) -> Axis | None:
    return splits[node.name][0] if node.name in splits else None


def _fits(own: tuple[Axis, int] | None, cut: tuple[Axis, int] | None, axis: Axis | None) -> bool:
    """Whether an op can be cut so where rows lie by `axis`, and come in pieces of `cut`."""
    if own is None or own == cut:
        return own == cut or axis is not Axis.TOKENS
    if own[0] is Axis.COLUMNS:
        return axis in (None, Axis.PEER)
    return own[0] is Axis.EXPERT_GROUP and axis is None


def _in_one_order(a: tuple[Axis, int] | None, b: tuple[Axis, int] | None) -> bool:
    """Whether pieces cut in two ways are pieces of rows in one order: by rank, and then by expert."""
    return all(cut is None or cut[0] in (Axis.PEER, Axis.COLUMNS) for cut in (a, b))


def _check_columns(
    graph: Graph,
    nodes: list[Node],
    splits: dict[str, tuple[Axis, int]],
    mismatch: Callable[[Node, Node, str], None],
) -> None:
    """Columns of rows are memory of their own: who makes some, and who reads them, have the same ones."""
    for node in nodes:
        cut = splits.get(node.name)
        by_columns = cut is not None and cut[0] is Axis.COLUMNS
        for user in graph.users[node.outs[0]]:
            same = splits.get(user.name) == cut
            others = _axis(splits, user) is Axis.COLUMNS and user.kind not in _PRODUCTS
            if (by_columns or others) and not same:
                mismatch(node, user, f"`{name_of(user)}`, which reads it, is {_text(splits.get(user.name))}")
                return


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
    attrs = graph.node[f"{dispatch}.layout"].attrs
    assert isinstance(attrs, RowsAttrs)
    return attrs


def _text(cut: tuple[Axis, int] | None) -> str:
    return f"cut by {cut[0]} into {cut[1]}" if cut else "not cut"
