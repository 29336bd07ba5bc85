"""Ops that a layer is said in: a route, a dispatch, a combine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.interpret.arithmetic import named, wide
from epsc.interpret.lowered import layout, permute, unpermute_sum
from epsc.ir.attrs import Choose, GroupBy, RouteAttrs, RowsAttrs, Score
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph, Node


def route(a: RouteAttrs, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
    """x[tokens, hidden] -> experts int64[tokens, k] by falling choice score, weights fp32[tokens, k].

    `params` are weight[experts, hidden], then bias[experts] and choice_bias[experts] where there are such. Among equal
    choice scores torch.topk takes whichever it likes, and not the same on every device.
    """
    given = named(params, wide(x), weight=True, bias=a.bias, choice_bias=a.choice_bias)
    logits = F.linear(x.to(wide(x)), given["weight"], given.get("bias"))
    scored = logits if a.choose is Choose.BY_LOGIT else _score(a, logits)
    choice = scored + given["choice_bias"] if a.choice_bias else scored
    if a.groups > 1:
        choice = choice.masked_fill(~_in_kept_groups(a, choice), -torch.inf)
    experts = choice.topk(a.top_k, dim=-1).indices
    chosen = scored.gather(-1, experts)
    weights = _score(a, chosen) if a.choose is Choose.BY_LOGIT else chosen
    if a.threshold > 0:
        dropped = weights < a.threshold
        experts, weights = experts.masked_fill(dropped, -1), weights.masked_fill(dropped, 0)
    if not a.weighted:
        weights = torch.ones_like(weights).masked_fill(experts < 0, 0)
    if a.renorm:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * a.scale


def _score(a: RouteAttrs, logits: Tensor) -> Tensor:
    return logits.softmax(-1) if a.score is Score.SOFTMAX else logits.sigmoid()


def _in_kept_groups(a: RouteAttrs, choice: Tensor) -> Tensor:
    """bool[tokens, experts]: whether each expert's group is among the best `top_groups` of its token."""
    grouped = choice.unflatten(-1, (a.groups, -1))
    best = 1 if a.group_by is GroupBy.MAX else min(2, grouped.shape[-1])
    kept = grouped.topk(best, dim=-1).values.sum(-1).topk(a.top_groups, dim=-1).indices
    mask = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=choice.device).scatter(-1, kept, True)
    return mask.repeat_interleave(grouped.shape[-1], dim=-1)


def dispatch(a: RowsAttrs, x: Tensor, experts: Tensor) -> Tensor:
    """x[tokens, hidden], experts[tokens, k] -> rows[k*tokens, hidden]: one per token copy, by expert, then token."""
    order, _, counts = layout(a, experts)
    return permute(a, x, order[: int(counts.sum())])


def identity(a: RowsAttrs, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """x[tokens, hidden] times the weights of its copies for the experts of `a`: what experts that do nothing make."""
    own = (experts >= a.first) & (experts < a.first + a.experts)
    return (x * (weights * own).sum(-1, keepdim=True)).to(x.dtype)


def combine(a: RowsAttrs, rows: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """The rows of each token's k copies, weighted and summed: y[tokens, hidden] in the dtype of the rows."""
    _, place, _ = layout(a, experts)
    return unpermute_sum(a, rows, place, weights)


def ended(graph: Graph, node: Node, values: Mapping[str, Tensor]) -> Tensor:
    """Row ends per expert for a said expert_gemm, which names none: from the dispatch that its input's type names."""
    symbol = graph.types[node.ins[0]].shape[0].symbol
    source = graph.node.get(symbol.removeprefix("rows(").removesuffix(")"))
    if source is None or source.kind not in ("dispatch", "select_local") or not isinstance(source.attrs, RowsAttrs):
        message = f"op `{node.name}` (expert_gemm) reads `{node.ins[0]}`, which is not rows of a dispatch"
        help = "an expert_gemm reads rows(d) of a dispatch `d`, or rows and their ends"
        raise EpsError(Diagnostic("no-row-ends", message, node.span, help=help))
    _, _, counts = layout(source.attrs, values[source.ins[1]])
    return counts.cumsum(0).to(torch.int32)
