"""Buffers: large enough, of the right type, one for every row, and never shared by two that live at the same time."""

from __future__ import annotations

from itertools import pairwise

from epsc.ir.dims import Cuts, Dim
from epsc.ir.errors import Faults
from epsc.ir.kinds import Role
from epsc.ir.schedule import Buffer, Schedule


def check_memory(schedule: Schedule, faults: Faults) -> None:
    """Sizes and sharing. That sharing is also *ordered* is the hazard check's business."""
    graph = schedule.graph
    storages = {storage.name: storage for storage in schedule.storages}
    if len(storages) < len(schedule.storages):
        faults.add("duplicate-storage", "two storages have one name")
    by_value: dict[str, list[Buffer]] = {}
    for buffer in schedule.buffers:
        by_value.setdefault(buffer.value, []).append(buffer)
        if buffer.value not in graph.types:
            faults.add("unknown-value", f"the buffer `{buffer.key}` holds a value that the graph does not have")
            continue
        node = graph.maker.get(buffer.value)
        span = node.span if node else None
        needed = graph.types[buffer.value].cut(buffer.cuts)
        if (
            buffer.type.dtype != needed.dtype
            or len(buffer.type.shape) != len(needed.shape)
            or not all(_holds(have, need) for have, need in zip(buffer.type.shape, needed.shape, strict=False))
        ):
            faults.add("small-buffer", f"the buffer `{buffer.key}` is {buffer.type}, but holds {needed}", span)
        storage = storages.get(buffer.storage)
        if storage is None:
            faults.add("unknown-storage", f"`{buffer.key}` lies in `{buffer.storage}`, which is not declared", span)
        elif storage.dtype != buffer.type.dtype or not any(_holds(size, needed.numel) for size in storage.sizes):
            sizes = ", ".join(map(str, storage.sizes)) or "0"
            faults.add(
                "small-storage",
                f"`{buffer.key}` needs {needed.numel} elements of {needed.dtype}, but its storage "
                f"`{storage.name}` holds {sizes} of {storage.dtype}",
                span,
            )
    _check_sharing(schedule, by_value, faults)


def _holds(have: Dim, need: Dim) -> bool:
    """Whether a size is certainly at least another: the same count, as often, of at least the same part."""
    covers = not have.cuts or have.cuts == need.cuts  # the whole is at least as many as any part
    return have.symbol == need.symbol and covers and have.scale >= need.scale


def _check_sharing(schedule: Schedule, by_value: dict[str, list[Buffer]], faults: Faults) -> None:
    """In issue order, a storage belongs to one buffer from its first use to its last; results belong to the caller."""
    graph = schedule.graph
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(schedule.steps):
        for ref in (*step.writes, *step.reads):
            maker = graph.maker.get(ref.value)
            if maker is None or not (maker.info.role in (Role.MEMORY, Role.COMPUTE) or maker.kind == "all2all"):
                continue
            buffer = next((b for b in by_value.get(ref.value, ()) if b.cuts in ((), ref.cuts)), None)
            if buffer is None and not _covered(ref.cuts, by_value.get(ref.value, [])):
                faults.add("no-buffer", f"`{step.key}` uses {ref}, which has no buffer", graph.node[step.node].span)
                continue
            for used in [buffer] if buffer else by_value[ref.value]:
                first.setdefault(used.key, i)
                last[used.key] = i
    for value in graph.results:
        for buffer in by_value.get(value, ()):
            last[buffer.key] = len(schedule.steps)
    holders: dict[str, list[Buffer]] = {}
    for buffer in schedule.buffers:
        if buffer.key in first:
            holders.setdefault(buffer.storage, []).append(buffer)
    for storage, buffers in holders.items():
        buffers.sort(key=lambda b: first[b.key])
        for a, b in pairwise(buffers):
            if last[a.key] >= first[b.key]:
                node = graph.maker.get(b.value)
                faults.add(
                    "aliased",
                    f"`{a.key}` and `{b.key}` share the storage `{storage}`, but `{a.key}` is still used "
                    f"(until step {last[a.key]}) when `{b.key}` is first written (step {first[b.key]})",
                    node.span if node else None,
                )


def _covered(cuts: Cuts, buffers: list[Buffer]) -> bool:
    """Whether a whole use is served by buffers of all chunks."""
    return not cuts and bool(buffers) and len(buffers) == buffers[0].cuts[0].count
