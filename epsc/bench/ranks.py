"""This rank among the others: who they are, what they say to each other, and how long things take."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass
class Ranks:
    device: torch.device
    rank: int = 0
    world: int = 1
    control: Any = None
    """A gloo group: what ranks say to each other here must not touch the device."""

    @staticmethod
    def join(device: str | None, patience: float) -> Ranks:
        """As torchrun started us; alone, and without torch.distributed, where it did not or started only one."""
        world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        mine = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(mine)
        if world == 1:
            return Ranks(mine)
        limit = timedelta(seconds=patience)
        # As emitted programs do.
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=limit)
        # A rank that failed waits here for those that are stuck in a transfer until `limit`.
        return Ranks(mine, dist.get_rank(), world, dist.new_group(backend="gloo", timeout=3 * limit))

    def everyone(self, value: T) -> list[T]:
        """The value of each rank, on each rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def settle(self) -> None:
        """All ranks are here, and their devices are idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.world > 1:
            dist.barrier(group=self.control)

    def time(self, forwards: Sequence[Callable[[], object]]) -> float:
        """Milliseconds of one of `forwards` on this rank, issued one after the other as in a model."""
        self.settle()
        if self.device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for forward in forwards:
                forward()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / len(forwards)
        before = time.perf_counter()
        for forward in forwards:
            forward()
        return (time.perf_counter() - before) * 1e3 / len(forwards)

    def slowest(self, samples: list[float]) -> list[float]:
        """Of each sample that of the slowest rank."""
        return list(map(max, zip(*self.everyone(samples), strict=True)))

    def median(self, samples: list[float]) -> float:
        return median(self.slowest(samples))

    def attempt(self, what: Callable[[], T]) -> tuple[T | None, str]:
        """What `what` returns, and ""; or None, and the reason, where it failed on some rank."""
        made, reason = None, ""
        try:
            made = what()
        except Exception as fault:
            reason = "".join(traceback.format_exception(fault)[-3:]).strip()
        reasons = self.everyone(reason)
        told = [f"rank {rank}: {each}" for rank, each in enumerate(reasons) if each and each not in reasons[:rank]]
        return (None, "\n".join(told)) if told else (made, "")
