"""How long the steps of an emitted program take when nothing runs beside them.

The program is not changed. It asks `layer.run.now()` for the time before and after each step while `layer.run.spans` is
a list; here that function also waits: before a step for everything that was issued and for the other ranks, after it
for the step itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from epsc.bench.contender import Contender
from epsc.bench.ranks import Ranks

HEAD_START = 2_000_000
"""Clock cycles, about 1 ms, that the GPU idles before a step, so that the host has launched it by then: for a router of
torch ops it takes 0.4 ms."""

REPEATS = 3
"""Forwards of each input; of each step the median counts."""

ROLES = ("transfer", "compute", "host")


@dataclass(frozen=True)
class Alone:
    """Milliseconds of a forward's steps, each run alone, summed up on the slowest rank; the mean over all inputs."""

    transfer: float
    compute: float
    host: float

    def hidden(self, together: float) -> float | None:
        """The share of the shorter of the two that vanishes when all runs together; None where one takes no time.

        Negative: gaps and what steps take from each other cost more than overlap saves.
        """
        shorter = min(self.transfer, self.compute)
        return (self.transfer + self.compute - together) / shorter if shorter > 0 else None


def alone(ranks: Ranks, contender: Contender, inputs: list[Tensor]) -> Alone:
    """Run each input's forward step by step, some times over; on all ranks at the same time."""
    sums = dict.fromkeys(ROLES, 0.0)
    _forward(ranks, contender, inputs[0])
    for x in inputs:
        runs = [_forward(ranks, contender, x) for _ in range(REPEATS)]
        for i, (role, _) in enumerate(runs[0]):
            sums[role] += median(run[i][1] for run in runs) / len(inputs)
    contender.status()
    return Alone(*(max(ranks.everyone(sums[role])) for role in ROLES))


def lonely(ranks: Ranks, run: Any) -> Callable[[], Any]:
    """A clock that lets a step run by itself: the program asks it before and after each."""
    at = ""
    here = torch.zeros(1, device=ranks.device)

    def now() -> Any:
        nonlocal at
        begins, at = run.at != at, run.at
        if ranks.device.type != "cuda":
            for lane in run.lanes:
                lane.drain()
            if begins:
                ranks.settle()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        if begins:
            ranks.settle()
            torch.cuda._sleep(HEAD_START)
            if ranks.world > 1:
                # Hosts leave a barrier up to 0.1 ms apart: without this, a transfer would count that as its own.
                dist.all_reduce(here)
            event.record()
        else:
            event.record()
            torch.cuda.synchronize()
        return event

    return now


def _forward(ranks: Ranks, contender: Contender, x: Tensor) -> list[tuple[str, float]]:
    """Role and milliseconds of each step."""
    run = contender.layer.run
    cuda = ranks.device.type == "cuda"
    before = run.now
    spans: list[tuple[str, str, Any, Any]] = []
    run.now, run.spans = lonely(ranks, run), spans
    try:
        contender.layer(x)
        ranks.settle()
    finally:
        run.now, run.spans = before, None
    return [
        (
            "transfer" if step in contender.transfers else "host" if lane == "host" else "compute",
            float(start.elapsed_time(end)) if cuda else (end - start) * 1e3,
        )
        # Transfers by threads say late that they are done.
        for lane, step, start, end in sorted(spans, key=lambda span: span[1])
    ]
