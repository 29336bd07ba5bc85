"""Whole layers, said and lowered, against token-by-token loops."""

from dataclasses import asdict

import pytest
import torch

from epsc.interpret import interpret
from epsc.interpret.weights import random_inputs, random_weights
from epsc.ir.attrs import Act, ActAttrs, ExpertGemmAttrs, GemmAttrs, RouteAttrs, RowsAttrs, Score
from epsc.ir.dims import Tensor
from epsc.ir.graph import Graph
from tests.interpret import naive
from tests.interpret.build import Build, moe

ROUTE = RouteAttrs(experts=5, top_k=2, renorm=True)
GPT_OSS = ActAttrs(Act.SWIGLU, limit=0.4, alpha=1.702, offset=1.0, interleaved=True)
FORMS = [
    pytest.param({}, id="said"),
    pytest.param({"lowered": True}, id="lowered"),
    pytest.param({"lowered": True, "fused": True}, id="fused"),
]
ACTS = [
    ActAttrs(Act.SWIGLU),
    ActAttrs(Act.SWIGLU, interleaved=True),
    ActAttrs(Act.SWIGLU, limit=0.3),
    GPT_OSS,
    ActAttrs(Act.GEGLU),
    ActAttrs(Act.GEGLU, limit=0.3, offset=0.5),
    ActAttrs(Act.GEGLU_TANH, limit=0.3, offset=0.5),
    ActAttrs(Act.SWIGLU, gate_softcap=0.4, up_softcap=0.25, offset=1.0, alpha=1.702),
    ActAttrs(Act.RELU),
    ActAttrs(Act.RELU2),
    ActAttrs(Act.SILU),
    ActAttrs(Act.SILU, limit=0.3),
    ActAttrs(Act.GELU),
    ActAttrs(Act.GELU_TANH),
    ActAttrs(Act.SIGMOID),
]
Weights = dict[str, torch.Tensor]


def data(graph: Graph, tokens: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Weights, Weights]:
    return random_inputs(graph, tokens, 3, dtype), random_weights(graph, 4, dtype)


def naive_linear(weights: Weights, name: str, x: list[float], transposed: bool, e: int | None = None) -> list[float]:
    weight = weights[f"{name}.weight"] if e is None else weights[f"{name}.weight"][e]
    y = naive.matvec((weight.T if transposed else weight).tolist(), x)
    if f"{name}.bias" in weights:
        bias = weights[f"{name}.bias"] if e is None else weights[f"{name}.bias"][e]
        y = naive.plus(y, bias.tolist())
    return y


def naive_act(act: ActAttrs, x: list[float]) -> list[float]:
    return naive.activation(x=x, **asdict(act))


def naive_moe(
    x: list[float], weights: Weights, experts: list[int], gates: list[float], act: ActAttrs, transposed: bool
) -> list[float]:
    y = [0.0] * len(x)
    for e, gate in zip(experts, gates, strict=True):
        h = naive_act(act, naive_linear(weights, "up", x, transposed, e))
        y = naive.plus(y, [gate * v for v in naive_linear(weights, "down", h, transposed, e)])
    return y


def naive_route(x: list[float], weights: Weights, attrs: RouteAttrs) -> tuple[list[int], list[float]]:
    return naive.route(
        naive.matvec(weights["r.weight"].tolist(), x),
        top_k=attrs.top_k,
        score=attrs.score,
        choose=attrs.choose,
        choice_bias=None,
        groups=1,
        top_groups=1,
        group_by="max",
        renorm=attrs.renorm,
        scale=attrs.scale,
    )


def naive_layer(inputs: Weights, weights: Weights, attrs: RouteAttrs, act: ActAttrs, transposed: bool) -> torch.Tensor:
    return torch.tensor(
        [naive_moe(x, weights, *naive_route(x, weights, attrs), act, transposed) for x in inputs["x"].tolist()],
        dtype=torch.float64,
    ).reshape(inputs["x"].shape)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transposed", [False, True], ids=["out-in", "in-out"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("act", ACTS, ids=str)
def test_experts(act: ActAttrs, bias: bool, transposed: bool, form: dict[str, bool]) -> None:
    graph = moe(ROUTE, act=act, bias=bias, transposed=transposed, **form)
    inputs, weights = data(graph)
    (y,) = interpret(graph, inputs, weights)
    torch.testing.assert_close(y, naive_layer(inputs, weights, ROUTE, act, transposed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 31])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_sizes(tokens: int, top_k: int, form: dict[str, bool]) -> None:
    route = RouteAttrs(5, top_k, Score.SIGMOID)
    act = ActAttrs(Act.SWIGLU)
    graph = moe(route, act=act, **form)
    inputs, weights = data(graph, tokens)
    (y,) = interpret(graph, inputs, weights)
    torch.testing.assert_close(y, naive_layer(inputs, weights, route, act, False))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("expert", [0, 2, 4], ids=["first", "middle", "last"])
def test_all_tokens_to_one_expert(expert: int, form: dict[str, bool]) -> None:
    route = RouteAttrs(5, 1)
    act = ActAttrs(Act.SWIGLU)
    graph = moe(route, act=act, **form)
    inputs, weights = data(graph)
    inputs["x"] = inputs["x"].abs()
    weights["r.weight"] = torch.zeros(5, 8, dtype=torch.float64)
    weights["r.weight"][expert] = 1.0
    (y,) = interpret(graph, inputs, weights)
    torch.testing.assert_close(y, naive_layer(inputs, weights, route, act, False))
    assert all(naive_route(x, weights, route)[0] == [expert] for x in inputs["x"].tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_said_and_lowered_agree_bit_by_bit(dtype: torch.dtype) -> None:
    forms = [{}, {"lowered": True}, {"lowered": True, "fused": True}]
    said, *others = (moe(ROUTE, act=GPT_OSS, bias=True, transposed=True, **form) for form in forms)
    inputs, weights = data(said, 50, dtype)
    (expected,) = interpret(said, inputs, weights)
    assert expected.dtype == dtype
    for other in others:
        assert torch.equal(interpret(other, inputs, weights)[0], expected)


def test_lowered_values() -> None:
    b = Build(1, lowered=True)
    b.given("r.experts", "int64[tokens, 2]")
    b.dispatch("d", "r", 4, 2)
    control = ["layout.order", "layout.place", "layout.counts", "exchange", "sizes"]
    names = [*control, "permute", "arrange.index", "arrange.ends"]
    graph = b.graph(*(f"d.{name}" for name in names), "d", "d.regroup")
    x = torch.tensor([[10.0], [11.0], [12.0]])
    experts = torch.tensor([[3, 0], [0, 2], [2, 0]])
    made = dict(zip(graph.results, interpret(graph, {"x": x, "r.experts": experts}, {}), strict=True))
    assert made["d.layout.order"].tolist() == [1, 2, 5, 3, 4, 0]
    assert made["d.layout.place"].tolist() == [5, 0, 1, 3, 4, 2]
    assert made["d.layout.counts"].tolist() == [3, 0, 2, 1]
    assert made["d.exchange"].tolist() == [3, 0, 2, 1]
    assert made["d.sizes"].tolist() == [3, 0, 2, 1, 3, 0, 2, 1]
    assert made["d.arrange.index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert made["d.arrange.ends"].tolist() == [3, 3, 5, 6]
    assert made["d.arrange.ends"].dtype == torch.int32
    by_expert = [10.0, 11.0, 12.0, 11.0, 12.0, 10.0]
    assert made["d.permute"].flatten().tolist() == by_expert
    assert made["d"].flatten().tolist() == made["d.regroup"].flatten().tolist() == by_expert


def test_arrange_and_its_inverse_with_several_sources() -> None:
    """Counts may come per source rank; regroup and ungroup are each other's inverse."""
    b = Build(1)
    b.given("received", "int64[2, 3]")
    attrs = RowsAttrs(3, 1)
    index, ends = Tensor.parse("int64[tokens]"), Tensor.parse("int32[3]")
    b.op("arrange", "arrange", ("received", "received"), attrs, index, ends)
    b.op("by_expert", "regroup", ("x", "arrange.index"), attrs, b.types["x"])
    b.op("by_source", "ungroup", ("by_expert", "arrange.index"), attrs, b.types["x"])
    graph = b.graph("by_expert", "by_source", "arrange.ends")
    # From source 0: experts 0, 2, 2; from source 1: experts 0, 1, 1, 2.
    x = torch.tensor([[0.0], [2.0], [2.1], [0.5], [1.5], [1.6], [2.5]])
    inputs = {"x": x, "received": torch.tensor([[1, 0, 2], [1, 2, 1]])}
    by_expert, by_source, made_ends = interpret(graph, inputs, {})
    assert torch.equal(by_expert, x[[0, 3, 4, 5, 1, 2, 6]])
    assert torch.equal(by_source, x)
    assert made_ends.tolist() == [2, 4, 7]


def test_combine_sums_in_fp32() -> None:
    b = Build(1)
    b.given("r.experts", "int64[tokens, 3]")
    b.given("r.weights", "fp32[tokens, 3]")
    graph = b.graph(b.combine("back", b.dispatch("sent", "r", 3, 3), "r", 3, 3))
    inputs = {
        "x": torch.ones(1, 1, dtype=torch.bfloat16),
        "r.experts": torch.tensor([[2, 0, 1]]),
        "r.weights": torch.tensor([[256.0, 1.0, 1.0]]),
    }
    (y,) = interpret(graph, inputs, {})
    assert y.dtype == torch.bfloat16
    assert y.item() == 258.0  # bf16 alone: 256 + 1 is 256, twice


@pytest.mark.parametrize("form", FORMS[:2])
def test_shared_gated_shared_and_residual(form: dict[str, bool]) -> None:
    act = ActAttrs(Act.SWIGLU)
    b = Build(8, **form)
    r = b.route("r", ROUTE)
    h = b.act("h", b.expert_gemm("up", b.dispatch("sent", r, 5, 2), ExpertGemmAttrs(5, 12)), act)
    routed = b.combine("back", b.expert_gemm("down", h, ExpertGemmAttrs(5, 8)), r, 5, 2)
    shared = b.gemm("s.down", b.act("s.h", b.gemm("s.up", "x", GemmAttrs(8, bias=True)), act), GemmAttrs(8))
    gated = b.gemm("g.down", b.act("g.h", b.gemm("g.up", "x", GemmAttrs(6)), act), GemmAttrs(8, transposed=True))
    gate = b.act("gate.s", b.gemm("gate", "x", GemmAttrs(1)), ActAttrs(Act.SIGMOID))
    y = b.add("y1", routed, shared)
    y = b.add("y2", y, b.mul("gated", gate, gated))
    graph = b.graph(b.add("y3", y, "x"), shared)
    inputs, weights = data(graph)
    made, made_shared = interpret(graph, inputs, weights)
    for t, x in enumerate(inputs["x"].tolist()):
        one = naive_moe(x, weights, *naive_route(x, weights, ROUTE), act, False)
        two = naive_act(act, naive_linear(weights, "s.up", x, False))
        two = naive_linear(weights, "s.down", two, False)
        three = naive_act(act, naive_linear(weights, "g.up", x, False))
        three = naive_linear(weights, "g.down", three, True)
        factor = naive.sigmoid(naive_linear(weights, "gate", x, False)[0])
        expected = [a + b + factor * c + d for a, b, c, d in zip(one, two, three, x, strict=True)]
        assert made[t].tolist() == pytest.approx(expected)
        assert made_shared[t].tolist() == pytest.approx(two)


def test_two_dispatches_of_different_routes() -> None:
    """Each expert_gemm takes the row ends of its own dispatch."""
    b = Build(4)
    outs = []
    for name, experts, k in [("a", 3, 1), ("b", 5, 2)]:
        b.given(f"{name}.experts", f"int64[tokens, {k}]")
        b.given(f"{name}.weights", f"fp32[tokens, {k}]")
        h = b.expert_gemm(f"{name}.w", b.dispatch(f"{name}.sent", name, experts, k), ExpertGemmAttrs(experts, 4))
        outs.append(b.combine(f"{name}.back", h, name, experts, k))
    graph = b.graph(*outs)
    inputs, weights = data(graph)
    for name, made in zip("ab", interpret(graph, inputs, weights), strict=True):
        for t, x in enumerate(inputs["x"].tolist()):
            expected = [0.0] * 4
            for e, gate in zip(
                inputs[f"{name}.experts"][t].tolist(), inputs[f"{name}.weights"][t].tolist(), strict=True
            ):
                expert = naive_linear(weights, f"{name}.w", x, False, e)
                expected = naive.plus(expected, [gate * v for v in expert])
            assert made[t].tolist() == pytest.approx(expected)


def test_call() -> None:
    b = Build(4)
    graph = b.graph(b.call("attention", "block.attn", b.add("sum", "x", "x"), "x"))
    x = torch.randn(3, 4)
    (y,) = interpret(graph, {"x": x}, {}, modules={"block.attn": lambda a, b: a * b})
    assert torch.equal(y, 2 * x * x)


def test_weights_of_another_dtype() -> None:
    graph = moe(ROUTE, act=GPT_OSS, bias=True)
    inputs, weights = data(graph, dtype=torch.bfloat16)
    wide = {name: weight.float() for name, weight in weights.items()}
    (y,) = interpret(graph, {"x": inputs["x"].float()}, weights)
    assert y.dtype == torch.float32
    assert torch.equal(y, interpret(graph, {"x": inputs["x"].float()}, wide)[0])
