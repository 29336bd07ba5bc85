"""What a Schedule takes in all, at one load: the figures by which schedules of one layer are compared."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from epsc.ir.attrs import ExpertGemmActAttrs
from epsc.ir.dims import Dim
from epsc.ir.graph import Graph, Node
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule, Storage
from epsc.machine.balanced import comes_one_sided, count, room_for
from epsc.machine.timeline import Timeline, length

_ROUNDS = frozenset(
    {
        "gemm",
        "expert_gemm",
        "expert_gemm_act",
        "expert_gemm_put",
        "activation",
        "add",
        "mul",
        "weighted_sum",
        "unpermute_sum",
        "put_sums",
        "sum_copies",
        "sum_ranks",
        "call",
    }
)
"""Kinds whose result is rounded to the layer's element type; what only moves rows rounds nothing."""


@dataclass(frozen=True)
class Totals:
    """Of one rank, routing balanced. Seconds, bytes and counts."""

    seconds: float
    transfers: float
    """Time in which a transfer runs."""
    exposed: float
    hidden: float
    sent: float
    """Bytes that leave for another rank: rows, and what is said of them."""
    moved: float
    """Bytes that are read or written in device memory, weights and rows."""
    weights: float
    """The part of `moved` that are weights: of experts that some token chose."""
    brought: float
    """Bytes of weights that come from the memory of the host."""
    buffers: float
    """Bytes of memory for rows, beside the weights."""
    launches: int
    roundings: int
    """How often a value is rounded, at most, on its way from the layer's input to its result."""


def totals(schedule: Schedule, timeline: Timeline) -> Totals:
    """The figures of a schedule, as its timeline predicts them."""
    works = [event.work for event in timeline.events]
    return Totals(
        timeline.total,
        length(timeline.transfers),
        timeline.exposed_transfer,
        timeline.hidden,
        sum(work.link_bytes for work in works),
        sum(work.hbm_bytes + work.after_bytes for work in works),
        sum(work.weight_bytes for work in works),
        sum(work.host_bytes for work in works),
        buffer_bytes(schedule, timeline.load),
        sum(work.launches for work in works),
        roundings(schedule, timeline),
    )


def buffer_bytes(schedule: Schedule, load: int) -> float:
    """Memory for rows at this load: a storage is as large as the largest that it holds."""
    return sum(_bytes(storage, schedule, load) for storage in schedule.storages)


def symmetric_bytes(schedule: Schedule, load: int) -> float:
    """The part of it that outlives a forward pass: other ranks write there."""
    return sum(_bytes(storage, schedule, load) for storage in schedule.storages if storage.symmetric)


def _bytes(storage: Storage, schedule: Schedule, load: int) -> float:
    makers = [schedule.graph.maker[b.value] for b in schedule.buffers if b.storage == storage.name]
    node = makers[0] if makers else schedule.graph.nodes[0]

    def elements(dim: Dim) -> float:
        if dim.symbol.startswith("rows(") and comes_one_sided(schedule, dim.symbol[len("rows(") : -1]):
            return dim.scale * room_for(schedule, dim.symbol[len("rows(") : -1], load)
        return count(dim, schedule, node, load)

    return storage.dtype.bytes * max(map(elements, storage.sizes), default=0.0)


def roundings(schedule: Schedule, timeline: Timeline) -> int:
    """On the longest way from input to result, by the implementations that the timeline took."""
    taken = {event.node: event.impl for event in timeline.events}
    deep: dict[str, int] = {}
    for node in schedule.graph.nodes:
        own = _own(node, taken.get(node.name, ""))
        before = max((deep.get(value, 0) for value in node.ins), default=0)
        deep.update(dict.fromkeys(node.outs, before + own if node.info.role is not Role.CONTROL else 0))
    return max((deep.get(value, 0) for value in schedule.graph.results), default=0)


def _own(node: Node, impl: str) -> int:
    if node.kind not in _ROUNDS:
        return 0
    # Only the persistent kernel applies the activation to its fp32 sums.
    return 2 if isinstance(node.attrs, ExpertGemmActAttrs) and impl != "persistent" else 1


def held_bytes(schedule: Schedule) -> float:
    """Bytes of the weights that a rank holds on its device."""
    held, away = 0.0, offloaded(schedule.graph)
    for param in schedule.graph.params:
        if param.name in away:
            continue
        size = param.type.dtype.bytes * prod(dim.scale for dim in param.type.shape)
        held += size / schedule.ep if param.sharded else size
    return held


def offloaded(graph: Graph) -> frozenset[str]:
    """The weights that stay in the memory of the host."""
    return frozenset(name for node in graph.nodes if node.info.from_host for name in node.params)
