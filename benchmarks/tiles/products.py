"""What is tried: candidates for a tile, products of the example layers, and their operands at a load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epsc.machine.tiles import DEFAULT, Tile

ROWS = (0, 1, 8, 32, 64, 150, 300, 614, 1228, 2048, 4096)
"""Rows per expert; 0: one token of each of two ranks, so that most experts have none."""
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


def device() -> str:
    """Where this runs: without CUDA, under the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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


def default(rows: int) -> Tile:
    """What programs take without a table."""
    return DEFAULT[max(least for least in DEFAULT if least <= rows)]
