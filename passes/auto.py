"""auto: the schedule that the machine model says is fastest, serial included."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import Axis
from epsc.ir.errors import Faults
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule
from epsc.ir.spec import Beside, Number, Reserve, ScheduleDecl, Split, Target
from epsc.machine.cluster import Cluster
from epsc.machine.simulate import simulate
from epsc.passes.numbers import Numbers
from epsc.passes.pipeline import PIPELINE, Decision, Pass, decide
from epsc.passes.resolve import resolve
from epsc.passes.wishes import Context

MOST_CHUNKS = 16
SMS_FOR_TRANSFERS = (0, 16, 24)
MARGIN = 0.02
"""A cut plan must be predicted faster than a simpler one by this share, or the simpler one stays: predictions err."""


@dataclass(frozen=True)
class Candidate:
    """One schedule that was considered, and its predicted time in seconds at the load it was asked for."""

    decl: ScheduleDecl
    decision: Decision
    seconds: float


def candidates(graph: Graph, ep: int, device_sms: int) -> list[ScheduleDecl]:
    """Schedules worth asking about, simplest first: serial, then cuts by expert group and by tokens, with and without
    SMs of their own for the transfers."""
    routed = [node for node in graph.nodes if node.kind == "regroup"]
    if not routed:
        return [ScheduleDecl("serial")]
    between = {n.origin for n in graph.nodes for v in n.outs if graph.types[v].shape[0].symbol.startswith("rows(")}
    homes = {n.origin for n in graph.nodes if n.kind == "all2all"}
    moved = tuple(dict.fromkeys(n.origin for n in graph.nodes if n.kind == "all2all"))
    inner = tuple(dict.fromkeys(n.origin for n in graph.nodes if n.origin in between | homes))
    shared = tuple(
        dict.fromkeys(
            n.origin
            for n in graph.nodes
            if n.kind == "gemm" and n.origin not in between | homes and n.origin != "return"
        )
    )
    local = min(n.attrs.experts for n in routed if isinstance(n.attrs, RowsAttrs)) // ep
    cuts = [(Axis.EXPERT_GROUP, n) for n in range(2, min(local, MOST_CHUNKS) + 1) if local % n == 0]
    cuts += [(Axis.TOKENS, n) for n in (2, 4, 8)]
    found = [ScheduleDecl("serial")]
    for axis, count in cuts:
        for sms in SMS_FOR_TRANSFERS:
            if sms >= device_sms:
                continue
            directives: list[Split | Reserve | Beside] = [Split(_targets(inner), axis, Number(count))]
            if sms:
                directives.append(Reserve(Number(sms), _targets(moved)))
            if shared:
                directives.append(Beside(_targets(shared), _targets(moved[:1])))
            found.append(ScheduleDecl(f"{axis}_{count}_sms_{sms}", tuple(directives)))
    return found


def search(
    graph: Graph, numbers: Numbers, cluster: Cluster, load: int, pipeline: tuple[Pass, ...] = PIPELINE
) -> tuple[Candidate, list[Candidate]]:
    """The candidate predicted fastest at `load` tokens per rank, and all that were considered."""
    asked: list[Candidate] = []
    for decl in candidates(graph, cluster.mesh.ep, cluster.device.sms):
        faults = Faults()
        wishes = resolve(decl, graph, numbers, cluster.mesh.ep, cluster.device.sms, faults)
        faults.raise_if_any()
        decision = decide(graph, Context(wishes, cluster.mesh.ep, cluster.device.sms, cluster.device), pipeline)
        asked.append(Candidate(decl, decision, _seconds(decision.schedule, cluster, load)))
    best = asked[0]
    for candidate in asked[1:]:
        if candidate.seconds < best.seconds * (1 - MARGIN):
            best = candidate
    return best, asked


def _seconds(schedule: Schedule, cluster: Cluster, load: int) -> float:
    return simulate(schedule, cluster, load).total


def _targets(names: tuple[str, ...]) -> tuple[Target, ...]:
    return tuple(map(Target, names))
