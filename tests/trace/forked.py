"""Ranks that are copies of this process: what is traced here once, they all have."""

from __future__ import annotations

import multiprocessing as mp
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist

LIMIT_S = 60


def forked(count: int, function: Callable[[int], Any]) -> list[Any]:
    """What `function` gives for each of `count` ranks in one gloo group. It must not raise on any of them."""
    context = mp.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, count, f"{folder}/store", function, theirs), daemon=True
            )
            process.start()
            started.append((process, ours))
        results = []
        for rank, (_, pipe) in enumerate(started):
            told = pipe.recv() if pipe.poll(LIMIT_S) else (None, f"nothing came in {LIMIT_S} s")
            results.append((rank, *told))
        for process, _ in started:
            process.kill()
            process.join()
    faults = [f"rank {rank}: {fault}" for rank, _, fault in results if fault]
    assert not faults, "\n".join(faults)
    return [value for _, value, _ in results]


def _work(rank: int, count: int, store: str, function: Callable[[int], Any], told: Connection) -> None:
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=LIMIT_S)
        )
        value = function(rank)
        dist.barrier()  # nobody leaves while others still talk to it
        told.send((value, ""))
    except BaseException:
        told.send((None, traceback.format_exc()))
