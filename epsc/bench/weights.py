"""Made-up weights: the same numbers on every rank, whoever asks for them."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from epsc.bench.shape import Table


def make_weight(
    table: Table, name: str, expert: int | None, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Tensor:
    """One weight, or one expert's share of it."""
    size, scale, _ = table[name]
    key = f"{seed}/{name}" if expert is None else f"{seed}/{name}/{expert}"
    generator = torch.Generator(device).manual_seed(zlib.crc32(key.encode()))
    made = torch.randn(size if expert is None else size[1:], generator=generator, device=device)
    return made.mul_(scale).to(dtype)


def make_weights(
    table: Table, experts: range, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> dict[str, Tensor]:
    """All weights of a layer, with only `experts` of the sharded ones."""
    made = {}
    for name, weight in table.items():
        if not weight.sharded:
            made[name] = make_weight(table, name, None, dtype, device, seed)
            continue
        made[name] = torch.empty(len(experts), *weight.shape[1:], dtype=dtype, device=device)
        for out, expert in zip(made[name], experts, strict=True):
            out.copy_(make_weight(table, name, expert, dtype, device, seed))
    return made


def flops_per_token(table: Table, router: str, top_k: int) -> float:
    """Floating-point operations of the products that one token takes part in; its router's left out."""
    total = 0.0
    for name, weight in table.items():
        if weight.sharded and len(weight.shape) == 3:
            total += 2.0 * top_k * math.prod(weight.shape[1:])
        elif not weight.sharded and len(weight.shape) == 2 and name != f"{router}.weight":
            total += 2.0 * math.prod(weight.shape)
    return total
