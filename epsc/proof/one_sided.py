"""One-sided transfers: what other ranks write here must be there before it is read, and read before it is overwritten.

Nothing but signals orders one rank against another. So two ranks and two forwards are laid out side by side, and every
read of memory that others write is held against every write of it: those of the same forward must be finished before,
those of the next must begin after. Two ranks are enough: more of them add no order that could be missing between any
two, and none that a third passes on is missing where it is played by the other, because a wait for every rank names no
one. What holds for the next forward holds for all that follow, because each comes after the one before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from epsc.ir.errors import Faults
from epsc.ir.regions import Regions
from epsc.ir.schedule import HOST_LANE, Schedule, Step
from epsc.proof.happens import Happens

_OWN, _OTHER = 0, 1
"""Of the ranks that are laid out: the one that reads, and the first of those that write."""
_END = "the end"


def check_one_sided(schedules: Sequence[Schedule], faults: Faults, others: int = 1) -> None:
    """Add a fault for every read of one-sided rows that a signal does not order; nothing where there are none.

    `schedules[r]` is what rank r runs; one schedule stands for all ranks when they are the same. So many `others` are
    laid out beside each rank; more than one finds nothing else, and takes longer.
    """
    distinct = list({id(schedule): schedule for schedule in schedules}.values())
    for own, other in product(distinct, repeat=2):
        writers = _writers(other)
        happens = _laid_out((own, *[other] * others)) if writers else None
        if happens:
            _check_reads(own, writers, happens, faults)


def _writers(schedule: Schedule) -> dict[str, Regions[Step]]:
    """The steps that write into the memory of other ranks, by value and the region of it."""
    found: dict[str, Regions[Step]] = {}
    for step in schedule.steps:
        if schedule.node(step).info.one_sided:
            for ref in step.writes:
                found.setdefault(ref.value, Regions()).add(ref.cuts, step)
    return found


def _check_reads(own: Schedule, writers: dict[str, Regions[Step]], happens: Happens, faults: Faults) -> None:
    for step in own.steps:
        for value, cuts in dict.fromkeys((ref.value, ref.cuts) for ref in step.reads if ref.value in writers):
            for writer in writers[value].meeting(cuts):
                span = own.node(step).span
                if not happens.before(_key(0, _OTHER, writer), _key(0, _OWN, step)):
                    faults.add(
                        "unsignalled",
                        f"`{step.key}` reads `{value}` while `{writer.key}` of another rank may still be writing it",
                        span,
                        help=f"make `{step.key}` wait for `{writer.key}` on every rank",
                    )
                elif not happens.before(_key(0, _OWN, step), _key(1, _OTHER, writer)):
                    faults.add(
                        "overrun",
                        f"`{writer.key}` of another rank's next forward may overwrite `{value}` before `{step.key}`"
                        " has read it",
                        span,
                        help="some step of every rank must come after a signal of all ranks behind that read",
                    )


def _key(forward: int, rank: int, step: Step) -> str:
    return f"{forward}/{rank}/{step.key}"


def _laid_out(schedules: Sequence[Schedule]) -> Happens | None:
    """Two forwards of each rank; None if they never come to the end, which is a fault of its own. A forward begins, on
    every lane, after all lanes of the one before it."""
    lanes = [{lane.name: f"{rank}/{lane.name}" for lane in own.lanes} for rank, own in enumerate(schedules)]
    ends = [f"{rank}/{_END}" for rank in range(len(schedules))]
    happens = Happens([*(name for own in lanes for name in own.values()), *ends])
    stopped: list[list[str]] = [[] for _ in schedules]
    """Of each rank: what its host stopped for last, and everything issued since comes after."""
    for forward in (0, 1):
        # The host runs ahead: of its steps only waits say when they are.
        fresh = [set(own) - {HOST_LANE} for own in lanes]
        left = [deque(schedule.steps) for schedule in schedules]
        moved = True
        while moved:
            moved = False
            for rank, steps in enumerate(left):
                while steps and (waits := _waits(happens, forward, rank, len(left), steps[0])) is not None:
                    step, moved = steps.popleft(), True
                    key = _key(forward, rank, step)
                    if forward and step.lane in fresh[rank]:
                        waits.append(ends[rank])
                        fresh[rank].discard(step.lane)
                    happens.add(_placed(step, key, lanes[rank][step.lane]), [*waits, *stopped[rank]])
                    if step.lane == HOST_LANE:
                        stopped[rank] = [key]
        if any(left):
            return None
        for rank, schedule in enumerate(schedules if not forward else ()):
            last = {step.lane: _key(forward, rank, step) for step in schedule.steps}
            happens.add(_placed(schedule.steps[-1], ends[rank], ends[rank]), list(last.values()))
    return happens


def _waits(happens: Happens, forward: int, rank: int, ranks: int, step: Step) -> list[str] | None:
    """What a step waits for; None while another rank has not come to it. A wait for what this rank issues later
    guarantees nothing."""
    found = []
    for wait in step.waits:
        if wait.everywhere:
            keys = [f"{forward}/{each}/{wait.step}" for each in range(ranks)]
            if any(key not in happens for key in keys):
                return None
            found += keys
        elif f"{forward}/{rank}/{wait.step}" in happens:
            found.append(f"{forward}/{rank}/{wait.step}")
    return found


def _placed(step: Step, key: str, lane: str) -> Step:
    """A step that stands for another: only its key and its lane count."""
    return replace(step, node=key, cuts=(), lane=lane)
