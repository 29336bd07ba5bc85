"""Ops of layers in which ranks share tokens or experts, over collectives: at world size 1 those change nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from epsc.ir.attrs import CollectiveAttrs, RowsAttrs


def fetch(_: RowsAttrs, counts: Tensor) -> Tensor:
    """Counts for the host."""
    return counts


def own_rows(a: RowsAttrs, order: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The token copies of this rank's experts, which are all; ends int32[experts]."""
    return order, sizes[: a.experts].cumsum(0).to(torch.int32)


def pick_rows(a: RowsAttrs, x: Tensor, index: Tensor) -> Tensor:
    """x[tokens, hidden] -> rows by expert."""
    return x[index // a.top_k]


def place_rows(_: RowsAttrs, rows: Tensor, index: Tensor) -> Tensor:
    """Rows by expert -> copies[k*tokens, hidden] in token order."""
    return torch.zeros_like(rows).index_copy(0, index, rows)


def same(_: CollectiveAttrs, x: Tensor) -> Tensor:
    """What one rank has is what all have."""
    return x
