"""auto: the schedule that the machine model says is fastest, serial included.

Candidates are schedules as a user would write them, so the one that is chosen can be printed, kept and changed. They
are ranked by simulating what the passes make of them; only the one that is taken is proven. The same input gives the
same answer on every rank: nothing here is random, measured or local.
"""

from __future__ import annotations

from dataclasses import dataclass

from epsc.ir.attrs import Direction, RowsAttrs, TransferAttrs
from epsc.ir.dims import Axis
from epsc.ir.errors import EpsError, Faults
from epsc.ir.graph import Graph, Node
from epsc.ir.schedule import Schedule, Stage
from epsc.ir.spec import Beside, Dedup, Directive, LocalReduce, Name, Number, Reserve, ScheduleDecl, Split, Target, Use
from epsc.machine.cluster import Cluster, Device
from epsc.machine.simulate import period
from epsc.passes.asks import asks_of
from epsc.passes.canonicalise import Canonicalise
from epsc.passes.crossovers import uses
from epsc.passes.fuse import Fuse
from epsc.passes.moefy import Moefy
from epsc.passes.numbers import Numbers
from epsc.passes.pipeline import PIPELINE, Pass, lower
from epsc.passes.questions import is_dispatch, name_of
from epsc.passes.resolve import resolve
from epsc.passes.wishes import Context

MOST_CHUNKS = 16
MOST_SLOTS = 8
SMS_FOR_TRANSFERS = (0, 16, 24, 32)
MARGIN = 0.05
"""A cut plan must be predicted faster than a simpler one by this share, or the simpler one stays: predictions err by
about as much (docs/cost-model.md)."""
TRANSPORTS = ("collective", "put", "copy", "put_copies", "put_each")
"""How rows may travel: by a collective, or one-sided, which takes GPUs of one node: a token once to each rank, by SMs
or copy engines, or each copy of it straight to its row; home as one sum from each rank, or (`put_each`) each copy."""


@dataclass(frozen=True)
class Candidate:
    """One schedule that was considered, and its predicted time in seconds at the load it was asked for."""

    decl: ScheduleDecl
    schedule: Schedule
    """As far as it takes to simulate it: synchronised, not proven."""
    seconds: float
    """The fewer of the two: as it is, and as a CUDA graph where it can be one."""
    graph: bool = False
    """Whether that is as a graph."""


@dataclass(frozen=True)
class _Names:
    """What the directives of candidates speak of."""

    dispatches: tuple[str, ...]
    moved: tuple[str, ...]
    """Dispatches and combines."""
    inner: tuple[str, ...]
    """All that a cut cuts: what moves, and what runs on rows that moved."""
    shared: tuple[str, ...]
    """Products and modules that neither make what is dispatched nor need what comes home, in order."""
    routers: tuple[str, ...]

    @staticmethod
    def of(graph: Graph) -> _Names:
        def origins(found: list[str]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(found))

        moves = [(n, n.attrs) for n in graph.nodes if n.info.moves_rows and isinstance(n.attrs, TransferAttrs)]
        between = {n.origin for n, _ in moves}
        between |= {n.origin for n in graph.nodes for v in n.outs if graph.types[v].shape[0].symbol.startswith("rows(")}
        return _Names(
            origins([n.origin for n, attrs in moves if attrs.direction is Direction.DISPATCH]),
            origins([n.origin for n, _ in moves]),
            origins([n.origin for n in graph.nodes if n.origin in between]),
            origins([_said(n) for n in _apart_from_experts(graph) if n.origin not in {*between, "return"}]),
            origins([n.origin for n in graph.nodes if n.kind == "route"]),
        )


def _said(node: Node) -> str:
    """What a schedule calls a product or a module."""
    return name_of(node) if node.kind == "call" else node.origin


def _apart_from_experts(graph: Graph) -> list[Node]:
    """Products and modules that can run beside a dispatch: they do not lead to it, and it does not lead to them."""
    first: dict[str, Node] = {}
    for node in graph.nodes:
        if is_dispatch(node):
            first.setdefault(node.origin, node)
    found: set[str] = set()
    for dispatch in first.values():
        behind, ahead = {*dispatch.ins}, {*dispatch.outs}
        for node in reversed(graph.nodes):
            if behind & {*node.outs}:
                behind |= {*node.ins}
        for node in graph.nodes:
            if ahead & {*node.ins}:
                ahead |= {*node.outs}
        found |= {n.name for n in graph.nodes if not (behind | ahead) & {*n.outs}}
    return [n for n in graph.nodes if n.kind in ("gemm", "call") and n.name in found]


def candidates(
    graph: Graph, ep: int, device: Device, transports: tuple[str, ...] = TRANSPORTS[:1]
) -> list[ScheduleDecl]:
    """Schedules worth asking about, simplest first: serial; transfers beside the shared experts; cuts by expert group,
    by tokens, by peer and by columns; each with and without SMs of their own for the transfers, and by each transport.
    """
    names = _Names.of(graph)
    best = uses(graph, ep, device)
    found = [ScheduleDecl("serial")]
    if best:
        found.append(ScheduleDecl("serial_best_gemms", best))
    if not names.dispatches:
        return found
    local = min(n.attrs.experts for n in graph.nodes if isinstance(n.attrs, RowsAttrs)) // ep
    for transport in transports:
        travels = _travels(names, transport)
        for cut in _cuts(names, transport, local, ep):
            for sms in SMS_FOR_TRANSFERS:
                if sms >= device.sms or (sms and device.backend != "cuda"):
                    continue
                if cut and transport.startswith("put") and not sms:
                    continue  # nothing runs beside rows that are put on as many SMs as there are
                # Of rows that come one-sided the host knows no number, so nothing can be chosen by it.
                directives: list[Directive] = [*travels] or [*best]
                directives += (Split(_targets(each), axis, Number(count)) for each, axis, count in cut)
                if sms:
                    # Copy engines take none.
                    moved = names.moved if transport != "copy" else _homes(names)
                    directives.append(Reserve(Number(sms), _targets(moved)))
                for ahead, behind in _besides(names, transport, sms, bool(cut)):
                    if not (cut or ahead or behind or travels):
                        continue  # nothing to hide behind: that is serial
                    words = [transport] if travels else []
                    words += [f"{axis}_{count}" for _, axis, count in cut]
                    words += [] if cut else ["beside" if ahead or behind else "whole"]
                    words.append(f"sms_{sms}")
                    words += [f"slot_{len(names.shared) - len(behind)}"] if behind else []
                    ways = ((ahead, names.dispatches[:1]), (behind, _homes(names)[:1]))
                    run = (Beside(_targets(these), _targets(others)) for these, others in ways if these)
                    found.append(ScheduleDecl("_".join(words), (*directives, *run)))
    return found


_Cut = tuple[tuple[str, ...], Axis, int]
"""Names, and how they are cut."""


def _cuts(names: _Names, transport: str, local: int, ep: int) -> list[tuple[_Cut, ...]]:
    """The ways to cut what travels so, uncut first; `local` experts are on each of `ep` ranks."""
    homes = _homes(names)
    there = tuple(name for name in names.inner if name not in homes)
    columns: _Cut = homes, Axis.COLUMNS, 2
    if transport != "collective":
        # What goes there once for each rank goes in one piece, and so does a sum over all experts of a rank.
        by_group: list[tuple[_Cut, ...]] = []
        if local > 1 and transport in ("put_copies", "put_each"):
            by_group = [((there, Axis.EXPERT_GROUP, 2), columns)]
        if by_group and transport == "put_each":
            by_group.append(((names.inner, Axis.EXPERT_GROUP, 2),))
        return [(), (columns,), *by_group]
    groups = [n for n in range(2, min(local, MOST_CHUNKS) + 1) if local % n == 0]
    by_peer: list[tuple[_Cut, ...]] = [((there, Axis.PEER, ep), columns)] if 1 < ep <= MOST_CHUNKS else []
    return [
        (),
        *(((names.inner, Axis.EXPERT_GROUP, n),) for n in groups),
        *(((names.inner, Axis.TOKENS, n),) for n in (2, 4, 8)),
        *by_peer,
    ]


def _besides(names: _Names, transport: str, sms: int, cut: bool) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What may run beside the first dispatch, before the experts' products, and what behind them, beside the combine:
    the choices. Of a layer that is cut, and of one with a single such op, all of it runs beside the dispatch."""
    every = len(names.shared)
    slots = range(every, -1, -1) if not cut and 1 < every <= MOST_SLOTS else (every,)
    ways = [(names.shared[:slot], names.shared[slot:]) for slot in slots]
    if transport == "copy":  # it sends all tokens, wherever they are to go
        return [((), ()), *(((*names.routers, *ahead), behind) for ahead, behind in ways)]
    # Rows put on as many SMs as they like keep products from running beside them.
    return ways if not transport.startswith("put") or sms else [((), ())]


def _homes(names: _Names) -> tuple[str, ...]:
    return tuple(name for name in names.moved if name not in names.dispatches)


def _travels(names: _Names, transport: str) -> list[Directive]:
    if transport == "collective":
        return []
    homes = _homes(names)
    by = "copy" if transport == "copy" else "put"
    made: list[Directive] = [Use((Name(by),), (), _targets(names.dispatches)), Use((Name("put"),), (), _targets(homes))]
    if transport != "put_each":
        made.append(LocalReduce(_targets(homes)))
    return [*made, Dedup(_targets(names.dispatches))] if transport == "put" else made


def search(
    said: Graph,
    graph: Graph,
    numbers: Numbers,
    cluster: Cluster,
    load: int,
    pipeline: tuple[Pass, ...] = PIPELINE,
    most: int | None = None,
) -> tuple[Candidate, list[Candidate]]:
    """The candidate predicted fastest at `load` tokens per rank, and all that were considered, of a program that is
    made for `most`, or for `load`.

    `said` is the graph as the layer says it, `graph` what it is lowered to by collectives.
    """
    asked: list[Candidate] = []
    one_sided = cluster.device.backend == "cuda" and cluster.nodes == 1 and cluster.mesh.ep > 1

    def ask(decl: ScheduleDecl) -> None:
        try:
            schedule = scheduled(decl, said, graph, numbers, cluster, pipeline)
        except EpsError as error:
            if decl.name == "serial" or any(d.message.startswith("after pass") for d in error.diagnostics):
                raise
            return  # the layer cannot have this one, as it could not if a user wrote it
        asked.append(Candidate(decl, schedule, *fastest(schedule, cluster, load, most)))

    for decl in candidates(graph, cluster.mesh.ep, cluster.device, TRANSPORTS if one_sided else TRANSPORTS[:1]):
        ask(decl)
    for decl in _in_two_levels(best_of(asked), cluster):
        ask(decl)
    return best_of(asked), asked


def _in_two_levels(best: Candidate, cluster: Cluster) -> list[ScheduleDecl]:
    """The best plan with its rows sent within nodes and between them, where there are both: it sends to fewer ranks."""
    moved = _Names.of(best.schedule.graph).moved
    if cluster.nodes == 1 or not moved:
        return []
    use = Use((Name("two_level"),), (), _targets(moved))
    return [ScheduleDecl(f"two_level_{best.decl.name}", (*best.decl.directives, use))]


def fastest(schedule: Schedule, cluster: Cluster, load: int, most: int | None = None) -> tuple[float, bool]:
    """Predicted seconds as it is run best, one after the other, and whether that is as a CUDA graph."""
    eager = period(schedule, cluster, load, most=most)
    if cluster.device.backend != "cuda" or not schedule.capturable:
        return eager, False
    graph = period(schedule, cluster, load, graph=True, most=most)
    return (graph, True) if graph < eager else (eager, False)


def best_of(asked: list[Candidate]) -> Candidate:
    """The fastest, but of two that are about as fast serial, or the one that is not cut."""
    best = asked[0]
    for candidate in asked[1:]:
        sure = best is not asked[0] and _is_cut(best) >= _is_cut(candidate)
        if candidate.seconds < best.seconds * (1 - (0 if sure else MARGIN)):
            best = candidate
    return best


def _is_cut(candidate: Candidate) -> bool:
    return any(step.cuts for step in candidate.schedule.steps)


def scheduled(
    decl: ScheduleDecl,
    said: Graph,
    graph: Graph,
    numbers: Numbers,
    cluster: Cluster,
    pipeline: tuple[Pass, ...] = PIPELINE,
) -> Schedule:
    """What the passes make of `decl`, up to its waits, unproven. Raises EpsError when the layer cannot have it."""
    faults = Faults()
    asks = asks_of(decl, said, numbers, nodes=cluster.nodes, node_ranks=cluster.node_ranks)
    lowered = lower(said, pipeline, asks=asks) if asks else graph
    wishes = resolve(decl, lowered, numbers, cluster.mesh.ep, cluster.device.sms, faults)
    faults.raise_if_any()
    context = Context(wishes, cluster.mesh.ep, cluster.device.sms, cluster.device, cluster.tables)
    schedule: Schedule | None = None
    for each in pipeline:
        if isinstance(each, Moefy | Canonicalise | Fuse) or (schedule and schedule.stage >= Stage.SYNCED):
            continue
        schedule = each(lowered if schedule is None else schedule, context)  # type: ignore[arg-type]
    assert schedule is not None
    return schedule


def _targets(names: tuple[str, ...]) -> tuple[Target, ...]:
    return tuple(map(Target, names))
