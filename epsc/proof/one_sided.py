"""One-sided transfers: what other ranks write here must be there before it is read, and read before it is overwritten.

Ranks run the same Schedule, forward after forward, and nothing but signals orders one against the other. So two ranks
and two forwards are laid out side by side, and every read of memory that others write is held against every write of
it: those of the same forward must be finished before, those of the next must begin after. What holds for two ranks
holds for all, because a wait for every rank names no one; what holds for the next forward holds for all that follow,
because each comes after the one before it.
"""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.errors import Faults
from epsc.ir.schedule import HOST_LANE, Schedule, Step
from epsc.proof.happens import Happens

_OWN, _OTHER = 0, 1
_END = "the end"


def check_one_sided(schedule: Schedule, faults: Faults) -> None:
    """Add a fault for every read of one-sided rows that a signal does not order; nothing where there are none."""
    graph = schedule.graph
    writers: dict[str, list[Step]] = {}
    for step in schedule.steps:
        if schedule.node(step).info.one_sided:
            for ref in step.writes:
                writers.setdefault(ref.value, []).append(step)
    if not writers:
        return
    happens = _laid_out(schedule)
    for step in schedule.steps:
        for value in dict.fromkeys(ref.value for ref in step.reads if ref.value in writers):
            for writer in writers[value]:
                span = graph.node[step.node].span
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


def _laid_out(schedule: Schedule) -> Happens:
    """Two forwards of two ranks. A forward begins, on every lane, after all lanes of the one before it."""
    ranks = (_OWN, _OTHER)
    lanes = [f"{rank}/{lane.name}" for rank in ranks for lane in schedule.lanes]
    happens = Happens([*lanes, *(f"{rank}/{_END}" for rank in ranks)])
    for forward in (0, 1):
        fresh = set(lanes)
        for step in schedule.steps:
            for rank in ranks:
                lane = f"{rank}/{step.lane}"
                waits = [
                    f"{forward}/{each}/{wait.step}"
                    for wait in step.waits
                    for each in (ranks if wait.everywhere else (rank,))
                    if f"{forward}/{each}/{wait.step}" in happens
                ]
                if forward and (lane in fresh or step.lane == HOST_LANE):
                    waits.append(f"{rank}/{_END}")
                fresh.discard(lane)
                happens.add(_placed(step, _key(forward, rank, step), lane), waits)
        if forward:
            break
        for rank in ranks:
            last = {step.lane: _key(forward, rank, step) for step in schedule.steps}
            happens.add(_placed(schedule.steps[-1], f"{rank}/{_END}", f"{rank}/{_END}"), list(last.values()))
    return happens


def _placed(step: Step, key: str, lane: str) -> Step:
    """A step that stands for another: only its key and its lane count."""
    return replace(step, node=key, cuts=(), lane=lane)
