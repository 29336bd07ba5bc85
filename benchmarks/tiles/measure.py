"""A tile is checked against fp32, then timed as a CUDA graph."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.errors import TritonError

from benchmarks.kernels import error, load
from benchmarks.tiles.products import Cell, candidates, device
from epsc.codegen.triton_expert_gemm import expert_gemm
from epsc.codegen.triton_kernels import tiles
from epsc.ir.attrs import Act, ActAttrs
from epsc.machine.tiles import Tile

ROUNDS = 5

Gemm = Callable[..., Tensor]


@functools.cache
def gemms() -> dict[bool, Gemm]:
    """The kernel with a gated activation in its epilogue, and without."""
    return {
        act: load(tiles() + expert_gemm("gemm", ActAttrs(Act.SWIGLU) if act else None)).gemm for act in (True, False)
    }


def right(cell: Cell) -> tuple[Tensor, int]:
    """The first set in fp32: every so many columns, and how many."""
    x, weight, _, counts = cell.sets[0]
    step = max(1, cell.product.out // 128)
    parts = []
    for part, each in zip(x.split(counts), weight, strict=True):
        if not len(part):
            continue
        if cell.product.act:
            gate, up = (part.float() @ half[::step].float().T for half in each.chunk(2))
            parts.append(F.silu(gate) * up)
        else:
            parts.append(part.float() @ each[::step].float().T)
    return torch.cat(parts), step


def checked(cell: Cell, tile: Tile, out: Tensor, wanted: Tensor, step: int) -> float:
    """The relative error; NaN where something was not written, or something beyond the rows was."""
    x, weight, ends, _ = cell.sets[0]
    out.fill_(torch.nan)
    gemms()[cell.product.act](x, weight, ends, out, 0, tile)
    if not bool(out[len(x) :].isnan().all()) or bool(out[: len(x)].isnan().any()):
        return float("nan")
    return error(out[: len(x), ::step], wanted)


def timed(launches: dict[Tile, Callable[[], object]], count: int) -> dict[Tile, float]:
    """Milliseconds of each launch; a call of one is `count` of them. Each round in another order."""
    runs = {tile: _graph(launch) for tile, launch in launches.items()} if device() == "cuda" else launches
    names, found = list(runs), {tile: list[float]() for tile in runs}
    for i in range(ROUNDS + 1 if device() == "cuda" else 2):
        marks = {}
        for tile in names[i % len(names) :] + names[: i % len(names)]:
            marks[tile] = _marked(runs[tile])
        for tile, elapsed in marks.items():
            if i:
                found[tile].append(elapsed() / count)
    return {tile: median(times) for tile, times in found.items()}


def _graph(launch: Callable[[], object]) -> Callable[[], object]:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    # Not `torch.cuda.graph`: it may collect garbage and give memory back each time, and these are a thousand.
    with torch.cuda.stream(stream):
        graph.capture_begin()
        launch()
        graph.capture_end()
    return graph.replay


def _marked(run: Callable[[], object]) -> Callable[[], float]:
    """Runs, and gives what it took when asked."""
    if device() == "cpu":
        before = time.perf_counter()
        run()
        took = 1e3 * (time.perf_counter() - before)
        return lambda: took
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()

    def elapsed() -> float:
        end.synchronize()
        return start.elapsed_time(end)

    return elapsed


def measure(cell: Cell) -> dict[Tile, tuple[float, float]]:
    """Milliseconds and error of each candidate that runs."""
    width = cell.product.out // (2 if cell.product.act else 1)
    outs = [torch.empty(cell.total + 256, width, dtype=cell.sets[0][0].dtype, device=device()) for _ in cell.sets]
    wanted, step = right(cell)
    errors: dict[Tile, float] = {}
    launches: dict[Tile, Callable[[], object]] = {}
    for tile in candidates(cell.rows):
        try:
            errors[tile] = checked(cell, tile, outs[0], wanted, step)
        except (TritonError, RuntimeError) as fault:  # one that does not compile must not stop the others
            print(f"{cell.product.name} {cell.rows} {tile}: {type(fault).__name__}: {str(fault)[:80]}", flush=True)
            continue

        def launch(tile: Tile = tile) -> None:
            for (x, weight, ends, _), out in zip(cell.sets, outs, strict=True):
                gemms()[cell.product.act](x, weight, ends, out, 0, tile)

        launches[tile] = launch
    times = timed(launches, len(cell.sets))
    return {tile: (times[tile], errors[tile]) for tile in times}
