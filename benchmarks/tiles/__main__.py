"""Compile, measure, write: `python -m benchmarks.tiles`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import torch
from triton.errors import TritonError

from benchmarks.tiles.choice import LIMIT, Found, Load, profile_text, summary
from benchmarks.tiles.measure import gemms, measure
from benchmarks.tiles.products import FEW, MANY, PRODUCTS, ROWS, SOME, TINY, Product, cells, device
from epsc.machine.tiles import DEFAULT


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
                found[product][cell.rows] = Load.of(cell, times)
        del weight
    args.out.write_text(profile_text(found, f"python -m benchmarks.tiles, {where}, torch {torch.__version__}"))
    kept = [
        {"product": product.name, "rows": rows, "tile": astuple(tile), "ms": ms, "error": err}
        for product, measured in found.items()
        for rows, load in measured.items()
        for tile, (ms, err) in load.times.items()
    ]
    args.out.with_suffix(".json").write_text(json.dumps(kept) + "\n")
    print("\n".join(summary(found)))
    print(f"worst error {worst:.1e}; {time.monotonic() - start:.0f} s; left out: {', '.join(left_out) or 'nothing'}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
