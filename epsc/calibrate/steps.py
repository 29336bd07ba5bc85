"""A program's steps: how long each takes alone, and when each runs when all run."""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from epsc.bench.alone import lonely
from epsc.bench.contender import load_module
from epsc.bench.ranks import Ranks

REPEATS = 7
Spans = dict[str, tuple[float, float]]
"""Step -> start and end in seconds."""


class Program:
    """An emitted program with made-up weights."""

    def __init__(self, ranks: Ranks, path: Path) -> None:
        self.ranks, self.module = ranks, load_module(path)
        made = [
            each
            for _, each in inspect.getmembers(self.module, inspect.isclass)
            if issubclass(each, nn.Module) and each.__module__ == self.module.__name__ and hasattr(each, "load")
        ]
        self.layer: Any = made[0](device=ranks.device, dtype=torch.bfloat16)
        for weight in self.module.WEIGHTS.values():
            getattr(self.layer, weight.attribute).normal_(0, weight.scale)

    def measure(self, probe: dict[str, Any]) -> list[dict[str, Any]]:
        """For each load: seconds of each step alone, of the whole, of issuing it; and spans of a run, if wanted.

        Of several forwards the median; of ranks the slowest.
        """
        found = []
        for load in probe["loads"]:
            given = self.module.inputs(self.layer, load["tokens"], seed=1)
            self._spans(given, alone=False)
            alone = [self._spans(given, alone=True) for _ in range(REPEATS)]
            seconds = {step: median(run[step][1] - run[step][0] for run in alone) for step in alone[0]}
            entry: dict[str, Any] = {"tokens": load["tokens"], "alone": self._slowest(seconds)}
            walls = [self._wall(given) for _ in range(REPEATS)]
            whole, issued = ([wall[i] for wall in walls] for i in (0, 1))
            entry |= self._slowest({"whole": median(whole), "issued": median(issued)})
            if probe["together"]:
                entry["together"] = [self._spans(given, alone=False) for _ in range(REPEATS)]
            found.append(entry)
        return found

    def _slowest(self, seconds: dict[str, float]) -> dict[str, float]:
        everyone = self.ranks.everyone(seconds)
        return {name: max(each[name] for each in everyone) for name in seconds}

    def _wall(self, given: list[Any]) -> tuple[float, float]:
        """Seconds of a forward, and until the host had issued all of it."""
        self.ranks.settle()
        start = time.perf_counter()
        self.layer(*given)
        issued = time.perf_counter()
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, issued - start

    def _spans(self, given: list[Any], alone: bool) -> Spans:
        """Start and end of every step of a forward; `alone`: each waits for all before it, and all ranks for it."""
        run, cuda = self.layer.run, self.ranks.device.type == "cuda"
        before = run.now
        spans: list[tuple[str, str, Any, Any]] = []
        self.ranks.settle()
        origin = before()
        run.now, run.spans = (lonely(self.ranks, run) if alone else before), spans
        try:
            self.layer(*given)
            self.ranks.settle()
        finally:
            run.now, run.spans = before, None

        def since(moment: Any) -> float:
            return float(origin.elapsed_time(moment)) / 1e3 if cuda else moment - origin

        return {step: (since(start), since(end)) for _, step, start, end in spans}
