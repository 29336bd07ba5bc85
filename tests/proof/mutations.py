"""Ways to break a proven schedule. Each is a real fault, so the proof must refuse every one of them.

A mutator yields (what was done, the broken schedule, what the other ranks run), at all places that `sites` gives it,
in that order: stopping early is a sample. `MUTATORS` says which diagnostics may speak of each, so that no fault is
caught by accident only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from random import Random
from typing import Any

from epsc.ir.dims import Dim, Tensor, overlap
from epsc.ir.schedule import HOST_LANE, Buffer, Hazard, Ref, Schedule, Stage, Step, Storage, Wait

Mutant = tuple[str, Schedule, tuple[Schedule, ...]]
Sites = Callable[[Iterable[Any]], list[Any]]
"""All places where a schedule can be broken in some way, in the order in which to try them."""
Mutator = Callable[[Schedule, Sites], Iterator[Mutant]]


def shuffled(random: Random) -> Sites:
    """Places in random order."""

    def sites(found: Iterable[Any]) -> list[Any]:
        places = list(found)
        random.shuffle(places)
        return places

    return sites


def remove_wait(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """Every wait that synchronise left is one that a race needs."""
    for i, step in sites(enumerate(schedule.steps)):
        for wait in step.waits:
            waits = tuple(w for w in step.waits if w is not wait)
            if not wait.everywhere:
                yield f"{step.key} no longer waits for {wait.step}", _with(schedule, i, replace(step, waits=waits)), ()


def drop_signal(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A step no longer waits for what all ranks write here."""
    for i, step in sites(enumerate(schedule.steps)):
        for wait in step.waits:
            waits = tuple(w for w in step.waits if w is not wait)
            if wait.everywhere:
                yield f"{step.key} waits for no rank's {wait.step}", _with(schedule, i, replace(step, waits=waits)), ()


def wait_for_own_rank_only(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """An event where a signal is needed: it says that this rank has written, not that the others have."""
    for i, step in sites(enumerate(schedule.steps)):
        for wait in step.waits:
            waits = tuple(replace(w, everywhere=False) if w is wait else w for w in step.waits)
            if wait.everywhere:
                yield f"{step.key} waits for its own {wait.step}", _with(schedule, i, replace(step, waits=waits)), ()


def wait_for_later(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """An event that is not recorded yet holds nobody up; on a host it holds up for ever."""
    for i, step in sites(enumerate(schedule.steps)):
        for later in schedule.steps[i : i + 4]:
            wait = Wait(later.key, later.writes[0].value, Hazard.RAW)
            waiting = replace(step, waits=(*step.waits, wait))
            yield f"{step.key} waits for {later.key}", _with(schedule, i, waiting), ()


def swap_collectives(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """One rank issues two transfers of a communicator the other way round."""
    steps = schedule.steps
    for (i, a), (j, b) in sites(combinations([(i, s) for i, s in enumerate(steps) if s.comm], 2)):
        if a.comm == b.comm:
            swapped = [*steps[:i], b, *steps[i + 1 : j], a, *steps[j + 1 :]]
            yield f"rank 1 swaps {a.key} and {b.key}", schedule, (schedule.with_steps(tuple(swapped)),)


def drop_read(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A step forgets one of the values that its op needs."""
    for i, step in sites(enumerate(schedule.steps)):
        for ref in step.reads:
            reads = tuple(r for r in step.reads if r is not ref)
            yield f"{step.key} forgets that it reads {ref}", _with(schedule, i, replace(step, reads=reads)), ()


def narrow_read(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A chunk says that it reads its part of something, such as an index, of which it needs the whole."""
    for i, step in sites(enumerate(schedule.steps)):
        for n, ref in enumerate(step.reads):
            if step.cuts and not ref.cuts:
                reads = (*step.reads[:n], Ref(ref.value, step.cuts), *step.reads[n + 1 :])
                yield f"{step.key} reads only its part of {ref}", _with(schedule, i, replace(step, reads=reads)), ()


def widen_write(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A chunk says that it writes all of a value, of which it makes a part."""
    for i, step in sites(enumerate(schedule.steps)):
        if step.cuts:
            writes = tuple(Ref(ref.value) for ref in step.writes)
            yield f"{step.key} claims to write everything", _with(schedule, i, replace(step, writes=writes)), ()


def shrink_buffer(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A buffer half as wide, or with half the rows."""
    for i, buffer in sites(enumerate(schedule.buffers)):
        for n, dim in enumerate(buffer.type.shape):
            shape = (*buffer.type.shape[:n], Dim(dim.scale // 2, dim.symbol, dim.cuts), *buffer.type.shape[n + 1 :])
            small = replace(buffer, type=Tensor(buffer.type.dtype, shape))
            yield f"{buffer} becomes {small.type}", _with_buffer(schedule, i, small), ()


def shrink_storage(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """Half the memory, for each of the sizes that a storage must reach."""
    for i, storage in sites(enumerate(schedule.storages)):
        for n, size in enumerate(storage.sizes):
            half = Dim(size.scale // 2, size.symbol, size.cuts)
            for what, sizes in (("half", (half,)), ("nothing", ())):
                small = replace(storage, sizes=(*storage.sizes[:n], *sizes, *storage.sizes[n + 1 :]))
                yield f"{storage} reaches {what} of {size}", _with_storage(schedule, i, small), ()


def drop_buffer(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A value of rows has nowhere to live."""
    for i, buffer in sites(enumerate(schedule.buffers)):
        left = (*schedule.buffers[:i], *schedule.buffers[i + 1 :])
        yield f"{buffer.key} has no buffer", replace(schedule, buffers=left), ()


def alias_buffers(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """Two buffers that live at the same time are put into one storage, which is large enough for both."""
    after = Reach(schedule)
    home = {storage.name: storage for storage in schedule.storages}
    for a, b in sites(combinations(schedule.buffers, 2)):
        if a.storage == b.storage or a.type.dtype != b.type.dtype:
            continue
        if after.apart(_uses(schedule, a), _uses(schedule, b)):
            continue
        for i, (moved, to) in enumerate(((a, b.storage), (b, a.storage))):
            place = schedule.buffers.index(moved)
            large = Storage(to, home[to].dtype, (*home[to].sizes, moved.type.numel))
            storages = tuple(large if s.name == to else s for s in schedule.storages)
            broken = replace(_with_buffer(schedule, place, replace(moved, storage=to)), storages=storages)
            yield f"{moved.key} moves to {(b, a)[i].key} in {to}", broken, ()


def share_symmetric(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """What other ranks write gets company, at whatever time: no step of this rank says when they write."""
    symmetric = {storage.name: storage for storage in schedule.storages if storage.symmetric}
    for a, b in sites(combinations(schedule.buffers, 2)):
        for i, (moved, to) in enumerate(((a, b.storage), (b, a.storage))):
            if a.storage == b.storage or a.type.dtype != b.type.dtype or to not in symmetric:
                continue
            place = schedule.buffers.index(moved)
            large = replace(symmetric[to], sizes=(*symmetric[to].sizes, moved.type.numel))
            storages = tuple(large if s.name == to else s for s in schedule.storages)
            broken = replace(_with_buffer(schedule, place, replace(moved, storage=to)), storages=storages)
            yield f"{moved.key} moves to {(b, a)[i].key} in symmetric {to}", broken, ()


def keep_symmetric_to_itself(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """Memory that other ranks write is this rank's alone."""
    for i, storage in sites(enumerate(schedule.storages)):
        if storage.symmetric:
            yield f"{storage.name} is not symmetric", _with_storage(schedule, i, replace(storage, symmetric=False)), ()


def give_away(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """Memory of this rank becomes such as others write into."""
    if not any(storage.symmetric for storage in schedule.storages):
        return
    for i, storage in sites(enumerate(schedule.storages)):
        if not storage.symmetric:
            yield f"{storage.name} is symmetric", _with_storage(schedule, i, replace(storage, symmetric=True)), ()


def move_before_maker(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A step is issued just before the one that makes what it reads."""
    steps = schedule.steps
    for i, step in sites(enumerate(steps)):
        for j, maker in sites(enumerate(steps[:i])):
            if _feeds(maker, step):
                moved = (*steps[:j], step, *steps[j:i], *steps[i + 1 :])
                yield f"{step.key} moves before {maker.key}", schedule.with_steps(moved), ()


def duplicate_step(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    for i, step in sites(enumerate(schedule.steps)):
        twice = (*schedule.steps[: i + 1], step, *schedule.steps[i + 1 :])
        yield f"{step.key} runs twice", schedule.with_steps(twice), ()


def drop_step(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    for i, step in sites(enumerate(schedule.steps)):
        left = (*schedule.steps[:i], *schedule.steps[i + 1 :])
        yield f"{step.key} is left out", schedule.with_steps(left), ()


def drop_step_on_one_rank(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """The other ranks wait for a transfer that never comes, or for a signal."""
    for i, step in sites(enumerate(schedule.steps)):
        if step.comm or schedule.node(step).info.one_sided:
            left = (*schedule.steps[:i], *schedule.steps[i + 1 :])
            yield f"rank 1 leaves out {step.key}", schedule, (schedule.with_steps(left),)


def oversubscribe(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """Two steps that may run at the same time keep more SMs to themselves than the chip has."""
    after = Reach(schedule)
    for (i, a), (j, b) in sites(combinations(enumerate(schedule.steps), 2)):
        if HOST_LANE in (a.lane, b.lane) or after(a.key, b.key):
            continue
        most = schedule.chip_sms // 2 + 1
        broken = _with(_with(schedule, i, replace(a, sms=most)), j, replace(b, sms=most))
        yield f"{a.key} and {b.key} keep {most} SMs each", broken, ()


def over_the_chip(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    for i, step in sites(enumerate(schedule.steps)):
        yield f"{step.key} wants a larger chip", _with(schedule, i, replace(step, sms=schedule.chip_sms + 1)), ()


def lose_lane(schedule: Schedule, sites: Sites) -> Iterator[Mutant]:
    """A step leaves its lane for one where nothing orders it, and does not wait for what it reads."""
    lanes = (*schedule.lanes, replace(schedule.lanes[0], name="elsewhere"))
    for i, step in sites(enumerate(schedule.steps)):
        # What only the host orders stays in order: a step that the host has stopped for is done.
        made_by = [s for s in schedule.steps[:i] if _feeds(s, step) and s.lane != HOST_LANE]
        if step.lane == HOST_LANE or not any(s.lane == step.lane for s in made_by):
            continue
        stopped = [j for j, s in enumerate(schedule.steps[:i]) if s.lane == HOST_LANE]
        if stopped and all(schedule.steps.index(s) < stopped[-1] for s in made_by):
            continue
        moved = _with(schedule, i, replace(step, lane="elsewhere", waits=()))
        yield f"{step.key} runs elsewhere", replace(moved, lanes=lanes), ()


MUTATORS: dict[Mutator, frozenset[str]] = {
    remove_wait: frozenset({"race"}),
    drop_signal: frozenset({"unsignalled"}),
    wait_for_own_rank_only: frozenset({"unsignalled"}),
    wait_for_later: frozenset({"late-wait", "deadlock"}),
    swap_collectives: frozenset({"rank-order", "unmade-value", "order"}),
    drop_read: frozenset({"operands"}),
    narrow_read: frozenset({"operands"}),
    widen_write: frozenset({"operands"}),
    shrink_buffer: frozenset({"small-buffer"}),
    shrink_storage: frozenset({"small-storage"}),
    drop_buffer: frozenset({"no-buffer"}),
    alias_buffers: frozenset({"aliased", "race", "unknown-size"}),
    share_symmetric: frozenset({"shared-symmetric"}),
    keep_symmetric_to_itself: frozenset({"not-symmetric"}),
    give_away: frozenset({"shared-symmetric"}),
    move_before_maker: frozenset({"unmade-value"}),
    duplicate_step: frozenset({"duplicate-step"}),
    drop_step: frozenset({"missing-op", "coverage"}),
    drop_step_on_one_rank: frozenset({"missing-op", "coverage"}),
    oversubscribe: frozenset({"sms-over-chip"}),
    over_the_chip: frozenset({"sms-over-chip"}),
    lose_lane: frozenset({"race"}),
}
"""Every way, and the codes of the diagnostics that may speak of it."""


# --- what happens before what, by brute force: nothing of the prover is used ------------------------------------------


class Reach:
    """Whether one step is certainly finished when another starts, by the closure of a graph."""

    def __init__(self, schedule: Schedule) -> None:
        self._before: dict[str, frozenset[str]] = {}
        last: dict[str, str] = {}
        stopped: set[str] = set()
        for step in schedule.steps:
            direct = {*([last[step.lane]] if step.lane in last else []), *(w.step for w in step.waits), *stopped}
            self._before[step.key] = frozenset(direct.union(*(self._before[key] for key in direct)))
            last[step.lane] = step.key
            if step.lane == HOST_LANE:
                stopped.add(step.key)

    def __call__(self, first: str, then: str) -> bool:
        return first in self._before[then]

    def apart(self, a: list[Step], b: list[Step]) -> bool:
        """Whether all of the one certainly comes before all of the other."""
        return all(self(x.key, y.key) for x in a for y in b) or all(self(y.key, x.key) for x in a for y in b)


def _uses(schedule: Schedule, buffer: Buffer) -> list[Step]:
    return [
        step
        for step in schedule.steps
        for ref in (*step.reads, *step.writes)
        if ref.value == buffer.value and overlap(ref.cuts, buffer.cuts)
    ]


def _feeds(maker: Step, step: Step) -> bool:
    return any(w.value == r.value and overlap(w.cuts, r.cuts) for w in maker.writes for r in step.reads)


# --- putting a piece back ---------------------------------------------------------------------------------------------


def _with(schedule: Schedule, i: int, step: Step) -> Schedule:
    return schedule.with_steps((*schedule.steps[:i], step, *schedule.steps[i + 1 :]))


def _with_buffer(schedule: Schedule, i: int, buffer: Buffer) -> Schedule:
    return replace(schedule, buffers=(*schedule.buffers[:i], buffer, *schedule.buffers[i + 1 :]))


def _with_storage(schedule: Schedule, i: int, storage: Storage) -> Schedule:
    return replace(schedule, storages=(*schedule.storages[:i], storage, *schedule.storages[i + 1 :]))


def unsynced(schedule: Schedule) -> Schedule:
    """The same schedule as it was before memory was given out, where only values can race."""
    return replace(schedule, stage=Stage.SYNCED, buffers=(), storages=())
