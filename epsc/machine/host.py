"""The host of a simulation: it issues steps one after the other, or replays a CUDA graph of all of them."""

from __future__ import annotations

from collections.abc import Collection, Generator

from epsc.ir.schedule import HOST_LANE, Schedule
from epsc.machine.balanced import size
from epsc.machine.device import Device
from epsc.machine.jobs import Job


def host(jobs: Collection[Job], device: Device, begin: float) -> Generator[None, float, float]:
    """Told the time, it issues as far ahead as it can, up to a step of its own that is not done; when all is issued."""
    clock, stopped_by = begin, ""
    now = yield
    for job in jobs:
        job.host_after = stopped_by
        if job.step.lane == HOST_LANE:
            job.issued = job.issue_end = clock
            while job.end > now:
                now = yield
            clock, stopped_by = job.end, job.step.key
        else:
            launches = max(1, job.priced.work.launches)
            step = min(job.issue_s, device.step_s)
            job.issued = clock + step + (job.issue_s - step) / launches
            clock = job.issue_end = clock + job.issue_s
    return clock


def replay_s(schedule: Schedule, device: Device, load: int) -> float:
    """To launch a graph, and to copy its inputs to where it reads them."""
    graph = schedule.graph
    return device.graph_s + sum(
        2 * size(graph.types[name], schedule, graph.nodes[0], load) / device.hbm_bytes_per_s for name in graph.inputs
    )
