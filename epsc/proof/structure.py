"""Is a Schedule one of its Graph? Every op exactly once, its operands untouched, makers before readers."""

from __future__ import annotations

from epsc.ir.dims import Cuts
from epsc.ir.errors import Faults
from epsc.ir.graph import Graph
from epsc.ir.impls import impls_of
from epsc.ir.kinds import Role
from epsc.ir.regions import Regions
from epsc.ir.schedule import HOST_LANE, Schedule, Stage, Step


def check_structure(schedule: Schedule, faults: Faults) -> None:
    """Steps against ops: coverage, operands, implementations, and what the stage promises."""
    graph = schedule.graph
    pieces: dict[str, list[Step]] = {}
    keys: set[str] = set()
    for step in schedule.steps:
        if step.key in keys:
            faults.add("duplicate-step", f"step `{step.key}` is there twice")
        keys.add(step.key)
        node = graph.node.get(step.node)
        if node is None:
            faults.add("unknown-op", f"step `{step.key}` runs an op that the graph does not have")
            continue
        pieces.setdefault(step.node, []).append(step)
        if not node.info.lowered:
            faults.add("not-lowered", f"`{step.key}`: a schedule cannot hold `{node.kind}`", node.span)
        if {ref.value for ref in step.reads} != set(node.ins):
            faults.add(
                "operands",
                f"`{step.key}` reads {_names(step.reads)}, but its op reads {', '.join(node.ins)}",
                node.span,
            )
        if {ref.value for ref in step.writes} != set(node.outs):
            faults.add(
                "operands",
                f"`{step.key}` writes {_names(step.writes)}, but its op makes {', '.join(node.outs)}",
                node.span,
            )
        for ref in step.reads:
            # Of an index or a count every chunk needs the whole.
            if ref.cuts and not (ref.cuts == step.cuts and _is_rows(graph, ref.value)):
                faults.add("operands", f"`{step.key}` reads {ref}, a region that is not its own", node.span)
        for ref in step.writes:
            if ref.cuts != step.cuts:
                faults.add("operands", f"`{step.key}` writes {ref}, a region that is not its own", node.span)
        for impl in step.impl.names:
            if impl not in impls_of(node.kind):
                faults.add(
                    "unknown-implementation", f"`{step.key}`: nothing named `{impl}` runs `{node.kind}`", node.span
                )
        for cut in step.cuts:
            if cut.axis not in node.info.axes:
                faults.add("axis", f"`{step.key}`: `{node.kind}` cannot be cut by {cut.axis}", node.span)
    for node in graph.nodes:
        steps = pieces.get(node.name, [])
        if not steps:
            faults.add("missing-op", f"the op `{node.name}` is never run", node.span)
        elif not _partition([step.cuts for step in steps]):
            faults.add("coverage", f"the chunks of `{node.name}` do not cover it exactly once", node.span)
    if schedule.stage >= Stage.CUT:
        _check_layouts(schedule, faults)
    if schedule.stage >= Stage.PLACED:
        _check_lanes(schedule, faults)
    if schedule.stage >= Stage.ORDERED:
        _check_order(schedule, faults)


def _is_rows(graph: Graph, value: str) -> bool:
    """Whether a value is rows of numbers, which can be cut, and not an index or a count."""
    maker = graph.maker.get(value)
    return maker is None or maker.info.makes_rows


def _names(refs: tuple[object, ...]) -> str:
    return ", ".join(map(str, refs)) or "nothing"


def _partition(pieces: list[Cuts]) -> bool:
    """Whether chunks cut a thing into all parts of one cut, each once; or leave it whole."""
    if pieces == [()]:
        return True
    if any(len(cuts) != 1 for cuts in pieces):
        return False
    kinds = {(cuts[0].axis, cuts[0].count) for cuts in pieces}
    indices = sorted(cuts[0].index for cuts in pieces)
    return len(kinds) == 1 and indices == list(range(next(iter(kinds))[1]))


def _check_layouts(schedule: Schedule, faults: Faults) -> None:
    """A transfer moves contiguous pieces: rows must lie in the pieces that it is cut into."""
    types = schedule.graph.types
    for step in schedule.steps:
        node = schedule.graph.node.get(step.node)
        if node is None or node.kind not in ("all2all", "all_gather_rows", "reduce_scatter_rows"):
            continue
        symbols = [types[value].shape[0].symbol for value in (*node.outs, *node.ins)]
        dispatch = next((s[len("rows(") : -1] for s in symbols if s.startswith(("rows(", "gets("))), "")
        layout = schedule.layout.get(dispatch)
        cut = [(cut.axis, cut.count) for cut in step.cuts]
        if layout is None or cut != ([(layout.axis, layout.count)] if layout.axis else []):
            faults.add(
                "layout", f"`{step.key}` moves pieces that rows do not lie in: {layout or 'no layout'}", node.span
            )


def _check_lanes(schedule: Schedule, faults: Faults) -> None:
    lanes = {lane.name for lane in schedule.lanes}
    for step in schedule.steps:
        node = schedule.graph.node.get(step.node)
        if node is None:
            continue
        if step.lane not in lanes:
            faults.add("unknown-lane", f"`{step.key}` runs on the lane `{step.lane}`, which is not declared", node.span)
        if (step.lane == HOST_LANE) != (node.info.role is Role.HOST):
            faults.add("host-lane", f"`{step.key}` ({node.kind}) cannot run on the lane `{step.lane}`", node.span)
        if bool(step.comm) != (node.info.collective):
            faults.add("communicator", f"`{step.key}` ({node.kind}) has the communicator `{step.comm}`", node.span)


def _check_order(schedule: Schedule, faults: Faults) -> None:
    """Every region is made, whole, before it is read; and the order that was asked for is kept."""
    graph = schedule.graph
    made: dict[str, set[Cuts]] = {}
    makers: dict[str, Regions[Cuts]] = {}
    for step in schedule.steps:
        for ref in step.writes:
            makers.setdefault(ref.value, Regions()).add(ref.cuts, ref.cuts)
    for step in schedule.steps:
        for ref in step.reads:
            if ref.value in graph.inputs:
                continue
            needed = makers[ref.value].meeting(ref.cuts) if ref.value in makers else []
            if not needed or not made.get(ref.value, set()).issuperset(needed):
                faults.add("unmade-value", f"`{step.key}` reads {ref} before it is made", graph.node[step.node].span)
        for ref in step.writes:
            made.setdefault(ref.value, set()).add(ref.cuts)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(schedule.steps):
        first.setdefault(step.node, i)
        last[step.node] = i
    for a, b in schedule.order:
        if a in last and b in first and last[a] > first[b]:
            faults.add("order", f"`{a}` is to be issued before `{b}`, but is not")
