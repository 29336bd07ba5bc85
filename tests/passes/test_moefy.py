"""MoEfication: what the pass makes of dense FFNs, and that nothing is lost where every expert is met."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import epsc
from epsc import driver
from epsc.api.moefy import clusters
from epsc.interpret import interpret
from epsc.interpret.weights import random_weights
from epsc.ir.errors import EpsError
from epsc.ir.graph import Graph
from epsc.passes.moefy import Moefy, ffns_of
from epsc.passes.pipeline import PIPELINE

TEXT = """
layer block(x: fp32[tokens, 16]) {
  ffn = mlp(x, relu, 48)
  own = gemm(relu2(gemm(ffn, wide, 24, bias=true, transposed=true)), back, 16, transposed=true)
  return own + mlp(x, swiglu, 8) + call(tail, mlp(x, relu, 32, shared=true))
}
layer net(x: fp32[tokens, 16]) { return stack(block, x, 2) }
cluster c { ep = 2 }
"""


def understood(by: Moefy, text: str = TEXT) -> driver.Layer:
    pipeline = tuple(by if isinstance(each, Moefy) else each for each in PIPELINE)
    return driver.understand(driver.Source("net.eps", text), driver.Options(pipeline=pipeline))


def run(graph: Graph, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    modules = {f"layers.{i}.tail": torch.tanh for i in range(2)}
    (y,) = interpret(graph, {"x": x}, weights, modules=modules)
    return y


@pytest.mark.parametrize("by", [Moefy(8), Moefy(8, 8), Moefy(4, router=6)])
def test_with_all_experts_it_is_the_dense_ffn(by: Moefy) -> None:
    dense = understood(Moefy())
    cut = understood(by)
    assert len(ffns_of(dense.said)) == 6 and not ffns_of(cut.said)
    # Whole numbers: sums of them are exact in whatever order they are made.
    numbers = torch.Generator().manual_seed(1)
    weights = {
        param.name: torch.randint(-2, 3, [dim.scale for dim in param.type.shape], generator=numbers).double()
        for param in dense.said.params
    }
    x = torch.randint(-2, 3, (9, 16), generator=numbers).double()
    modules = {f"layers.{i}.tail": torch.tanh for i in range(2)}
    relaid = epsc.moefied(dense.said, by, weights, {"x": x}, modules)
    first = replace(dense.said, results=("layers.0.ffn", "layers.0.own"))
    after = replace(cut.said, results=first.results)
    for wanted, made in zip(
        interpret(first, {"x": x}, weights, modules=modules),
        interpret(after, {"x": x}, relaid, modules=modules),
        strict=True,
    ):
        assert wanted.abs().max() > 0 and torch.equal(made, wanted)
    assert torch.allclose(run(cut.graph, x, relaid), run(dense.said, x, weights), rtol=1e-12)


def test_neurons_that_look_for_the_same_are_one_expert() -> None:
    numbers = torch.Generator().manual_seed(2)
    centres = torch.randn(6, 32, generator=numbers) * 4
    of = torch.arange(60) % 6
    rows = centres[of] + torch.randn(60, 32, generator=numbers) * 0.1
    order = clusters(rows, 6)
    assert sorted(order.tolist()) == list(range(60))
    assert all(len({*of[run].tolist()}) == 1 for run in order.view(6, 10))
    assert torch.equal(order, clusters(rows, 6))


@pytest.mark.parametrize("router", [0, 32])
def test_a_few_experts_are_most_of_an_ffn_whose_neurons_fire_together(router: int) -> None:
    """Neurons in bundles that fire for one direction each: a third of the experts, well chosen, leaves little out."""
    text = "layer net(x: fp32[tokens, 32]) { return mlp(x, relu, 96) }"
    numbers = torch.Generator().manual_seed(3)
    looks = torch.linalg.qr(torch.randn(32, 32, generator=numbers)).Q[:12]
    up = looks.repeat_interleave(8, 0) + torch.randn(96, 32, generator=numbers) * 0.02
    weights = {"mlp.up": up[torch.randperm(96, generator=numbers)], "mlp.down": torch.randn(32, 96, generator=numbers)}
    dense = understood(Moefy(), text).said
    x = torch.randn(200, 32, generator=numbers)
    (wanted,) = interpret(dense, {"x": x}, weights)
    errors = {}
    for k in (4, 6, 12):
        by = Moefy(12, k, router)
        relaid = epsc.moefied(dense, by, weights, {"x": torch.randn(500, 32, generator=numbers)})
        (made,) = interpret(by(dense), {"x": x}, relaid)
        errors[k] = float((made - wanted).norm() / wanted.norm())
        worst = {**relaid, "mlp.up.router.weight": -relaid["mlp.up.router.weight"]}
        (made,) = interpret(by(dense), {"x": x}, worst)
        assert k == 12 or float((made - wanted).norm() / wanted.norm()) > 2 * errors[k]
    assert errors[12] < 1e-5 < errors[6] < errors[4] < 0.5


def test_the_structure_is_that_of_an_moe() -> None:
    made = understood(Moefy(8, 3, router=6)).said
    kinds = [node.kind for node in made.nodes if node.name.startswith("layers.0.ffn")]
    assert kinds == ["gemm", "activation", "route", "dispatch", "expert_gemm", "activation", "expert_gemm", "combine"]
    assert made.node["layers.0.ffn_router"].attrs.weighted is False  # type: ignore[union-attr]
    assert str(made.param["layers.0.ffn.up"].type) == "fp32[8, 6, 16]" and made.param["layers.0.ffn.up"].sharded
    assert str(made.param["layers.0.wide"].type) == "fp32[8, 16, 3]"
    assert str(made.param["layers.0.wide.bias"].type) == "fp32[8, 3]"
    assert str(made.param["layers.1.back"].type) == "fp32[8, 3, 16]"
    # One shared FFN is cut once, and has one router.
    assert [node.name for node in made.nodes if "mlp.2.up.router.weight" in node.params] == [
        "layers.0.mlp.2_router",
        "layers.1.mlp.2_router",
    ]
    # A gated FFN stays as it is.
    assert made.node["layers.0.mlp.gate_up"].kind == "gemm"
    assert not ffns_of(made)
    assert Graph.parse(str(made)) == made


@pytest.mark.parametrize(
    ("body", "by", "message"),
    [
        ("return mlp(x, relu, 30)", Moefy(4), "30 neurons cannot be shared evenly by 4 experts"),
        ("return mlp(x, relu, 32)", Moefy(3), "cannot be shared evenly by"),
        ("return mlp(x, relu, 30)", Moefy(3), "3 experts cannot be shared evenly by ep = 2 ranks"),
        ("return mlp(x, relu, 32, bias=true)", Moefy(4), "adds a bias to what it makes"),
        ("return mlp(x, gelu, 32)", Moefy(4), "has no dense FFN that `moefy` could cut"),
        ("h = relu(gemm(x, a, 16))\n return gemm(h, b, 16) + h", Moefy(4), "has no dense FFN"),
        ("return gemm(relu(gemm(x, a, 16)), b, 16) + gemm(x, a, 16)", Moefy(4), "cannot be cut into experts: "),
        ("y = mlp(x, relu, 32)\n y_sent = gelu(x)\n return y + y_sent", Moefy(4), "would call an op `y_sent`"),
    ],
)
def test_refuses(body: str, by: Moefy, message: str) -> None:
    with pytest.raises(EpsError, match=message):
        understood(by, f"layer net(x: fp32[tokens, 16]) {{ {body} }}\ncluster c {{ ep = 2 }}")
    with pytest.raises(EpsError, match="there are only 4 experts"):
        Moefy(4, 5)


def test_a_router_of_two_layers_needs_inputs() -> None:
    dense = understood(Moefy()).said
    with pytest.raises(EpsError, match="give inputs of the dense layer"):
        epsc.moefied(dense, Moefy(8, router=4), random_weights(dense, 0, torch.float32))
