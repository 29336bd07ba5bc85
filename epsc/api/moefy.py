"""Moefy: the weights of a trained dense layer, laid out as those of the experts that the pass `moefy` cuts it into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from epsc.interpret import interpret
from epsc.ir.attrs import Act, ActAttrs, GemmAttrs
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph
from epsc.passes.moefy import Ffn, Moefy, ffns_of

ROUNDS = 10
"""Of clustering: the centres move little after a few."""
STEPS = 300
"""Of training a router."""


def moefied(
    dense: Graph,
    by: Moefy,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor] | None = None,
    modules: Mapping[str, Callable[..., object]] = {},
) -> dict[str, Tensor]:
    """The weights of `by(dense)`, of those of `dense`, the graph as the layer says it (`driver.Layer.said`).

    The neurons of each FFN are sorted into clusters of equal size by what they look for (their rows of the first
    matrix), and each cluster becomes an expert. A router of one layer has the mean of those rows, normed. One of two
    layers is trained to tell how much of each expert would fire, on `inputs` of the layer (with `modules`, what it
    calls). Raises EpsError where that needs inputs and there are none, and for what the pass cannot cut.
    """
    by(dense)
    made = dict(weights)
    found = {ffn.up.params[0]: ffn for ffn in ffns_of(dense)} if by.experts else {}
    seen: dict[str, Tensor] = {}
    if by.router and found:
        if inputs is None:
            raise EpsError(Diagnostic("no-inputs", "a router of two layers is trained: give inputs of the dense layer"))
        values = tuple(dict.fromkeys(ffn.up.ins[0] for ffn in found.values()))
        asked = interpret(replace(dense, results=values), inputs, weights, modules=modules)
        seen = dict(zip(values, asked, strict=True))
    for ffn in found.values():
        up, down = (_matrix(node.attrs, weights[node.params[0]]) for node in (ffn.up, ffn.down))
        order = clusters(up.float(), by.experts)
        experts = up[order].unflatten(0, (by.experts, -1))
        made[ffn.up.params[0]] = _stored(ffn.up.attrs, experts)
        made[ffn.down.params[0]] = _stored(ffn.down.attrs, down[:, order].unflatten(1, (by.experts, -1)).movedim(1, 0))
        for bias in ffn.up.params[1:]:
            made[bias] = weights[bias][order].unflatten(0, (by.experts, -1)).contiguous()
        if by.router:
            first, last = _trained(ffn, by, seen[ffn.up.ins[0]].float(), experts.float(), made)
            made[ffn.router_up], made[ffn.router] = first.to(up.dtype), last.to(up.dtype)
        else:
            made[ffn.router] = F.normalize(experts.float().mean(1), dim=-1).to(up.dtype)
    return made


def clusters(rows: Tensor, count: int) -> Tensor:
    """An order of `rows` in which each run of len(rows) / count is a cluster: k-means with clusters of one size.

    The same rows give the same order.
    """
    size = len(rows) // count
    start = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    centres, of = rows[start.to(rows.device)], torch.empty(0)
    for _ in range(ROUNDS):
        before, of = of, _shared_out(torch.cdist(rows, centres), size)
        if torch.equal(before, of):
            break
        centres = rows[of.argsort(stable=True)].unflatten(0, (count, size)).mean(1)
    return of.argsort(stable=True)


def _shared_out(distance: Tensor, size: int) -> Tensor:
    """A centre for each row, `size` rows for each: whoever has none asks the nearest centre with room, which takes the
    nearest of those that ask."""
    of = torch.full((len(distance),), -1, device=distance.device)
    while len(left := (of < 0).nonzero().squeeze(1)):
        room = size - torch.bincount(of[of >= 0], minlength=distance.shape[1])
        near, asked = distance[left].masked_fill(room == 0, torch.inf).min(1)
        order = near.argsort(stable=True)
        order = order[asked[order].argsort(stable=True)]
        first = torch.searchsorted(asked[order], asked[order])
        taken = order[torch.arange(len(order), device=order.device) - first < room[asked[order]]]
        of[left[taken]] = asked[taken]
    return of


def _matrix(attrs: object, weight: Tensor) -> Tensor:
    """[out, in], however it is stored."""
    assert isinstance(attrs, GemmAttrs)
    return weight.T if attrs.transposed else weight


def _stored(attrs: object, experts: Tensor) -> Tensor:
    """[experts, out, in], as the weight was stored."""
    assert isinstance(attrs, GemmAttrs)
    return (experts.mT if attrs.transposed else experts).contiguous()


def _trained(ffn: Ffn, by: Moefy, x: Tensor, experts: Tensor, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Both matrices of a router that tells how much of each expert fires for x."""
    bias = made[ffn.up.params[1]].float().flatten() if len(ffn.up.params) > 1 else None
    assert isinstance(ffn.act.attrs, ActAttrs)
    fired = torch.relu(F.linear(x, experts.flatten(0, 1), bias))
    fired = fired.square() if ffn.act.attrs.fn is Act.RELU2 else fired
    wanted = fired.unflatten(-1, (by.experts, -1)).sum(-1)
    wanted = wanted / wanted.std().clamp(min=1e-6)
    numbers = torch.Generator().manual_seed(0)
    shapes = ((by.router, x.shape[1]), (by.experts, by.router))
    pair = [(torch.randn(shape, generator=numbers) * shape[1] ** -0.5).to(x.device) for shape in shapes]
    with torch.enable_grad():
        first, last = (weight.requires_grad_() for weight in pair)
        steps = torch.optim.Adam([first, last], lr=3e-3)
        for _ in range(STEPS):
            steps.zero_grad()
            loss = F.mse_loss(F.linear(torch.relu(F.linear(x, first)), last), wanted)
            loss.backward()
            steps.step()
    return first.detach(), last.detach()
