"""How long the steps of an emitted program take when nothing runs beside them.

The program is not changed. It asks `layer.run.now()` for the time before and after each step while `layer.run.spans` is
a list; here that function also waits: before a step for everything that was issued and for the other ranks, after it
for the step itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epsc.bench.contender import Contender
from epsc.bench.ranks import Ranks

HEAD_START = 200_000
"""Clock cycles, about 0.1 ms, that the GPU idles before a step, so that the host has launched it by then."""


@dataclass(frozen=True)
class Alone:
    """Milliseconds of a forward's steps, each run alone, summed on the slowest rank; the median of several forwards."""

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
    """Run each input's forward step by step; on all ranks at the same time."""
    sums: list[dict[str, float]] = []
    for x in (inputs[0], *inputs):
        sums.append(_forward(ranks, contender, x))
        contender.status()
    return Alone(*(ranks.median([each[role] for each in sums[1:]]) for role in ("transfer", "compute", "host")))


def _forward(ranks: Ranks, contender: Contender, x: Tensor) -> dict[str, float]:
    run = contender.layer.run
    cuda = ranks.device.type == "cuda"
    before, at = run.now, ""
    spans: list[tuple[str, str, Any, Any]] = []

    def now() -> Any:
        nonlocal at
        begins, at = run.at != at, run.at
        if not cuda:
            for lane in run.lanes:
                lane.drain()
            if begins:
                ranks.settle()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        if begins:
            ranks.settle()
            torch.cuda._sleep(HEAD_START)
            event.record()
        else:
            event.record()
            torch.cuda.synchronize()
        return event

    run.now, run.spans = now, spans
    try:
        contender.layer(x)
        ranks.settle()
    finally:
        run.now, run.spans = before, None
    found = {"transfer": 0.0, "compute": 0.0, "host": 0.0}
    for lane, step, start, end in spans:
        role = "transfer" if step in contender.transfers else "host" if lane == "host" else "compute"
        found[role] += start.elapsed_time(end) if cuda else (end - start) * 1e3
    return found
