"""Ranks that stay: processes in one gloo group that run functions of `tests.trace.work`, one after the other."""

from __future__ import annotations

import multiprocessing as mp
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LIMIT_S = 60


class Ranks:
    """`count` processes; `run` lets every one of them call a function with its rank, and waits for all."""

    def __init__(self, count: int, folder: Path) -> None:
        context = mp.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            store = str(folder / f"store{count}")
            process = context.Process(target=_work, args=(rank, count, store, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: str, *args: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args))
        results = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(LIMIT_S), f"rank {rank} did not finish `{function}` in {LIMIT_S} s"
            results.append(pipe.recv())
        faults = [f"rank {rank}: {fault}" for rank, (_, fault) in enumerate(results) if fault]
        assert not faults, "\n".join(faults)
        return [value for value, _ in results]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _work(rank: int, count: int, store: str, jobs: Connection) -> None:
    import torch
    import torch.distributed as dist

    from tests.trace import work

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    while True:
        function, args = jobs.recv()
        try:
            jobs.send((getattr(work, function)(rank, *args), ""))
        except Exception:
            jobs.send((None, traceback.format_exc()))
