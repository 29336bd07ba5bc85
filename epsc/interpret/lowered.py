"""Ops that dispatch and combine lower to over collectives."""

from __future__ import annotations

import torch
from torch import Tensor

from epsc.interpret.arithmetic import wide
from epsc.ir.attrs import CollectiveAttrs, RowsAttrs, SlotAttrs, TransferAttrs
from epsc.ir.errors import Diagnostic, EpsError


def layout(a: RowsAttrs, experts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """experts[tokens, k] -> order[k*tokens], place[k*tokens], counts[experts], all int64.

    order[i] is the token copy t*k + j in send row i (so its token is order[i] // k), by expert and then by copy;
    place is the inverse.
    """
    flat = experts.flatten()
    if a.selective:
        # The copies that are not sent are the last; they have no place.
        own = flat - a.first
        sent = (own >= 0) & (own < a.experts)
        order = own.where(sent, a.experts).argsort(stable=True)
        return order, order.argsort().where(sent, -1), own[sent].bincount(minlength=a.experts)
    if strangers := flat[(flat < 0) | (flat >= a.experts)].tolist():
        message = f"a token chose expert {strangers[0]}, but there are {a.experts}, counted from 0"
        raise EpsError(Diagnostic("no-such-expert", message))
    order = flat.argsort(stable=True)
    return order, order.argsort(), flat.bincount(minlength=a.experts)


def layout_shares(a: RowsAttrs, experts: Tensor) -> tuple[Tensor, Tensor]:
    """Where copies lie at home: at world size 1 one rank's share is all."""
    _, place, counts = layout(a, experts)
    return place, counts.sum().unsqueeze(0)


def all_gather_copies(_: CollectiveAttrs, rows: Tensor, _sizes: Tensor) -> Tensor:
    """The rows of all ranks at home: at world size 1, those of one."""
    return rows


def weight_copy(_: SlotAttrs, *given: Tensor) -> Tensor:
    """The weights of all experts, after what came before: nobody here waits for a slot."""
    return given[-1]


def exchange(_: TransferAttrs, counts: Tensor) -> Tensor:
    """What other ranks will send: at world size 1, what this one sends."""
    return counts


def sizes(_: RowsAttrs, *counts: Tensor) -> Tensor:
    """Counts of rows sent, of rows received, and of rows that pass through, if any do: one after the other."""
    return torch.cat([each.flatten() for each in counts]).cpu()


def permute(a: RowsAttrs, x: Tensor, order: Tensor) -> Tensor:
    """x[tokens, hidden] -> send[k*tokens, hidden]."""
    return x[order // a.top_k]


def all2all(a: TransferAttrs, rows: Tensor, sizes: Tensor) -> Tensor:
    """Rows between ranks: at world size 1 they stay. Those behind the last that is sent do not count."""
    return rows[: int(sizes[: a.experts].sum())]


def arrange(a: RowsAttrs, received: Tensor, _sizes: Tensor) -> tuple[Tensor, Tensor]:
    """received[experts] or [sources, experts] counts -> index int64[rows], ends int32[experts].

    index[i] is the source-ordered row that is row i by expert; rows of one expert keep the order of their sources.
    """
    counts = received.reshape(-1, a.experts)
    expert = torch.arange(a.experts, device=counts.device).repeat(len(counts))
    index = expert.repeat_interleave(counts.flatten()).argsort(stable=True)
    return index, counts.sum(0).cumsum(0).to(torch.int32)


def regroup(_: RowsAttrs, rows: Tensor, index: Tensor) -> Tensor:
    """Rows by source -> rows by expert."""
    return rows[index]


def ungroup(_: RowsAttrs, rows: Tensor, index: Tensor) -> Tensor:
    """Rows by expert -> rows by source."""
    return rows[index.argsort()]


def unpermute(a: RowsAttrs, rows: Tensor, place: Tensor) -> Tensor:
    """Rows at home in send order -> copies[k*tokens, hidden] in token order: copy j of token t is row t*k + j; of one
    that was not sent, zeros."""
    if a.selective:
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[place]
    return rows[place]


def weighted_sum(_: RowsAttrs, copies: Tensor, weights: Tensor) -> Tensor:
    """copies[k*tokens, hidden], weights[tokens, k] -> y[tokens, hidden], summed in at least fp32."""
    rows = copies.to(wide(copies)).unflatten(0, weights.shape)
    summed: Tensor = (rows * weights.unsqueeze(-1).to(rows.dtype)).sum(1)
    return summed.to(copies.dtype)


def unpermute_sum(a: RowsAttrs, rows: Tensor, place: Tensor, weights: Tensor, addend: Tensor | None = None) -> Tensor:
    total = weighted_sum(a, unpermute(a, rows, place), weights)
    return total if addend is None else total + addend
