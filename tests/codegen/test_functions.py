"""Emitted routers and activations compute what the oracle computes, for every attribute that they can have."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from epsc.codegen.functions import Function, activation_function, route_function
from epsc.interpret.arithmetic import activation
from epsc.interpret.said import route
from epsc.ir.attrs import Act, ActAttrs, Choose, GroupBy, RouteAttrs, Score


def compiled(function: Function) -> object:
    text = "\n".join([*function.head, *function.doc_lines, *function.body])
    scope = {"torch": torch, "F": F, "Tensor": torch.Tensor}
    scope["router_logits"] = lambda x, weight: x.float() @ weight.float().T
    exec(text, scope)
    return scope[function.name]


ROUTERS = [
    RouteAttrs(16, 4, score, choose, choice_bias, bias, groups, top_groups, group_by, renorm, scale, weighted)
    for score, choose, choice_bias, bias, (groups, top_groups, group_by), (renorm, scale, weighted) in product(
        Score,
        Choose,
        (False, True),
        (False, True),
        ((1, 1, GroupBy.MAX), (4, 2, GroupBy.MAX), (4, 2, GroupBy.TOP2), (16, 8, GroupBy.TOP2)),
        ((False, 1.0, True), (True, 2.5, True), (False, 2.5, False)),
    )
]


@pytest.mark.parametrize("attrs", ROUTERS, ids=str)
def test_routers(attrs: RouteAttrs) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(20, 8, generator=generator), torch.randn(16, 8, generator=generator)
    params = [weight]
    if attrs.bias:
        params.append(torch.randn(16, generator=generator))
    if attrs.choice_bias:
        params.append(torch.randn(16, generator=generator) * 0.1)
    experts, weights = compiled(route_function("route", attrs))(x, *params)  # type: ignore[operator]
    right_experts, right_weights = route(attrs, x, *params)
    assert torch.equal(experts, right_experts)
    torch.testing.assert_close(weights, right_weights)


ACTIVATIONS = [
    ActAttrs(fn, limit, alpha, offset, interleaved)
    for fn in Act
    for limit, alpha, offset, interleaved in ((0.0, 1.0, 0.0, False), (0.7, 1.702, 1.0, True))
    if fn.gated or (alpha == 1.0 and offset == 0.0 and not interleaved)
] + [ActAttrs(fn, 0.7) for fn in Act]
CAPPED = ActAttrs(Act.SWIGLU, 0.7, gate_softcap=0.4, up_softcap=0.25)
ACTIVATIONS += [CAPPED, replace(CAPPED, alpha=1.702, offset=1.0, up_softcap=0.0), replace(CAPPED, gate_softcap=0.0)]


@pytest.mark.parametrize("attrs", ACTIVATIONS, ids=str)
def test_activations(attrs: ActAttrs) -> None:
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    right = activation(attrs, x)
    out = torch.full_like(right, torch.nan)
    compiled(activation_function("act", attrs))(x, out)  # type: ignore[operator]
    torch.testing.assert_close(out, right)
