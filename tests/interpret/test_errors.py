"""What interpret says when it is given the wrong things."""

import pytest
import torch
from torch import Tensor

from epsc.interpret import interpret
from epsc.interpret.weights import random_inputs, random_weights
from epsc.ir.attrs import Act, ActAttrs, ExpertGemmAttrs, GemmAttrs, RouteAttrs
from epsc.ir.errors import EpsError
from epsc.ir.graph import Graph
from tests.interpret.build import Build, moe

GRAPH = moe(RouteAttrs(5, 2), act=ActAttrs(Act.SWIGLU))


def given() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return random_inputs(GRAPH, 3, 0, torch.float32), random_weights(GRAPH, 0, torch.float32)


def test_missing_input_and_weight_are_said_together() -> None:
    _, weights = given()
    weights["up.wieght"] = weights.pop("up.weight")
    with pytest.raises(EpsError) as caught:
        interpret(GRAPH, {}, weights)
    assert str(caught.value).splitlines() == [
        "error: input `x` (bf16[tokens, 8]) of `layer` is missing",
        "  help: nothing of that kind is defined",
        "error: weight `up.weight` (bf16[5, 12, 8]) of `layer` is missing",
        "  help: did you mean `up.wieght`?",
    ]


def test_wrong_shapes() -> None:
    inputs, weights = given()
    weights["up.weight"] = torch.zeros(5, 8, 12)
    with pytest.raises(EpsError) as caught:
        interpret(GRAPH, {"x": torch.zeros(3, 7)}, weights)
    assert str(caught.value).splitlines() == [
        "error: input `x` should have shape [3, 8] (bf16[tokens, 8]), but has [3, 7]",
        "error: weight `up.weight` should have shape [5, 12, 8], but has [5, 8, 12]",
    ]
    with pytest.raises(EpsError, match=r"should have shape \[tokens, 8\] .*, but has \[1, 3, 8\]"):
        interpret(GRAPH, {"x": inputs["x"][None]}, weights)


def two_inputs() -> Graph:
    b = Build(4)
    return b.graph(b.add("y", "x", b.given("z", "bf16[tokens, 4]")))


def test_inputs_disagree_on_tokens() -> None:
    message = r"input `z` should have shape \[0, 4\] \(bf16\[tokens, 4\], tokens is 0 in input `x`\), but has \[2, 4\]"
    with pytest.raises(EpsError, match=message):
        interpret(two_inputs(), {"x": torch.zeros(0, 4), "z": torch.zeros(2, 4)}, {})


def test_whole_numbers_where_reals_are_meant() -> None:
    with pytest.raises(EpsError, match=r"input `z` should be bf16\[tokens, 4\], but is torch.int64"):
        interpret(two_inputs(), {"x": torch.zeros(2, 4), "z": torch.zeros(2, 4, dtype=torch.int64)}, {})


def test_modules() -> None:
    b = Build(4)
    graph = b.graph(b.call("y", "attn", "x"))
    x = torch.zeros(3, 4)
    with pytest.raises(EpsError, match=r"module `attn` that op `y` calls is missing\n  help: did you mean `atn`"):
        interpret(graph, {"x": x}, {}, modules={"atn": torch.relu})
    with pytest.raises(EpsError, match=r"`y`, made by op `y` \(call\), should have shape \[3, 4\] .* has \[4, 3\]"):
        interpret(graph, {"x": x}, {}, modules={"attn": torch.t})
    with pytest.raises(EpsError, match="should be a tensor, but is a list"):
        interpret(graph, {"x": x}, {}, modules={"attn": lambda x: x.tolist()})


def test_result_that_is_not_as_typed() -> None:
    b = Build(4)
    b.gemm("y", "x", GemmAttrs(6))
    b.types["y"] = b.types["x"]
    graph = b.graph("y")
    with pytest.raises(EpsError, match=r"`y`, made by op `y` \(gemm\), should have shape \[2, 4\] .* has \[2, 6\]"):
        interpret(graph, {"x": torch.zeros(2, 4)}, random_weights(graph, 0, torch.float32))


@pytest.mark.parametrize("expert", [-1, 5])
def test_no_such_expert(expert: int) -> None:
    b = Build(4)
    b.given("r.experts", "int64[tokens, 1]")
    graph = b.graph(b.dispatch("sent", "r", 5, 1))
    with pytest.raises(EpsError, match=f"chose expert {expert}, but there are 5"):
        interpret(graph, {"x": torch.zeros(2, 4), "r.experts": torch.tensor([[0], [expert]])}, {})


def test_expert_gemm_on_what_no_dispatch_sent() -> None:
    b = Build(4)
    graph = b.graph(b.expert_gemm("y", "x", ExpertGemmAttrs(5, 4)))
    with pytest.raises(EpsError, match=r"op `y` .* reads `x`, which is not rows of a dispatch"):
        interpret(graph, {"x": torch.zeros(2, 4)}, random_weights(graph, 0, torch.float32))


def test_graph_that_does_not_verify() -> None:
    with pytest.raises(EpsError, match="the result `nobody` is made by nothing"):
        interpret(Graph("g", ("x",), GRAPH.types, (), (), ("nobody",)), {"x": torch.zeros(2, 8)}, {})
