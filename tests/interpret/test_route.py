"""Every router against the one in naive.py."""

import itertools

import pytest
import torch

from epsc.interpret import interpret
from epsc.interpret.weights import random_inputs, random_weights
from epsc.ir.attrs import Choose, GroupBy, RouteAttrs, Score
from epsc.ir.graph import Graph
from tests.interpret import naive
from tests.interpret.build import Build

HIDDEN, EXPERTS = 8, 12


def router(attrs: RouteAttrs) -> Graph:
    b = Build(HIDDEN)
    b.route("r", attrs)
    return b.graph("r.experts", "r.weights")


VARIANTS = [
    RouteAttrs(
        EXPERTS,
        top_k,
        score,
        choose,
        choice_bias,
        bias,
        groups,
        top_groups,
        group_by,
        renorm,
        scale=2.5 if renorm else 1.0,
    )
    for top_k, score, choose, choice_bias, bias, (groups, top_groups, group_by), renorm in itertools.product(
        [1, 3],
        Score,
        Choose,
        [False, True],
        [False, True],
        [(1, 1, GroupBy.MAX), (4, 2, GroupBy.MAX), (4, 2, GroupBy.TOP2), (3, 1, GroupBy.TOP2)],
        [False, True],
    )
]


@pytest.mark.parametrize("attrs", VARIANTS, ids=str)
def test_router(attrs: RouteAttrs) -> None:
    graph = router(attrs)
    inputs = random_inputs(graph, 10, seed=1, dtype=torch.float64)
    weights = random_weights(graph, seed=2, dtype=torch.float64)
    if attrs.choice_bias:
        weights["r.choice_bias"] *= 20  # large enough to change what is chosen, and to be negative enough to mislead
    experts, chosen_weights = interpret(graph, inputs, weights)
    assert experts.dtype == torch.int64
    for t, x in enumerate(inputs["x"].tolist()):
        logits = naive.matvec(weights["r.weight"].tolist(), x)
        if attrs.bias:
            logits = naive.plus(logits, weights["r.bias"].tolist())
        expected, expected_weights = naive.route(
            logits,
            top_k=attrs.top_k,
            score=attrs.score,
            choose=attrs.choose,
            choice_bias=weights["r.choice_bias"].tolist() if attrs.choice_bias else None,
            groups=attrs.groups,
            top_groups=attrs.top_groups,
            group_by=attrs.group_by,
            renorm=attrs.renorm,
            scale=attrs.scale,
        )
        assert experts[t].tolist() == expected
        assert chosen_weights[t].tolist() == pytest.approx(expected_weights)


def test_choice_bias_is_not_in_the_weights() -> None:
    graph = router(RouteAttrs(EXPERTS, 1, Score.SIGMOID, choice_bias=True))
    zero = torch.zeros(EXPERTS, HIDDEN)
    bias = torch.arange(EXPERTS).float()
    experts, weights = interpret(graph, {"x": torch.ones(2, HIDDEN)}, {"r.weight": zero, "r.choice_bias": bias})
    assert experts.tolist() == [[EXPERTS - 1]] * 2
    assert weights.tolist() == [[0.5]] * 2


@pytest.mark.parametrize(
    ("given", "made"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_routing_is_at_least_fp32(given: torch.dtype, made: torch.dtype) -> None:
    graph = router(RouteAttrs(EXPERTS, 3))
    inputs = random_inputs(graph, 10, seed=1, dtype=given)
    weights = random_weights(graph, seed=2, dtype=given)
    experts, chosen = interpret(graph, inputs, weights)
    assert chosen.dtype == made
    wide = interpret(graph, {"x": inputs["x"].to(made)}, {name: weight.to(made) for name, weight in weights.items()})
    assert torch.equal(experts, wide[0])
    assert torch.equal(chosen, wide[1])


@pytest.mark.parametrize("choose", Choose)
def test_unweighted_routes_choose_alike_and_weigh_nothing(choose: Choose) -> None:
    graphs = [router(RouteAttrs(EXPERTS, 3, choose=choose, scale=2.0, weighted=weighted)) for weighted in (True, False)]
    inputs = random_inputs(graphs[0], 10, seed=1, dtype=torch.float64)
    weights = random_weights(graphs[0], seed=2, dtype=torch.float64)
    (experts, weighed), (same, ones) = (interpret(graph, inputs, weights) for graph in graphs)
    assert torch.equal(experts, same) and weighed.std() > 0
    assert torch.equal(ones, torch.full_like(ones, 2.0))
