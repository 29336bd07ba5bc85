"""Measuring contenders in turns, and what they are measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from epsc.bench.contender import Contender
from epsc.bench.handwritten import SUMS
from epsc.bench.ranks import Ranks
from epsc.bench.shape import Shape


@dataclass(frozen=True)
class Figures:
    """Milliseconds of a forward over rounds, each of them that of the slowest rank."""

    median: float
    p10: float
    p90: float
    most: float
    runs: tuple[float, ...]
    """The median of each run: what differs between them is noise."""

    @property
    def noise(self) -> float:
        return (max(self.runs) - min(self.runs)) / self.median

    @staticmethod
    def of(runs: list[list[float]]) -> Figures:
        every = [ms for run in runs for ms in run]
        tenths = quantiles(every, n=10, method="inclusive")
        return Figures(median(every), tenths[0], tenths[-1], max(every), tuple(map(median, runs)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    ranks: Ranks, contenders: list[Contender], inputs: list[Tensor], rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Milliseconds of a forward for each contender, round by round, of the slowest rank.

    In each round every contender runs once over all inputs, back to back as the layers of a model do, so that no input
    is still in the cache; the order moves on from round to round.
    """
    samples: dict[str, list[float]] = {c.name: [] for c in contenders}
    for i in range(warm_up + rounds):
        shift = i % len(contenders)
        for c in (*contenders[shift:], *contenders[:shift]):
            took = ranks.time([lambda c=c, x=x: c(x) for x in inputs])  # type: ignore[misc]
            if i >= warm_up:
                samples[c.name].append(took)
    return {name: ranks.slowest(each) for name, each in samples.items()}


def fastest_sum(ranks: Ranks, shape: Shape, tokens: int, dtype: torch.dtype) -> tuple[str, dict[str, float]]:
    """The way to sum weighted copies that is fastest here, and milliseconds of each."""
    rows = torch.randn(tokens * shape.top_k, shape.hidden, device=ranks.device).to(dtype)
    order = torch.randperm(len(rows), device=ranks.device)
    weights = torch.rand(tokens, shape.top_k, device=ranks.device)
    took = {}
    for name, way in SUMS.items():
        call: list[Callable[[], object]] = [lambda way=way: way(rows, order, weights)] * 4  # type: ignore[misc]
        ranks.time(call)
        took[name] = ranks.median([ranks.time(call) for _ in range(5)])
    return min(took, key=lambda name: took[name]), took


def all2alls(ranks: Ranks, tokens: int, top_k: int, hidden: int, dtype: torch.dtype) -> float | None:
    """Milliseconds of two all2alls by torch.distributed of evenly spread rows, there and back, and of nothing else;
    None for one rank."""
    if ranks.world == 1 or tokens * top_k < ranks.world:
        return None
    rows = torch.randn(tokens * top_k // ranks.world * ranks.world, hidden, device=ranks.device).to(dtype)
    other = torch.empty_like(rows)

    def both() -> None:
        dist.all_to_all_single(other, rows)
        dist.all_to_all_single(rows, other)

    ranks.time([both] * 2)
    return ranks.median([ranks.time([both] * 4) for _ in range(7)])


def kernels(ranks: Ranks, contender: Contender, inputs: list[Tensor], most: int = 25) -> list[dict[str, Any]]:
    """The kernels of a forward on this rank that take longest: name, launches and milliseconds per forward."""
    ranks.settle()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for x in inputs:
            contender(x)
        ranks.settle()
    found = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)[:most]
    return [
        {
            "kernel": e.key[:160],
            "launches": e.count / len(inputs),
            "ms": round(e.self_device_time_total / 1e3 / len(inputs), 4),
        }
        for e in found
    ]
