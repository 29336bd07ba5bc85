"""Buffers: large enough, of the right type, one for every row, and never shared by two that live at the same time; what
other ranks write lies alone, in memory that every rank has."""

from __future__ import annotations

from itertools import pairwise

from epsc.ir.dims import Cuts, Dim
from epsc.ir.errors import Faults
from epsc.ir.schedule import Buffer, Schedule


def check_memory(schedule: Schedule, faults: Faults) -> None:
    """Sizes and sharing. That sharing is also *ordered* is the hazard check's business."""
    graph = schedule.graph
    storages = {storage.name: storage for storage in schedule.storages}
    if len(storages) < len(schedule.storages):
        faults.add("duplicate-storage", "two storages have one name")
    most = {storage.name: _most(storage.sizes) for storage in schedule.storages}
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
        elif storage.dtype != buffer.type.dtype or not _holds_any(most[storage.name], needed.numel):
            sizes = ", ".join(map(str, storage.sizes)) or "0"
            faults.add(
                "small-storage",
                f"`{buffer.key}` needs {needed.numel} elements of {needed.dtype}, but its storage "
                f"`{storage.name}` holds {sizes} of {storage.dtype}",
                span,
            )
    _check_symmetric(schedule, faults)
    _check_sharing(schedule, by_value, faults)


def _check_symmetric(schedule: Schedule, faults: Faults) -> None:
    """Other ranks write when they get there: no step of this rank may use that memory for anything else, ever."""
    symmetric = {storage.name for storage in schedule.storages if storage.symmetric}
    first: dict[str, Buffer] = {}
    for buffer in schedule.buffers:
        node = schedule.graph.maker.get(buffer.value)
        span = node.span if node else None
        written_by_others = node is not None and node.info.one_sided
        if written_by_others and buffer.storage not in symmetric:
            faults.add(
                "not-symmetric",
                f"other ranks write `{buffer.key}`, but its storage `{buffer.storage}` is this rank's alone",
                span,
            )
        if not written_by_others and buffer.storage in symmetric:
            faults.add(
                "shared-symmetric",
                f"`{buffer.key}` lies in the symmetric storage `{buffer.storage}`, where other ranks write",
                span,
            )
        if buffer.storage in symmetric and (other := first.setdefault(buffer.storage, buffer)) is not buffer:
            faults.add(
                "shared-symmetric",
                f"`{other.key}` and `{buffer.key}` share the symmetric storage `{buffer.storage}`, which other ranks"
                " write when they get there",
                span,
            )


def _holds(have: Dim, need: Dim) -> bool:
    """Whether a size is certainly at least another: the same count, as often, of at least the same part."""
    covers = not have.cuts or have.cuts == need.cuts  # the whole is at least as many as any part
    return have.symbol == need.symbol and covers and have.scale >= need.scale


def _most(sizes: tuple[Dim, ...]) -> dict[tuple[str, Cuts], int]:
    """The largest of the sizes that count the same."""
    most: dict[tuple[str, Cuts], int] = {}
    for size in sizes:
        key = size.symbol, size.cuts
        most[key] = max(most.get(key, size.scale), size.scale)
    return most


def _holds_any(most: dict[tuple[str, Cuts], int], need: Dim) -> bool:
    """Whether one of the sizes `_holds` what is needed: as often the whole, or the same part."""
    keys = ((need.symbol, ()), (need.symbol, need.cuts))
    return any(key in most and most[key] >= need.scale for key in keys)


def _check_sharing(schedule: Schedule, by_value: dict[str, list[Buffer]], faults: Faults) -> None:
    """In issue order, a storage belongs to one buffer from its first use to its last; results belong to the caller."""
    graph = schedule.graph
    by_region: dict[tuple[str, Cuts], list[Buffer]] = {}
    for buffer in schedule.buffers:
        by_region.setdefault((buffer.value, buffer.cuts), []).append(buffer)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(schedule.steps):
        for ref in (*step.writes, *step.reads):
            maker = graph.maker.get(ref.value)
            if maker is None or not maker.info.makes_rows:
                continue
            buffers = [b for cuts in {(), ref.cuts} for b in by_region.get((ref.value, cuts), ())]
            if not buffers:
                faults.add("no-buffer", f"`{step.key}` uses {ref}, which has no buffer", graph.node[step.node].span)
            elif len(buffers) > 1:
                faults.add("two-buffers", f"`{step.key}` uses {ref}, which has two buffers", graph.node[step.node].span)
            for buffer in buffers:
                first.setdefault(buffer.key, i)
                last[buffer.key] = i
    for value in graph.results:
        for buffer in by_value.get(value, ()):
            last[buffer.key] = len(schedule.steps)
    _check_known(schedule, first, faults)
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


def _check_known(schedule: Schedule, first: dict[str, int], faults: Faults) -> None:
    """Memory is taken, at the latest, before a storage's first use: by then the host must know all of its sizes."""
    known = {
        f"{counted}({step.node.removesuffix('.sizes')})": i
        for counted in ("rows", "sends")
        for i, step in enumerate(schedule.steps)
        if schedule.graph.node[step.node].kind == "sizes"
    }
    taken: dict[str, int] = {}
    for buffer in schedule.buffers:
        if buffer.key in first:
            taken[buffer.storage] = min(taken.get(buffer.storage, first[buffer.key]), first[buffer.key])
    for storage in schedule.storages:
        for size in storage.sizes:
            if storage.name in taken and known.get(size.symbol, -1) > taken[storage.name]:
                faults.add(
                    "unknown-size",
                    f"the storage `{storage.name}` holds up to {size} elements, but is used (step"
                    f" {taken[storage.name]}) before the host knows how many that is (step {known[size.symbol]})",
                )
