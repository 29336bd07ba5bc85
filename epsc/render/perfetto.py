"""A prediction of every rank in Chrome's trace format, for ui.perfetto.dev: beside a run that a program traced, if
there is one.

A process per rank and a thread per lane, steps named by their keys, as an emitted program's `--trace` writes them.
Perfetto colours slices by name, so a step has one colour in both. Waits are flows: from the end of the step that is
waited for to the start of the one that waits; signals come from every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from epsc.ir.schedule import Schedule
from epsc.machine.timeline import Event, Timeline
from epsc.render.measured import Measured

_US = 1e6
_ALL_TO_ALL = 16
"""Up to so many ranks, signals are drawn from every rank to every rank; beyond, to rank 0 only: they go by squares."""
_THREADS = 1000
"""Thread ids of a process start at its own multiple of this: Perfetto mixes up two threads that share an id."""
_INSIDE_US = 1e-3
"""A flow leaves so long before the end of its slice: on the edge, it would belong to none."""


def perfetto(schedule: Schedule, predicted: Sequence[Timeline], run: Measured | None = None) -> dict[str, Any]:
    """The trace as JSON data: every rank as predicted, and every rank of `run` right below the same rank.

    `predicted`: a timeline of all ranks, or one of each kind of them.
    """
    ranks = range(schedule.ranks)
    of_rank = {rank: timeline for timeline in predicted for rank in timeline.ranks or ranks}
    events: list[dict[str, Any]] = []
    order = {lane: i for i, lane in enumerate(_lanes(schedule))}
    for rank in ranks:
        pid = 2 * rank if run else rank
        name = f"rank {rank}, predicted" if run else f"rank {rank}"
        events += _named(pid, name, order)
        events += [_slice(event, pid, order, "predicted", schedule) for event in of_rank[rank].events]
    events += _flows(schedule, of_rank, order, 2 if run else 1, 0, "predicted")
    for rank, measured in run.ranks.items() if run else ():
        events += _named(2 * rank + 1, f"rank {rank}, measured", order)
        events += [_slice(event, 2 * rank + 1, order, "measured", schedule) for event in measured.events]
    if run:
        events += _flows(schedule, run.ranks, order, 2, 1, "measured")
    for number, event in enumerate(e for e in events if e["ph"] == "s"):
        event["id"] = number
    for number, event in enumerate(e for e in events if e["ph"] == "f"):
        event["id"] = number
    about = {"schedule": schedule.name, "tokens_per_rank": predicted[0].load, "ranks": schedule.ep}
    if run:
        about["clocks"] = run.clocks
    return {"displayTimeUnit": "ns", "otherData": about, "traceEvents": events}


def _lanes(schedule: Schedule) -> list[str]:
    return list(dict.fromkeys([*(lane.name for lane in schedule.lanes), *(step.lane for step in schedule.steps)]))


def _named(pid: int, name: str, order: dict[str, int]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
    for lane, tid in order.items():
        thread = {"pid": pid, "tid": _thread(pid, tid)}
        yield {"ph": "M", "name": "thread_name", **thread, "args": {"name": lane}}
        yield {"ph": "M", "name": "thread_sort_index", **thread, "args": {"sort_index": tid}}


def _thread(pid: int, lane: int) -> int:
    return (pid + 1) * _THREADS + lane


def _us(seconds: float) -> float:
    """Whole nanoseconds, which is what Perfetto counts in: two steps that touch would overlap by a part of one."""
    return round(seconds * _US, 3)


def _slice(event: Event, pid: int, order: dict[str, int], kind: str, schedule: Schedule) -> dict[str, Any]:
    told: dict[str, Any] = {"role": event.role.value}
    if event.impl:
        work = event.work
        told |= {"implementation": event.impl, "rows": round(work.rows), "flops": round(work.flops)}
        told |= {"memory_bytes": round(work.hbm_bytes), "link_bytes": round(work.link_bytes)}
    if event.waits:
        told["us_until_all_ranks_came"] = _us(event.waits)
    if event.waited_for:
        told["waited_for"] = event.waited_for
    if event.step in schedule.step and (places := schedule.node(schedule.step[event.step]).places):
        told["python"] = "; ".join(place.comment for place in places)
    tid = _thread(pid, order.setdefault(event.lane, len(order)))
    times = {"ts": _us(event.start), "dur": round(_us(event.end) - _us(event.start), 3)}
    return {"ph": "X", "name": event.step, "cat": kind, "pid": pid, "tid": tid, **times, "args": told}


def _flows(
    schedule: Schedule, ranks: dict[int, Timeline], order: dict[str, int], stride: int, offset: int, kind: str
) -> Iterator[dict[str, Any]]:
    """Two events for each wait: `s` in the slice that is waited for, `f` at the start of the one that waits."""
    for rank, timeline in ranks.items():
        for step in schedule.steps:
            for wait in step.waits:
                signal = wait.everywhere and (len(ranks) <= _ALL_TO_ALL or rank == 0)
                for other in ranks if signal else (rank,):
                    before, after = ranks[other].event.get(wait.step), timeline.event.get(step.key)
                    if before is None or after is None:
                        continue
                    name = {"name": "signal" if wait.everywhere else "wait", "cat": f"{kind} waits"}
                    end = max(_us(before.start), round(_us(before.end) - _INSIDE_US, 3))
                    told = {"value": wait.value, "hazard": wait.hazard.value}
                    pid, then = other * stride + offset, rank * stride + offset
                    here = {"pid": pid, "tid": _thread(pid, order[before.lane]), "ts": end}
                    yield {"ph": "s", **name, **here, "args": told}
                    there = {"pid": then, "tid": _thread(then, order[after.lane]), "ts": _us(after.start)}
                    yield {"ph": "f", "bp": "e", **name, **there, "args": told}
