"""Ranks that stay: processes in one gloo group that run emitted programs, job after job, and say where they hang.

Starting torch costs seconds; a job costs milliseconds. A job that outlasts its time limit fails with the step that each
rank was at.
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

LIMIT_S = 60
SOON_S = 30
"""So long others have once a rank has failed; what they say then is worth waiting for."""


@dataclass(frozen=True)
class Job:
    """One program on inputs of its own for each rank, against the interpreter."""

    program: str
    """Path of the emitted file."""
    graph: str
    """Text of the lowered graph that it was made from, for the interpreter."""
    tokens: tuple[int, ...]
    """Per rank."""
    routing: str = "random"
    """random; one: every token wants the same experts; shunned: nobody wants expert 0; skewed: some are wanted more."""
    seed: int = 0
    forwards: int = 2
    more: tuple[tuple[int, ...], ...] = ()
    """Tokens of ranks in further forwards, which follow one another in turn: as many as `forwards` says."""
    told: int | None = None
    """Tokens of the fullest rank, as the layer is told."""
    within: int = 0
    """Ranks of a group, of which there are then several, each with the experts of its own; 0: all are one."""


@dataclass
class Result:
    """What one rank found."""

    error: float = 0.0
    """Largest difference to the interpreter over the largest value, over all forwards."""
    choices: dict[str, int] = field(default_factory=dict)
    received: tuple[int, ...] = ()
    fault: str = ""


class Ranks:
    """`count` processes; `run` gives every one of them a job and waits for all."""

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self.stopped = False
        """Ranks of which one hung take no more jobs."""
        # Forked from a process that has loaded torch, and does nothing else: eight ranks cost hardly more than one.
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "epsc.interpret", __name__])
        self.pipes: list[Connection] = []
        self.where: list[Connection] = []
        self.processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            asking, answering = context.Pipe()
            store = folder / f"store{count}"
            process = context.Process(target=_work, args=(rank, count, str(store), theirs, answering), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.where.append(asking)
            self.processes.append(process)

    def run(self, job: Job, limit: float = LIMIT_S) -> list[Result]:
        """Results by rank. Fails with the place of every rank when one of them does not answer in time, or soon after
        another has failed: that one may wait for it forever."""
        for pipe in self.pipes:
            pipe.send(job)
        found: dict[int, Result] = {}
        until = time.monotonic() + limit
        while len(found) < self.count and (left := until - time.monotonic()) > 0:
            waited = [pipe for rank, pipe in enumerate(self.pipes) if rank not in found]
            for pipe in connection.wait(waited, left):
                rank = self.pipes.index(pipe)  # type: ignore[arg-type]
                found[rank] = self.pipes[rank].recv()
                if found[rank].fault:
                    until = min(until, time.monotonic() + SOON_S)
        faults = [f"rank {rank}: {result.fault}" for rank, result in sorted(found.items()) if result.fault]
        if silent := [str(rank) for rank in range(self.count) if rank not in found]:
            faults.append(f"rank {' and '.join(silent)} did not finish in {limit} s; {self.places()}")
            self.stop()
        assert not faults, "\n".join(faults)
        return [found[rank] for rank in range(self.count)]

    def places(self) -> str:
        """The step that each rank issued last."""
        found = []
        for rank, pipe in enumerate(self.where):
            pipe.send("where")
            found.append(f"rank {rank} is at {pipe.recv() if pipe.poll(5) else 'an unknown place'}")
        return "; ".join(found)

    def stop(self) -> None:
        self.stopped = True
        for process in self.processes:
            process.kill()
            process.join()


_modules: dict[str, tuple[Any, int]] = {}
"""Program -> its layer, and the first of the ranks that hold the same tokens as this one."""


def _work(rank: int, count: int, store: str, jobs: Connection, where: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=120)
    )
    at: dict[str, Any] = {}

    def answer() -> None:
        while True:
            where.recv()
            layer = at.get("layer")
            where.send(layer.run.at if layer is not None else "no layer yet")

    threading.Thread(target=answer, daemon=True).start()
    while True:
        job = jobs.recv()
        try:
            jobs.send(_one(job, rank, at))
        except Exception:
            jobs.send(Result(fault=traceback.format_exc()))


def load_program(path: str | Path) -> ModuleType:
    """Import an emitted file by its path. Its name holds that of its folder: others have files of the same name."""
    spec = importlib.util.spec_from_file_location(f"{Path(path).parent.name}_{Path(path).stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def layer_class(module: ModuleType) -> Any:
    """The nn.Module that an emitted file holds."""
    from torch import nn

    (found,) = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, nn.Module) and v.__module__ == module.__name__
    ]
    return found


def group_of(rank: int, size: int) -> Any:
    """The group of a rank: of `size` neighbours. All ranks make all groups."""
    import torch.distributed as dist

    firsts = range(0, dist.get_world_size(), size)
    return [dist.new_group(list(range(first, first + size))) for first in firsts][rank // size]


def _one(job: Job, rank: int, at: dict[str, Any]) -> Result:
    import torch

    from epsc.interpret import interpret
    from epsc.interpret.weights import random_inputs, random_weights
    from epsc.ir.graph import Graph

    if job.program not in _modules:
        module = load_program(job.program)
        modules = {name: module.stand_in(name) for name in getattr(module, "GIVEN", ())}
        more = {"given": modules} if modules else {}
        group = group_of(rank, job.within) if job.within else None
        layer = layer_class(module)(group, dtype=torch.float32, device="cpu", **more)
        _modules[job.program] = layer, getattr(module, "holder", int)(rank), modules
    layer, rank, modules = _modules[job.program]
    at["layer"] = layer
    graph = Graph.parse(job.graph)
    weights = random_weights(graph, job.seed, torch.float32)
    route(weights, graph, job.routing)
    layer.load(weights)
    layer.run.poison = True
    layer.choices.clear()
    result = Result()
    for forward in range(job.forwards):
        tokens = (job.tokens, *job.more)[forward % (1 + len(job.more))][rank]
        made = random_inputs(graph, tokens, job.seed * 1000 + forward * 100 + rank, torch.float32)
        given = {name: made[name].abs() for name in graph.inputs}
        y = layer(*given.values(), **({} if job.told is None else {"most": job.told}))
        (expected,) = interpret(graph, given, weights, modules=modules)
        assert y.shape == expected.shape, (y.shape, expected.shape)
        assert torch.isfinite(y).all(), "the result holds what was never written"
        if y.numel():
            scale = float(expected.abs().max()) or 1.0  # where no token is sent anywhere, all is zero
            result.error = max(result.error, float((y - expected).abs().max()) / scale)
    result.choices = {f"{step} {impl}": n for (step, impl), n in layer.choices.items()}
    return result


def route(weights: dict[str, Any], graph: Any, routing: str) -> None:
    """Make routers prefer experts as `routing` says; inputs are positive, so a row's mean is how much it is wanted."""
    import torch

    for node in graph.nodes:
        if node.kind != "route":
            continue
        weight = weights[node.params[0]]
        experts = len(weight)
        push = torch.zeros(experts)
        if routing == "one":
            push = torch.arange(experts, 0, -1).float()
        elif routing == "shunned":
            push[0] = -3.0
        elif routing == "skewed":
            push = torch.linspace(2, -2, experts)
        weight += push[:, None] / weight.shape[1] ** 0.5 * 0.5
