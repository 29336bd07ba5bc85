"""Which tiles the persistent expert product is fastest with, on one GPU: `python -m benchmarks.tiles --out tiles.toml`.

For products of the example layers, as one of two ranks has them, and rows per expert from a token's to thousands:
every candidate is checked against fp32 with outputs full of NaN, then timed as a CUDA graph that takes turns on sets of
experts larger than L2; candidates take turns too. Rows per expert are random, as a balanced router gives them. What is
fastest goes into `[[tiles]]` of a profile (`epsc/machine/profiles`), every time into FILE.json.

Kernels are compiled by many processes first. Classes that do not fit into `--budget` seconds are left out, and named.
`--tiny` runs all of it on a CPU under Triton's interpreter, to see whether it runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.errors import TritonError

from benchmarks.kernels import error, load
from epsc.codegen.triton_expert_gemm import expert_gemm
from epsc.codegen.triton_kernels import tiles
from epsc.ir.attrs import Act, ActAttrs
from epsc.machine.tiles import COLUMNS, DEFAULT, Tile

LIMIT = 1e-2
ROWS = (0, 1, 8, 32, 64, 150, 300, 614, 1228, 2048, 4096)
"""Rows per expert; 0: one token of each of two ranks, so that most experts have none."""
ROUNDS = 5
MOST_FLOPS = 2.5e12
"""Of one product: with many rows, fewer experts do."""

FEW = (
    Tile(64, 256, 64, 4, 5, 16),
    Tile(64, 256, 64, 8, 4, 8),
    Tile(64, 128, 128, 4, 4, 8),
    Tile(64, 128, 64, 4, 7, 8),
    Tile(64, 64, 128, 4, 6, 8),
)
SOME = (
    Tile(64, 256, 64, 4, 5, 16),
    Tile(64, 128, 128, 4, 4, 8),
    Tile(128, 256, 64, 8, 4, 8),
    Tile(128, 256, 64, 8, 4, 8, 64),
    Tile(128, 128, 64, 8, 6, 8, 64),
)
MANY = (
    Tile(64, 256, 64, 4, 5, 16),
    Tile(128, 256, 64, 8, 4, 8),
    Tile(128, 256, 64, 8, 4, 8, 64),
    Tile(128, 256, 64, 8, 4, 16, 64),
    Tile(128, 256, 64, 8, 3, 8, 64),
    Tile(128, 256, 64, 8, 4, 4, 64),
)
TALL, ENDED_LOW = MANY[1], MANY[2]


def candidates(rows: int) -> tuple[Tile, ...]:
    """What is worth a try for so many rows per expert. (The interpreter takes seconds for a large tile.)"""
    if device() == "cpu":
        return Tile(64, 32, 32, 4, 2), Tile(128, 32, 32, 4, 2, low=64)
    return tuple(dict.fromkeys((*(FEW if rows <= 8 else SOME if rows <= 150 else MANY), default(rows))))


@dataclass(frozen=True)
class Product:
    """A product of a layer: `experts` on this rank, `top_k` of all of them for a token."""

    name: str
    experts: int
    top_k: int
    out: int
    deep: int
    act: bool


def layer(name: str, experts: int, top_k: int, hidden: int, inner: int) -> tuple[Product, Product]:
    """Both products of a layer, with the experts of one of two ranks."""
    up = Product(f"{name} up", experts // 2, top_k, 2 * inner, hidden, True)
    return up, Product(f"{name} down", experts // 2, top_k, hidden, inner, False)


PRODUCTS = (
    *layer("DeepSeek-V2", 160, 6, 5120, 1536),
    *layer("Qwen3-30B", 128, 8, 2048, 768),
    *layer("Mixtral", 8, 2, 4096, 14336),
    *layer("DBRX", 16, 4, 6144, 10752),
    *layer("DeepSeek-V3", 256, 8, 7168, 2048),
    *layer("Qwen3-235B", 128, 8, 4096, 1536),
    *layer("Qwen3-Next", 512, 10, 2048, 512),
    *layer("GPT-OSS", 128, 4, 2880, 2880),
)
TINY = layer("tiny", 4, 2, 32, 32)

Gemm = Callable[..., Tensor]


def device() -> str:
    """Where this runs: without CUDA, under the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def gemms() -> dict[bool, Gemm]:
    """The kernel with a gated activation in its epilogue, and without."""
    return {
        act: load(tiles() + expert_gemm("gemm", ActAttrs(Act.SWIGLU) if act else None)).gemm for act in (True, False)
    }


@dataclass
class Cell:
    """A product at a load, with two to four sets of operands: rows, weights, ends, and how many rows experts have."""

    product: Product
    rows: int
    sets: list[tuple[Tensor, Tensor, Tensor, list[int]]]

    @property
    def total(self) -> int:
        return len(self.sets[0][0])

    @property
    def flops(self) -> float:
        return 2.0 * self.total * self.product.out * self.product.deep

    @property
    def bytes(self) -> float:
        """Weights of experts that have rows, rows and results."""
        counts = self.sets[0][3]
        width = self.product.out // (2 if self.product.act else 1)
        weights = sum(map(bool, counts)) * self.product.out * self.product.deep
        return 2.0 * (weights + self.total * (self.product.deep + width))


def cells(product: Product, weight: Tensor, every: Sequence[int]) -> Iterator[Cell]:
    """A product at every load, with random rows for random experts."""
    numbers = torch.Generator().manual_seed(1)
    for rows in every:
        flops = 2.0 * max(rows, 1) * product.out * product.deep
        experts = max(min(product.experts, 4), min(product.experts, int(MOST_FLOPS / flops)))
        total = rows * experts or product.top_k
        sets = []
        for at in range(4 if rows <= 8 else 2):
            first = at * experts % max(1, product.experts - experts + 1)
            if rows:
                chosen = torch.randint(experts, (total,), generator=numbers)
            else:
                chosen = torch.randperm(experts, generator=numbers).repeat(total)[:total]
            counts = chosen.bincount(minlength=experts)
            ends = counts.cumsum(0).to(device(), torch.int32)
            x = torch.randn(total, product.deep, dtype=weight.dtype, device=device())
            sets.append((x, weight[first : first + experts], ends, counts.tolist()))
        yield Cell(product, rows, sets)


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


def default(rows: int) -> Tile:
    """What programs take without a table."""
    return DEFAULT[max(least for least in DEFAULT if least <= rows)]


Found = dict[Product, dict[int, dict[Tile, tuple[float, float]]]]


def best(times: dict[Tile, tuple[float, float]], before: Tile | None) -> Tile:
    """The fastest of those that are right; that of fewer rows, if it is within 1 %: differences so small are noise."""
    fit = {tile: ms for tile, (ms, err) in times.items() if err <= LIMIT}
    fastest = min(fit, key=lambda tile: fit[tile])
    return before if before in fit and fit[before] <= 1.01 * fit[fastest] else fastest


def chosen(measured: dict[int, dict[Tile, tuple[float, float]]]) -> dict[int, Tile]:
    """The tile for each load."""
    found: dict[int, Tile] = {}
    before = None
    for rows, times in measured.items():
        found[rows] = before = best(times, before)
    return found


def profile_text(found: Found, origin: str) -> str:
    """`[[tiles]]` of a profile."""
    lines = []
    for product, measured in found.items():
        points = [f"  {json.dumps([rows, *astuple(tile)])}," for rows, tile in chosen(measured).items()]
        act = json.dumps(product.act)
        lines += ["[[tiles]]", f"out = {product.out}", f"in = {product.deep}", f"act = {act}"]
        lines += [
            f'origin = "{origin}: {product.name}"',
            f"columns = {json.dumps(COLUMNS)}",
            "points = [",
            *points,
            "]",
            "",
        ]
    return "\n".join(lines)


def summary(found: Found) -> list[str]:
    """What programs took so far / the best, in time, and what low tiles do."""
    every = sorted({rows for measured in found.values() for rows in measured})
    lines = ["default / best, by rows per expert; below it TFLOP/s (from 64 rows on) or TB/s of the best"]
    lines.append(f"{'':17}" + "".join(f"{rows:>7}" for rows in every))
    for product, measured in found.items():
        tile = chosen(measured)
        gains = {r: t[default(r)][0] / t[tile[r]][0] if default(r) in t else float("nan") for r, t in measured.items()}
        lines.append(f"{product.name:17}" + "".join(f"{gains[r]:7.3f}" if r in gains else f"{'':7}" for r in every))
        lines.append(f"{'':17}" + "".join(f"{_RATES[product, r]:>7}" if r in measured else f"{'':7}" for r in every))
    lines.append("time of 128 rows / that with low tiles of 64 at the end of experts")
    for product, measured in found.items():
        pairs = {r: t[TALL][0] / t[ENDED_LOW][0] for r, t in measured.items() if TALL in t and ENDED_LOW in t}
        lines.append(f"{product.name:17}" + "".join(f"{pairs[r]:7.3f}" if r in pairs else f"{'':7}" for r in every))
    return lines


_RATES: dict[tuple[Product, int], str] = {}


def _rate(cell: Cell, ms: float) -> str:
    return f"{cell.flops / ms / 1e9:.0f}" if cell.rows >= 64 else f"{cell.bytes / ms / 1e9:.2f}"


def warm(turn: str, products: Sequence[Product]) -> None:
    """Compile this process's share."""
    mine, count = map(int, turn.split("/"))
    jobs = [(product, tile) for product in products for tile in dict.fromkeys((*FEW, *SOME, *MANY, *DEFAULT.values()))]
    for product, tile in jobs[mine::count]:
        ends = torch.tensor([tile.rows + 1], dtype=torch.int32, device=device())
        out = torch.empty(
            256 + tile.rows, product.out // (2 if product.act else 1), dtype=torch.bfloat16, device=device()
        )
        x = torch.randn(tile.rows + 1, product.deep, dtype=torch.bfloat16, device=device())
        weight = torch.randn(1, product.out, product.deep, dtype=torch.bfloat16, device=device())
        try:
            gemms()[product.act](x, weight, ends, out, 0, tile)
        except (TritonError, RuntimeError) as fault:  # said again when it is measured
            print(f"{product.name} {tile}: {type(fault).__name__}", file=sys.stderr)


def compile_all(products: str) -> None:
    """In as many processes as there are cores, but two: they all share this GPU."""
    count = max(1, min(14, (os.cpu_count() or 2) - 2))
    command = [sys.executable, "-m", "benchmarks.tiles", "--only", products, "--warm"]
    running = [subprocess.Popen([*command, f"{i}/{count}"]) for i in range(count)]
    for each in running:
        each.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Everything, or what was asked for."""
    parser = argparse.ArgumentParser(description="Which tiles the persistent expert product is fastest with.")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("tiles.toml"), help="write tables of a profile"
    )
    parser.add_argument("--budget", type=float, metavar="S", default=140.0, help="begin nothing after so many seconds")
    parser.add_argument("--only", default="", help="products with this in their name")
    parser.add_argument("--tiny", action="store_true", help="a small layer, to see whether this runs")
    parser.add_argument("--warm", metavar="I/N", help="compile the I-th of every N kernels, and measure nothing")
    args = parser.parse_args(argv)
    start = time.monotonic()
    products = [each for each in (TINY if args.tiny else PRODUCTS) if args.only in each.name]
    if args.warm:
        warm(args.warm, products)
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    where = torch.cuda.get_device_name() if device() == "cuda" else "Triton's interpreter"
    if device() == "cuda":
        compile_all(args.only)
    print(f"{where}, torch {torch.__version__}; compiled after {time.monotonic() - start:.0f} s", flush=True)
    found: Found = {}
    left_out, worst = [], 0.0
    for product in products:
        if time.monotonic() - start > args.budget:
            left_out.append(product.name)
            continue
        dtype = torch.bfloat16 if device() == "cuda" else torch.float32
        weight = torch.randn(product.experts, product.out, product.deep, dtype=dtype, device=device())
        weight.mul_(product.deep**-0.5)
        found[product] = {}
        for cell in cells(product, weight, (0, 70) if args.tiny else ROWS):
            times = measure(cell)
            errors = [err if err == err else float("inf") for _, err in times.values()]
            worst = max([worst, *errors] if errors else [float("inf")])
            if any(err <= LIMIT for err in errors):
                found[product][cell.rows] = times
                _RATES[product, cell.rows] = _rate(cell, times[best(times, None)][0])
        del weight
    args.out.write_text(profile_text(found, f"python -m benchmarks.tiles, {where}, torch {torch.__version__}"))
    kept = [
        {"product": product.name, "rows": rows, "tile": astuple(tile), "ms": ms, "error": err}
        for product, measured in found.items()
        for rows, times in measured.items()
        for tile, (ms, err) in times.items()
    ]
    args.out.with_suffix(".json").write_text(json.dumps(kept) + "\n")
    print("\n".join(summary(found)))
    print(f"worst error {worst:.1e}; {time.monotonic() - start:.0f} s; left out: {', '.join(left_out) or 'nothing'}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
