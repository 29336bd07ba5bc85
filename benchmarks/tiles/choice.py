"""What is taken of what was measured, and how it is written down."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass

from benchmarks.tiles.products import ENDED_LOW, TALL, Cell, Product, default
from epsc.machine.tiles import COLUMNS, Tile

LIMIT = 1e-2

Times = dict[Tile, tuple[float, float]]
"""Milliseconds and relative error of each tile."""


@dataclass(frozen=True)
class Load:
    """What was measured of a product with so many rows per expert."""

    times: Times
    rate: str
    """Of the fastest: TFLOP/s, or TB/s where there are few rows."""

    @staticmethod
    def of(cell: Cell, times: Times) -> Load:
        ms = times[best(times, None)][0]
        rate = f"{cell.flops / ms / 1e9:.0f}" if cell.rows >= 64 else f"{cell.bytes / ms / 1e9:.2f}"
        return Load(times, rate)


Found = dict[Product, dict[int, Load]]


def best(times: Times, before: Tile | None) -> Tile:
    """The fastest of those that are right; that of fewer rows, if it is within 1 %: differences so small are noise."""
    fit = {tile: ms for tile, (ms, err) in times.items() if err <= LIMIT}
    fastest = min(fit, key=lambda tile: fit[tile])
    return before if before in fit and fit[before] <= 1.01 * fit[fastest] else fastest


def chosen(measured: dict[int, Times]) -> dict[int, Tile]:
    """The tile for each load."""
    found: dict[int, Tile] = {}
    before = None
    for rows, times in measured.items():
        found[rows] = before = best(times, before)
    return found


def times_of(measured: dict[int, Load]) -> dict[int, Times]:
    return {rows: load.times for rows, load in measured.items()}


def profile_text(found: Found, origin: str) -> str:
    """`[[tiles]]` of a profile."""
    lines = []
    for product, measured in found.items():
        points = [f"  {json.dumps([rows, *astuple(tile)])}," for rows, tile in chosen(times_of(measured)).items()]
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
        times = times_of(measured)
        tile = chosen(times)
        gains = {r: t[default(r)][0] / t[tile[r]][0] if default(r) in t else float("nan") for r, t in times.items()}
        lines.append(f"{product.name:17}" + "".join(f"{gains[r]:7.3f}" if r in gains else f"{'':7}" for r in every))
        lines.append(f"{'':17}" + "".join(f"{measured[r].rate:>7}" if r in measured else f"{'':7}" for r in every))
    lines.append("time of 128 rows / that with low tiles of 64 at the end of experts")
    for product, measured in found.items():
        pairs = {r: t[TALL][0] / t[ENDED_LOW][0] for r, t in times_of(measured).items() if TALL in t and ENDED_LOW in t}
        lines.append(f"{product.name:17}" + "".join(f"{pairs[r]:7.3f}" if r in pairs else f"{'':7}" for r in every))
    return lines
