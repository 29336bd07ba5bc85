"""Ops that dispatch and combine lower to where ranks write into each other's memory.

At world size 1 every token's slot is its row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from epsc.interpret.arithmetic import expert_gemm
from epsc.interpret.lowered import layout, weighted_sum
from epsc.ir.attrs import ExpertGemmPutAttrs, PlaceAttrs, RowsAttrs, TransferAttrs


def count(a: RowsAttrs, experts: Tensor) -> tuple[Tensor, Tensor]:
    """experts[tokens, k] -> within int32[k*tokens]: how many earlier copies chose the same expert; counts[experts]."""
    _, place, counts = layout(a, experts)
    starts = counts.cumsum(0) - counts
    return (place - starts[experts.flatten()]).to(torch.int32), counts.to(torch.int32)


def tell(
    _: TransferAttrs, experts: Tensor, weights: Tensor, within: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What every rank is told: at world size 1 what this one knows."""
    return experts.flatten().to(torch.int32), weights.flatten(), within, counts


def put_rows(_: TransferAttrs, x: Tensor, *_experts: Tensor) -> Tensor:
    """Rows of other ranks: there are none, and nobody may look at what stands in for them."""
    return torch.full_like(x, torch.nan)


def locate(_: PlaceAttrs, experts: Tensor, within: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """place int32[k*slots]: where the row of each token copy is; ends int32[experts]."""
    ends = counts.cumsum(0)
    return ((ends - counts)[experts.long()] + within).to(torch.int32), ends.to(torch.int32)


def aim(a: PlaceAttrs, experts: Tensor, within: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """place and ends as `locate` says; target int32[k*tokens]: where each copy goes, here at this rank itself."""
    place, ends = locate(a, experts, within, counts)
    return place, ends, place


def put_copies(a: TransferAttrs, x: Tensor, _experts: Tensor, target: Tensor) -> Tensor:
    """Each copy of a token at its target."""
    return x.repeat_interleave(a.top_k, dim=0)[target.argsort()]


def expand(a: RowsAttrs, x: Tensor, _others: Tensor, place: Tensor, _counts: Tensor) -> Tensor:
    """Each token's row at the places of its copies."""
    return x.repeat_interleave(a.top_k, dim=0)[place.argsort()]


def put_sums(a: TransferAttrs, rows: Tensor, place: Tensor, weights: Tensor, _counts: Tensor) -> Tensor:
    """Of each slot the rows of its copies, weighted and summed."""
    return weighted_sum(RowsAttrs(a.experts, a.top_k), rows[place.long()], weights.unflatten(0, (-1, a.top_k)))


def put_back(_: TransferAttrs, rows: Tensor, place: Tensor, _counts: Tensor) -> Tensor:
    """The row of each copy, in token order."""
    return rows[place.long()]


def expert_gemm_put(
    a: ExpertGemmPutAttrs, rows: Tensor, ends: Tensor, place: Tensor, _counts: Tensor, *params: Tensor
) -> Tensor:
    """The product of each copy's row, in token order."""
    return expert_gemm(a, rows, ends, *params)[place.long()]


def sum_copies(a: RowsAttrs, copies: Tensor, weights: Tensor, addend: Tensor | None = None) -> Tensor:
    total = weighted_sum(a, copies, weights)
    return total if addend is None else total + addend


def sum_ranks(_: RowsAttrs, sums: Tensor, _experts: Tensor, addend: Tensor | None = None) -> Tensor:
    """The sums of all ranks: at world size 1 there is one."""
    return sums if addend is None else sums + addend
