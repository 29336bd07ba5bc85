"""Ops that mean the same before and after lowering: products, activations, sums."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.ir.attrs import Act, ActAttrs, ExpertGemmActAttrs, ExpertGemmAttrs, GemmAttrs, NoAttrs


def gemm(a: GemmAttrs | ExpertGemmAttrs, x: Tensor, *params: Tensor) -> Tensor:
    """x[.., n], weight[m, n] ([n, m] if transposed), bias[m] if there is one -> y[.., m]."""
    given = named(params, x.dtype, weight=True, bias=a.bias)
    return F.linear(x, given["weight"].T if a.transposed else given["weight"], given.get("bias"))


def expert_gemm(a: ExpertGemmAttrs, rows: Tensor, ends: Tensor, *params: Tensor) -> Tensor:
    """rows[rows(d), n] by expert, ends[experts], params of `gemm` per expert: each expert's gemm on its own rows."""
    bounds = pairwise([0, *ends.tolist()])
    return torch.cat([gemm(a, rows[i:j], *(p[e] for p in params)) for e, (i, j) in enumerate(bounds)])


def expert_gemm_act(a: ExpertGemmActAttrs, rows: Tensor, ends: Tensor, *params: Tensor) -> Tensor:
    """The gated activation of `expert_gemm`."""
    return activation(a.act, expert_gemm(a, rows, ends, *params))


def activation(a: ActAttrs, x: Tensor) -> Tensor:
    """x[.., n], or [.., 2n] holding gate and up when gated -> y[.., n]."""
    if not a.fn.gated:
        return _ELEMENTWISE[a.fn](x.clamp(-a.limit, a.limit) if a.limit > 0 else x)
    gate, up = (x[..., ::2], x[..., 1::2]) if a.interleaved else x.chunk(2, dim=-1)
    if a.limit > 0:
        gate, up = gate.clamp(max=a.limit), up.clamp(-a.limit, a.limit)
    if a.fn is Act.SWIGLU:
        f = _softcapped(gate, a.gate_softcap) * (a.alpha * gate).sigmoid()
        return f * (_softcapped(up, a.up_softcap) + a.offset)
    return F.gelu(gate, approximate="tanh" if a.fn is Act.GEGLU_TANH else "none") * (up + a.offset)


def _softcapped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap) if cap > 0 else x


_ELEMENTWISE: dict[Act, Callable[[Tensor], Tensor]] = {
    Act.RELU: torch.relu,
    Act.RELU2: lambda x: torch.relu(x).square(),
    Act.SILU: F.silu,
    Act.GELU: F.gelu,
    Act.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Act.SIGMOID: torch.sigmoid,
}


def add(_: NoAttrs, x: Tensor, y: Tensor) -> Tensor:
    """In the dtype of the first."""
    return (x + y).to(x.dtype)


def mul(_: NoAttrs, x: Tensor, y: Tensor) -> Tensor:
    """In the dtype of the first; either may have one column."""
    return (x * y).to(x.dtype)


def named(params: tuple[Tensor, ...], dtype: torch.dtype, **there: bool) -> dict[str, Tensor]:
    """The parameters of an op, which come in the order of `there`, without those that are not there."""
    names = [name for name, is_there in there.items() if is_there]
    return dict(zip(names, (param.to(dtype) for param in params), strict=True))


def wide(x: Tensor) -> torch.dtype:
    """fp32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)
