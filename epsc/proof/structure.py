"""Is a Schedule one of its Graph? Every op exactly once, its operands untouched, makers before readers."""

from __future__ import annotations

from collections.abc import Iterator

from epsc.ir.dims import Axis, Cuts
from epsc.ir.errors import Faults
from epsc.ir.graph import Node
from epsc.ir.impls import impls_of
from epsc.ir.kinds import Role
from epsc.ir.regions import Regions
from epsc.ir.rows import by_source, part_read
from epsc.ir.schedule import HOST_LANE, Layout, Schedule, Stage, Step


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
            # Of an index or a count every chunk needs the whole, and a product every column.
            if ref.cuts and (ref.value not in graph.types or ref.cuts != part_read(graph, node, ref.value, step.cuts)):
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
        for step, node, wrong in _check_layouts(schedule):
            faults.add("layout", f"`{step.key}` {wrong}", node.span)
    if schedule.stage >= Stage.PLACED:
        _check_lanes(schedule, faults)
    if schedule.stage >= Stage.ORDERED:
        _check_order(schedule, faults)


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


def _check_layouts(schedule: Schedule) -> Iterator[tuple[Step, Node, str]]:
    """What is wrong with how steps take rows: a transfer moves contiguous pieces, so rows must lie in the pieces that
    it is cut into; and a product takes the rows of each expert together, which of several sources they are not."""
    graph = schedule.graph
    for step in schedule.steps:
        node = graph.node.get(step.node)
        if node is None:
            continue
        if node.kind in ("all2all", "all_gather_rows", "reduce_scatter_rows"):
            symbols = [graph.types[value].shape[0].symbol for value in (*node.outs, *node.ins)]
            dispatch = next((s[len("rows(") : -1] for s in symbols if s.startswith(("rows(", "gets("))), "")
            layout = schedule.layout.get(dispatch)
            if layout is None or not _in_pieces(step.cuts, layout, schedule.ep):
                yield step, node, f"moves pieces that rows do not lie in: {layout or 'no layout'}"
        if node.kind == "all_gather_copies" and step.cuts:
            came = graph.maker.get(node.ins[0])
            if came is None or not any(other.cuts == step.cuts for other in schedule.steps if other.node == came.name):
                yield step, node, "gathers a piece that does not come home as one"
        if "two_level" in step.impl.names and (why := _one_level(schedule, step, node)):
            yield step, node, why
        one_source = schedule.ep == 1 or [(cut.axis, cut.count) for cut in step.cuts] == [(Axis.PEER, schedule.ep)]
        if node.kind in ("expert_gemm", "expert_gemm_act") and not one_source and by_source(graph, node.ins[0]):
            yield step, node, "takes rows of several ranks by expert, but they lie by rank"
        if any(cut.axis is Axis.PEER for cut in step.cuts) and not one_source:
            yield step, node, f"is cut by peer into other pieces than one for each of {schedule.ep} ranks"


def _one_level(schedule: Schedule, step: Step, node: Node) -> str:
    """Why rows cannot go within nodes and between them; nothing if they can."""
    if len(step.impl.names) > 1:
        return "goes in two levels or not, by what one rank knows: others would wait for it for ever"
    if any(cut.axis is Axis.PEER for cut in step.cuts):
        return "is cut by peer: each piece goes to one rank, on one way"
    if not any("intra" in dict(mesh.axes) for mesh in schedule.meshes):
        return "goes within nodes and between them, but there is no mesh of nodes"
    known = schedule.graph.maker.get(node.ins[-1])
    makers = [schedule.graph.maker.get(value) for value in known.ins] if known else []
    if not any(maker and maker.kind == "pass_counts" for maker in makers):
        return "passes rows through other ranks, to which nobody tells how many"
    return ""


def _in_pieces(cuts: Cuts, layout: Layout, ep: int) -> bool:
    """Whether a transfer so cut moves pieces that rows of this layout lie in."""
    axis = cuts[0].axis if cuts else None
    if layout.axis in (None, Axis.PEER):
        # By rank: all of them, or some columns of all, or those of one rank.
        return axis in (None, Axis.COLUMNS) or (axis is Axis.PEER and layout.count == cuts[0].count == ep)
    return axis is layout.axis and cuts[0].count == layout.count


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
