"""Made-up weights: the same for whoever asks, and such that a layer is not degenerate."""

import pytest
import torch

from epsc.interpret import interpret
from epsc.interpret.weights import random_inputs, random_param, random_weights
from epsc.ir.attrs import Act, ActAttrs, Choose, ExpertGemmAttrs, RouteAttrs, Score
from epsc.ir.errors import EpsError
from epsc.ir.scales import param_scales
from tests.interpret.build import Build, moe

ACT = ActAttrs(Act.SWIGLU)


def test_known_numbers() -> None:
    """The scheme is a promise to programs that were emitted before: these may not change."""
    made = random_param("up.weight", (2, 2), 7, torch.float32, 3, scale=0.5)
    again = torch.randn(2, 2, generator=torch.Generator().manual_seed(0x5780837B)) * 0.5
    assert torch.equal(made, again)


def test_an_expert_alone_is_the_expert_among_others() -> None:
    graph = moe(RouteAttrs(5, 2, choice_bias=True), act=ACT, bias=True)
    weights, scales = random_weights(graph, 7, torch.bfloat16), param_scales(graph)
    for param in graph.params:
        whole = weights[param.name]
        shape = tuple(dim.scale for dim in param.type.shape)
        if not param.sharded:
            assert torch.equal(whole, random_param(param.name, shape, 7, torch.bfloat16, scale=scales[param.name]))
            continue
        for e in range(5):
            alone = random_param(param.name, shape[1:], 7, torch.bfloat16, e, scale=scales[param.name])
            assert torch.equal(whole[e], alone)


def test_seeds_names_and_experts_all_matter() -> None:
    def first(name: str, seed: int, expert: int | None) -> float:
        return random_param(name, (4,), seed, torch.float32, expert)[0].item()

    made = [first(name, seed, expert) for name in "ab" for seed in range(3) for expert in (None, 0, 1, 11)]
    assert len(set(made)) == len(made)
    assert made == [first(name, seed, expert) for name in "ab" for seed in range(3) for expert in (None, 0, 1, 11)]


def test_a_narrow_dtype_is_the_rounded_wide_one() -> None:
    graph = moe(RouteAttrs(5, 2), act=ACT)
    wide, narrow = (random_weights(graph, 0, dtype) for dtype in (torch.float64, torch.bfloat16))
    assert all(torch.equal(wide[name].bfloat16(), narrow[name]) for name in wide)
    x, y = (random_inputs(graph, 4, 0, dtype)["x"] for dtype in (torch.float64, torch.bfloat16))
    assert torch.equal(x.bfloat16(), y)


@pytest.mark.parametrize("transposed", [False, True])
def test_values_stay_of_order_one(transposed: bool) -> None:
    b = Build(64)
    r = b.route("r", RouteAttrs(16, 4))
    h = b.expert_gemm("up", b.dispatch("sent", r, 16, 4), ExpertGemmAttrs(16, 256, transposed=transposed))
    graph = b.graph(h, b.expert_gemm("down", h, ExpertGemmAttrs(16, 32, transposed=transposed)))
    values = interpret(graph, random_inputs(graph, 64, 0, torch.float32), random_weights(graph, 0, torch.float32))
    assert all(0.9 < value.std() < 1.1 for value in values)


@pytest.mark.parametrize("score", Score)
@pytest.mark.parametrize("choose", Choose)
@pytest.mark.parametrize("experts", [8, 128])
def test_routing_is_not_degenerate(score: Score, choose: Choose, experts: int) -> None:
    b = Build(64)
    b.route("r", RouteAttrs(experts, 4, score, choose, choice_bias=True, bias=True))
    graph = b.graph("r.experts")
    weights = random_weights(graph, 0, torch.float32)
    (chosen,) = interpret(graph, random_inputs(graph, 16 * experts, 0, torch.float32), weights)
    counts = chosen.flatten().bincount(minlength=experts)
    assert counts.min() > 0
    assert counts.max() < 5 * counts.float().mean()


def test_inputs_that_are_experts() -> None:
    b = Build(4)
    b.given("r.experts", "int64[tokens, 3]")
    graph = b.graph(b.dispatch("sent", "r", 5, 3))
    inputs = random_inputs(graph, 20, 0, torch.float32)
    assert all(len(set(row)) == 3 and set(row) <= set(range(5)) for row in inputs["r.experts"].tolist())
    assert interpret(graph, inputs, {})[0].shape == (60, 4)


def test_inputs_that_cannot_be_made() -> None:
    b = Build(4)
    b.given("z", "bf16[rows(y), 4]")
    graph = b.graph(b.add("y", "x", "x"))
    with pytest.raises(EpsError, match=r"input `z` .* has rows\(y\), which `tokens` does not say"):
        random_inputs(graph, 3, 0, torch.float32)
    b = Build(4)
    graph = b.graph(b.add("y", "x", b.given("z", "int64[tokens, 4]")))
    with pytest.raises(EpsError, match=r"input `z` .* no op reads it as experts"):
        random_inputs(graph, 3, 0, torch.float32)


@pytest.mark.gpu
def test_on_a_gpu_the_numbers_are_the_same_each_time() -> None:
    graph = moe(RouteAttrs(5, 2), act=ACT)
    one, two = (random_weights(graph, 0, torch.bfloat16, device="cuda") for _ in range(2))
    assert all(one[name].is_cuda and torch.equal(one[name], two[name]) for name in one)
    inputs = random_inputs(graph, 4, 0, torch.bfloat16, device="cuda")
    assert interpret(graph, inputs, one)[0].isfinite().all()
