"""The oracle: what a Graph computes, in plain torch, one process, one stream.

Nothing here is fast. Each op kind is one short function in `_OPS`, written from the kind's definition alone, so that
passes and emitted programs have something independent to agree with. Said and lowered kinds both run; lowered ones
mean what they mean at world size 1, where this rank holds every expert and an all2all gives back what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.ir.attrs import (
    Act,
    ActAttrs,
    CallAttrs,
    Choose,
    ExpertGemmActAttrs,
    ExpertGemmAttrs,
    GemmAttrs,
    GroupBy,
    NoAttrs,
    PlaceAttrs,
    RouteAttrs,
    RowsAttrs,
    Score,
    TransferAttrs,
)
from epsc.ir.dims import Dim, DType
from epsc.ir.dims import Tensor as Type
from epsc.ir.errors import Diagnostic, EpsError, Faults, did_you_mean
from epsc.ir.graph import Graph, Node


def interpret(
    graph: Graph,
    inputs: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    modules: Mapping[str, Callable[..., object]] = {},
) -> tuple[Tensor, ...]:
    """The values of `graph.results`.

    Values keep the dtype of `inputs`, whatever the graph's types say: give float32 or float64 for a reference. A
    weight of another dtype is converted to that of the values it meets. Router scores, the weights that a route makes
    and the sum of a combine are at least float32. Autograd is left as the caller set it.

    `inputs` and `weights` are by name and may hold more than the graph needs; expert weights hold all experts.
    `modules` are what `call` ops run, by `CallAttrs.module`.

    Raises EpsError listing every input, weight and module that is missing and every tensor of the wrong shape, or
    naming the op whose result is not what its type says.
    """
    graph.verify()
    sizes = _Sizes()
    _check_given(graph, inputs, weights, modules, sizes)
    values = {name: inputs[name] for name in graph.inputs}
    for node in graph.nodes:
        ins = [values[name] for name in node.ins]
        if node.kind == "expert_gemm" and len(ins) == 1:
            ins.append(_said_ends(graph, node, values))
        if isinstance(node.attrs, CallAttrs):
            made = modules[node.attrs.module](*ins)
        else:
            made = _OPS[node.kind](node.attrs, *ins, *(weights[name] for name in node.params))
        outs = made if isinstance(made, tuple) else (made,)
        for name, value in zip(node.outs, outs, strict=True):
            values[name] = _checked(graph, node, name, value, sizes)
    return tuple(values[name] for name in graph.results)


# --- said -------------------------------------------------------------------------------------------------------------


def _route(a: RouteAttrs, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
    """x[tokens, hidden] -> experts int64[tokens, k] by falling choice score, weights fp32[tokens, k].

    `params` are weight[experts, hidden], then bias[experts] and choice_bias[experts] where there are such. Among equal
    choice scores torch.topk takes whichever it likes, and not the same on every device.
    """
    given = _named(params, _wide(x), weight=True, bias=a.bias, choice_bias=a.choice_bias)
    logits = F.linear(x.to(_wide(x)), given["weight"], given.get("bias"))
    scored = logits if a.choose is Choose.BY_LOGIT else _score(a, logits)
    choice = scored + given["choice_bias"] if a.choice_bias else scored
    if a.groups > 1:
        choice = choice.masked_fill(~_in_kept_groups(a, choice), -torch.inf)
    experts = choice.topk(a.top_k, dim=-1).indices
    chosen = scored.gather(-1, experts)
    weights = _score(a, chosen) if a.choose is Choose.BY_LOGIT else chosen
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


def _dispatch(a: RowsAttrs, x: Tensor, experts: Tensor) -> Tensor:
    """x[tokens, hidden], experts[tokens, k] -> rows[k*tokens, hidden]: one per token copy, by expert, then token."""
    order, _, _ = _layout(a, experts)
    return _permute(a, x, order)


def _combine(a: RowsAttrs, rows: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """The rows of each token's k copies, weighted and summed: y[tokens, hidden] in the dtype of the rows."""
    _, place, _ = _layout(a, experts)
    return _unpermute_sum(a, rows, place, weights)


def _said_ends(graph: Graph, node: Node, values: Mapping[str, Tensor]) -> Tensor:
    """Row ends per expert for a said expert_gemm, which names none: from the dispatch that its input's type names."""
    symbol = graph.types[node.ins[0]].shape[0].symbol
    dispatch = graph.node.get(symbol.removeprefix("rows(").removesuffix(")"))
    if dispatch is None or dispatch.kind != "dispatch" or not isinstance(dispatch.attrs, RowsAttrs):
        message = f"op `{node.name}` (expert_gemm) reads `{node.ins[0]}`, which is not rows of a dispatch"
        help = "an expert_gemm reads rows(d) of a dispatch `d`, or rows and their ends"
        raise EpsError(Diagnostic("no-row-ends", message, node.span, help=help))
    _, _, counts = _layout(dispatch.attrs, values[dispatch.ins[1]])
    return counts.cumsum(0).to(torch.int32)


# --- lowered ----------------------------------------------------------------------------------------------------------


def _layout(a: RowsAttrs, experts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """experts[tokens, k] -> order[k*tokens], place[k*tokens], counts[experts], all int64.

    order[i] is the token copy t*k + j in send row i (so its token is order[i] // k), by expert and then by copy;
    place is the inverse.
    """
    flat = experts.flatten()
    if strangers := flat[(flat < 0) | (flat >= a.experts)].tolist():
        message = f"a token chose expert {strangers[0]}, but there are {a.experts}, counted from 0"
        raise EpsError(Diagnostic("no-such-expert", message))
    order = flat.argsort(stable=True)
    return order, order.argsort(), flat.bincount(minlength=a.experts)


def _exchange(_: TransferAttrs, counts: Tensor) -> Tensor:
    """What other ranks will send: at world size 1, what this one sends."""
    return counts


def _sizes(_: RowsAttrs, sent: Tensor, received: Tensor) -> Tensor:
    """Counts of rows sent, then of rows received: int64[2*experts] on the host."""
    return torch.cat([sent.flatten(), received.flatten()]).cpu()


def _permute(a: RowsAttrs, x: Tensor, order: Tensor) -> Tensor:
    """x[tokens, hidden] -> send[k*tokens, hidden]."""
    return x[order // a.top_k]


def _all2all(_: TransferAttrs, rows: Tensor, _sizes: Tensor) -> Tensor:
    """Rows between ranks: at world size 1 they stay."""
    return rows


def _arrange(a: RowsAttrs, received: Tensor, _sizes: Tensor) -> tuple[Tensor, Tensor]:
    """received[experts] or [sources, experts] counts -> index int64[rows], ends int32[experts].

    index[i] is the source-ordered row that is row i by expert; rows of one expert keep the order of their sources.
    """
    counts = received.reshape(-1, a.experts)
    expert = torch.arange(a.experts, device=counts.device).repeat(len(counts))
    index = expert.repeat_interleave(counts.flatten()).argsort(stable=True)
    return index, counts.sum(0).cumsum(0).to(torch.int32)


def _regroup(_: RowsAttrs, rows: Tensor, index: Tensor) -> Tensor:
    """Rows by source -> rows by expert."""
    return rows[index]


def _ungroup(_: RowsAttrs, rows: Tensor, index: Tensor) -> Tensor:
    """Rows by expert -> rows by source."""
    return rows[index.argsort()]


def _unpermute(_: RowsAttrs, rows: Tensor, place: Tensor) -> Tensor:
    """Rows at home in send order -> copies[k*tokens, hidden] in token order: copy j of token t is row t*k + j."""
    return rows[place]


def _weighted_sum(_: RowsAttrs, copies: Tensor, weights: Tensor) -> Tensor:
    """copies[k*tokens, hidden], weights[tokens, k] -> y[tokens, hidden], summed in at least fp32."""
    wide = copies.to(_wide(copies)).unflatten(0, weights.shape)
    summed: Tensor = (wide * weights.unsqueeze(-1).to(wide.dtype)).sum(1)
    return summed.to(copies.dtype)


def _unpermute_sum(a: RowsAttrs, rows: Tensor, place: Tensor, weights: Tensor, addend: Tensor | None = None) -> Tensor:
    total = _weighted_sum(a, _unpermute(a, rows, place), weights)
    return total if addend is None else total + addend


# --- lowered, one-sided: at world size 1 every token's slot is its row ------------------------------------------------


def _count(a: RowsAttrs, experts: Tensor) -> tuple[Tensor, Tensor]:
    """experts[tokens, k] -> within int32[k*tokens]: how many earlier copies chose the same expert; counts[experts]."""
    _, place, counts = _layout(a, experts)
    starts = counts.cumsum(0) - counts
    return (place - starts[experts.flatten()]).to(torch.int32), counts.to(torch.int32)


def _tell(
    _: TransferAttrs, experts: Tensor, weights: Tensor, within: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What every rank is told: at world size 1 what this one knows."""
    return experts.flatten().to(torch.int32), weights.flatten(), within, counts


def _put_rows(_: TransferAttrs, x: Tensor, *_experts: Tensor) -> Tensor:
    """Rows of other ranks: there are none, and nobody may look at what stands in for them."""
    return torch.full_like(x, torch.nan)


def _locate(_: PlaceAttrs, experts: Tensor, within: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """place int32[k*slots]: where the row of each token copy is; ends int32[experts]."""
    ends = counts.cumsum(0)
    return ((ends - counts)[experts.long()] + within).to(torch.int32), ends.to(torch.int32)


def _aim(a: PlaceAttrs, experts: Tensor, within: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """place and ends as `_locate` says; target int32[k*tokens]: where each copy goes, here at this rank itself."""
    place, ends = _locate(a, experts, within, counts)
    return place, ends, place


def _put_copies(a: TransferAttrs, x: Tensor, _experts: Tensor, target: Tensor) -> Tensor:
    """Each copy of a token at its target."""
    return x.repeat_interleave(a.top_k, dim=0)[target.argsort()]


def _expand(a: RowsAttrs, x: Tensor, _others: Tensor, place: Tensor, _counts: Tensor) -> Tensor:
    """Each token's row at the places of its copies."""
    return x.repeat_interleave(a.top_k, dim=0)[place.argsort()]


def _put_sums(a: TransferAttrs, rows: Tensor, place: Tensor, weights: Tensor, _counts: Tensor) -> Tensor:
    """Of each slot the rows of its copies, weighted and summed."""
    return _weighted_sum(RowsAttrs(a.experts, a.top_k), rows[place.long()], weights.unflatten(0, (-1, a.top_k)))


def _put_back(_: TransferAttrs, rows: Tensor, place: Tensor, _counts: Tensor) -> Tensor:
    """The row of each copy, in token order."""
    return rows[place.long()]


def _sum_copies(a: RowsAttrs, copies: Tensor, weights: Tensor, addend: Tensor | None = None) -> Tensor:
    total = _weighted_sum(a, copies, weights)
    return total if addend is None else total + addend


def _sum_ranks(_: RowsAttrs, sums: Tensor, _experts: Tensor, addend: Tensor | None = None) -> Tensor:
    """The sums of all ranks: at world size 1 there is one."""
    return sums if addend is None else sums + addend


# --- both -------------------------------------------------------------------------------------------------------------


def _gemm(a: GemmAttrs | ExpertGemmAttrs, x: Tensor, *params: Tensor) -> Tensor:
    """x[.., n], weight[m, n] ([n, m] if transposed), bias[m] if there is one -> y[.., m]."""
    given = _named(params, x.dtype, weight=True, bias=a.bias)
    return F.linear(x, given["weight"].T if a.transposed else given["weight"], given.get("bias"))


def _expert_gemm(a: ExpertGemmAttrs, rows: Tensor, ends: Tensor, *params: Tensor) -> Tensor:
    """rows[rows(d), n] by expert, ends[experts], params of `_gemm` per expert: each expert's gemm on its own rows."""
    bounds = pairwise([0, *ends.tolist()])
    return torch.cat([_gemm(a, rows[i:j], *(p[e] for p in params)) for e, (i, j) in enumerate(bounds)])


def _expert_gemm_act(a: ExpertGemmActAttrs, rows: Tensor, ends: Tensor, *params: Tensor) -> Tensor:
    """The gated activation of `_expert_gemm`."""
    return _activation(a.act, _expert_gemm(a, rows, ends, *params))


def _activation(a: ActAttrs, x: Tensor) -> Tensor:
    """x[.., n], or [.., 2n] holding gate and up when gated -> y[.., n]."""
    if not a.fn.gated:
        return _ELEMENTWISE[a.fn](x.clamp(-a.limit, a.limit) if a.limit > 0 else x)
    gate, up = (x[..., ::2], x[..., 1::2]) if a.interleaved else x.chunk(2, dim=-1)
    if a.limit > 0:
        gate, up = gate.clamp(max=a.limit), up.clamp(-a.limit, a.limit)
    f = gate * (a.alpha * gate).sigmoid() if a.fn is Act.SWIGLU else F.gelu(gate)
    return f * (up + a.offset)


_ELEMENTWISE: dict[Act, Callable[[Tensor], Tensor]] = {
    Act.RELU: torch.relu,
    Act.RELU2: lambda x: torch.relu(x).square(),
    Act.SILU: F.silu,
    Act.GELU: F.gelu,
    Act.SIGMOID: torch.sigmoid,
}


def _add(_: NoAttrs, x: Tensor, y: Tensor) -> Tensor:
    """In the dtype of the first."""
    return (x + y).to(x.dtype)


def _mul(_: NoAttrs, x: Tensor, y: Tensor) -> Tensor:
    """In the dtype of the first; either may have one column."""
    return (x * y).to(x.dtype)


_OPS: dict[str, Callable[..., object]] = {
    # name in epsc.ir.kinds: (attributes, inputs and parameters in order) -> output or outputs
    "route": _route,
    "dispatch": _dispatch,
    "combine": _combine,
    "layout": _layout,
    "exchange": _exchange,
    "sizes": _sizes,
    "permute": _permute,
    "all2all": _all2all,
    "arrange": _arrange,
    "regroup": _regroup,
    "ungroup": _ungroup,
    "expert_gemm": _expert_gemm,
    "expert_gemm_act": _expert_gemm_act,
    "gemm": _gemm,
    "activation": _activation,
    "add": _add,
    "mul": _mul,
    "unpermute": _unpermute,
    "weighted_sum": _weighted_sum,
    "unpermute_sum": _unpermute_sum,
    "count": _count,
    "tell": _tell,
    "put_rows": _put_rows,
    "copy_rows": _put_rows,
    "locate": _locate,
    "aim": _aim,
    "put_copies": _put_copies,
    "expand": _expand,
    "put_sums": _put_sums,
    "put_back": _put_back,
    "sum_copies": _sum_copies,
    "sum_ranks": _sum_ranks,
}


def _named(params: tuple[Tensor, ...], dtype: torch.dtype, **there: bool) -> dict[str, Tensor]:
    """The parameters of an op, which come in the order of `there`, without those that are not there."""
    names = [name for name, is_there in there.items() if is_there]
    return dict(zip(names, (param.to(dtype) for param in params), strict=True))


def _wide(x: Tensor) -> torch.dtype:
    """fp32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


# --- shapes -----------------------------------------------------------------------------------------------------------


class _Sizes:
    """What symbols such as `tokens` stand for in this run: the first tensor that has one decides, others must agree."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, str]] = {}

    def fit(self, what: str, type: Type, shape: tuple[int, ...]) -> str | None:
        """Nothing if `shape` is one of `type`, else a sentence that says how it is not. `what` is whose shape."""
        if len(shape) == len(type.shape):
            for dim, size in zip(type.shape, shape, strict=True):
                if dim.symbol and size % dim.scale == 0:
                    self.known.setdefault(_symbol(dim), (size // dim.scale, what))
            if all(self._size(dim) == size for dim, size in zip(type.shape, shape, strict=True)):
                return None
        filled = [dim if (n := self._size(dim)) is None else n for dim in type.shape]
        because = [
            f"{name} is {size} in {whose}"
            for name, (size, whose) in self.known.items()
            if whose != what and any(_symbol(dim) == name for dim in type.shape)
        ]
        why = f" ({', '.join([str(type), *because])})" if any(dim.symbol for dim in type.shape) else ""
        return f"{what} should have shape [{', '.join(map(str, filled))}]{why}, but has {list(shape)}"

    def _size(self, dim: Dim) -> int | None:
        if dim.known:
            return dim.scale
        found = self.known.get(_symbol(dim))
        return None if found is None else dim.scale * found[0]


def _symbol(dim: Dim) -> str:
    return str(Dim(1, dim.symbol, dim.cuts))


def _check_given(
    graph: Graph,
    inputs: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    modules: Mapping[str, Callable[..., object]],
    sizes: _Sizes,
) -> None:
    faults = Faults()
    wanted = [("input", name, graph.types[name], inputs) for name in graph.inputs]
    wanted += [("weight", param.name, param.type, weights) for param in graph.params]
    for what, name, type, given in wanted:
        if name not in given:
            message = f"{what} `{name}` ({type}) of `{graph.name}` is missing"
            faults.add(f"missing-{what}", message, help=did_you_mean(name, given))
        elif given[name].is_floating_point() is (type.dtype in (DType.INT32, DType.INT64)):
            faults.add("dtype-mismatch", f"{what} `{name}` should be {type}, but is {given[name].dtype}")
        elif fault := sizes.fit(f"{what} `{name}`", type, tuple(given[name].shape)):
            faults.add("shape-mismatch", fault)
    for node in graph.nodes:
        if isinstance(node.attrs, CallAttrs) and node.attrs.module not in modules:
            message = f"module `{node.attrs.module}` that op `{node.name}` calls is missing"
            faults.add("missing-module", message, node.span, help=did_you_mean(node.attrs.module, modules))
    faults.raise_if_any()


def _checked(graph: Graph, node: Node, name: str, value: object, sizes: _Sizes) -> Tensor:
    """Values that numbers flow through must be as typed; counts and indices may be laid out for several ranks."""
    what = f"`{name}`, made by op `{node.name}` ({node.kind}),"
    if not isinstance(value, Tensor):
        message = f"{what} should be a tensor, but is a {type(value).__name__}"
        raise EpsError(Diagnostic("not-a-tensor", message, node.span))
    if value.is_floating_point() and (fault := sizes.fit(what, graph.types[name], tuple(value.shape))):
        raise EpsError(Diagnostic("shape-mismatch", fault, node.span))
    return value
