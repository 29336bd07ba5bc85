"""What a layer should return, and which tokens can prove it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.bench.shape import Router, Shape

LIMITS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""The largest relative error that is rounding."""

Raw = Callable[..., Tensor]
"""A weight by name, or one expert's share of it by name and expert, as the layer has it."""


@torch.no_grad()
def reference(shape: Shape, x: Tensor, raw: Raw) -> Tensor:
    """x[tokens, hidden] -> y fp32[tokens, hidden], expert after expert, in fp32 throughout."""

    def get(name: str, expert: int | None = None) -> Tensor:
        return raw(name, expert).float()

    x = x.float()
    scores, chosen = chosen_experts(shape.router, x, get)
    weights = scores * chosen
    if shape.renorm:
        weights = weights / weights.sum(-1, keepdim=True)
    weights = weights * shape.scale
    y = torch.zeros_like(x)
    for expert in range(shape.experts):
        tokens = chosen[:, expert].nonzero().squeeze(1)
        if len(tokens):
            gate, up = (x[tokens] @ get("gate_up", expert).T).chunk(2, dim=-1)
            y[tokens] += ((F.silu(gate) * up) @ get("down", expert).T) * weights[tokens, expert].unsqueeze(1)
    if shape.shared:
        gate, up = (x @ get("mlp.gate_up").T).chunk(2, dim=-1)
        y += (F.silu(gate) * up) @ get("mlp.down").T
    return y


@torch.no_grad()
def clear_tokens(router: Router, x: Tensor, raw: Raw) -> Tensor:
    """bool[tokens]: whose choice of experts is no near tie. Rounding may decide a tie either way, so others prove
    nothing."""

    def get(name: str) -> Tensor:
        return raw(name).float()

    chosen = chosen_experts(router, x.float(), get)[1]
    sure = torch.ones(len(x), dtype=torch.bool, device=x.device)
    signs = torch.arange(router.experts, device=x.device).remainder(2) * 2 - 1
    for nudge in (3e-5, -3e-5):
        sure &= (chosen_experts(router, x.float(), get, nudge * signs)[1] == chosen).all(-1)
    return sure


def chosen_experts(router: Router, x: Tensor, get: Raw, nudge: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """x fp32[tokens, hidden] -> scores[tokens, experts], and which experts are chosen, bool[tokens, experts].

    By sorting and comparing, unlike the layers, which use top-k.
    """
    logits = x @ get(f"{router.name}.weight").T + nudge
    if router.bias:
        logits = logits + get(f"{router.name}.bias")
    scores = logits.softmax(-1) if router.score == "softmax" else logits.sigmoid()
    choice = logits if router.choose == "by_logit" else scores
    if router.choice_bias:
        choice = choice + get(f"{router.name}.choice_bias")
    if router.groups > 1:
        grouped = choice.unflatten(-1, (router.groups, -1))
        best = grouped.sort(-1, descending=True).values[..., : 1 if router.group_by == "max" else 2].sum(-1)
        least = best.sort(-1, descending=True).values[:, router.top_groups - 1, None]
        choice = grouped.where((best >= least).unsqueeze(-1), -torch.inf).flatten(1)
    least = choice.sort(-1, descending=True).values[:, router.top_k - 1, None]
    return scores, choice >= least


def error(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|; NaN, infinity or another shape is never small."""
    if got.shape != wanted.shape or not got.isfinite().all():
        return float("inf")
    return float((got.float() - wanted).norm() / wanted.norm().clamp_min(1e-30))
