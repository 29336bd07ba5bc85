"""Tiles: how the persistent expert product is cut, as measured on a device for some shapes and rows per expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from math import ceil, log2, sqrt

COLUMNS = ("rows", "tile_rows", "tile_columns", "tile_depth", "warps", "stages", "band", "low_rows")
"""What a point of a profile's table says: rows per expert, and the fields of the tile that is best there."""

SHARED_BYTES = 227 * 1024
"""Shared memory that a program may take, from compute capability 9.0 on, which the kernel needs."""


@dataclass(frozen=True)
class Tile:
    """A program makes `rows` x `columns` of the result at a time, from loads `depth` deep."""

    rows: int = 128
    columns: int = 256
    depth: int = 64
    warps: int = 8
    stages: int = 4
    """Loads that are under way."""
    band: int = 8
    """Tiles of rows of an expert that are done together, for they share weights in the L2 cache."""
    low: int = 0
    """Rows of the tile that ends an expert where that holds what is left of its rows; 0: there are none such."""

    def __str__(self) -> str:
        return f"Tile({', '.join(map(str, astuple(self)))})"

    @property
    def shared_bytes(self) -> int:
        """Shared memory that it takes: loads under way, and a half of the result at a time on its way out."""
        return self.stages * (self.rows + self.columns) * self.depth * 2 + self.rows * self.columns

    def fault(self) -> str | None:
        """Why no kernel can be cut so."""
        if not all(_power(each) for each in (self.rows, self.columns, self.depth)):
            return "tile_rows, tile_columns and tile_depth must be powers of two"
        if not (64 <= self.rows <= 256 and 32 <= self.columns <= 256 and 32 <= self.depth <= 256):
            return "it takes 64 to 256 tile_rows, and 32 to 256 tile_columns and tile_depth"
        if self.warps not in (4, 8) or not 1 <= self.stages <= 8 or not 1 <= self.band <= 1024:
            return "it takes 4 or 8 warps, 1 to 8 stages and a band of 1 to 1024"
        if self.low and not (_power(self.low) and 64 <= self.low < self.rows):
            return "low_rows must be 0, or a power of two from 64 on and below tile_rows"
        if self.shared_bytes > SHARED_BYTES:
            return f"it takes {self.shared_bytes} bytes of shared memory, and there are {SHARED_BYTES}"
        return None


@dataclass(frozen=True)
class TileTable:
    """What is fastest for products of `out` columns (gate and up counted both) that read `deep`."""

    out: int
    deep: int
    act: bool
    """Whether a gated activation is in the epilogue."""
    points: tuple[tuple[int, Tile], ...]
    """Rows per expert, rising, and the tile that is best there. 0: for many experts there is none."""
    origin: str
    measured: bool

    @property
    def steps(self) -> dict[int, Tile]:
        """From so many rows per expert on, which tile: between two points, the nearer by ratio."""
        (_, before), *_ = self.points
        found = {0: before}
        for (rows, _), (following, tile) in pairwise(self.points):
            if tile != before:
                found[ceil(sqrt(rows * following)) if rows else 1] = before = tile
        return found


DEFAULT = {0: Tile(64, 256, 64, 4, 5, 16), 512: Tile(128, 256, 64, 8, 4, 8)}
"""Where a profile has no tables: fastest on 2 x H200, DeepSeek-V2 and Qwen3-30B, before shapes were told apart."""


def tiles_for(tables: Sequence[TileTable], out: int, deep: int, act: bool) -> dict[int, Tile]:
    """From so many rows per expert on, which tile: by the table of the nearest shape; of equal ones the last counts."""
    fit = [table for table in reversed(tables) if table.act == act]
    if not fit:
        return DEFAULT
    return min(fit, key=lambda table: abs(log2(table.out / out)) + abs(log2(table.deep / deep))).steps


def _power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
