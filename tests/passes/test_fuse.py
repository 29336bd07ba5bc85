"""fuse: ops whose intermediate need not exist become one."""

from __future__ import annotations

import pytest

from epsc.ir.graph import Graph
from tests.passes.block import BLOCK, decided, keys
from tests.proof.schedules import compiled


def test_fuse_joins_the_sum_with_the_unpermute_unless_told_not_to() -> None:
    joined = decided(passes="fuse{addends=false}")
    assert [n.kind for n in joined.graph.nodes if n.origin == "back"][-1] == "unpermute_sum"
    plain = decided(passes="fuse{sums=false}")
    assert [n.kind for n in plain.graph.nodes if n.origin == "back"][-2:] == ["unpermute", "weighted_sum"]


@pytest.mark.parametrize(
    "directives",
    [
        "",
        "use persistent for up",
        "use persistent for up when mean_rows > 8 else dense",
        "use grouped for down  use torch for mlp, back",
        "split sent, h, back by expert_group into 2",
        "split sent, up, h, back by expert_group into 2  run h, up on other",
        "run mlp before up  run mlp beside h",
    ],
)
def test_fuse_joins_an_expert_gemm_and_its_activation(directives: str) -> None:
    node = decided(directives).graph.node["h"]
    assert (node.kind, node.params, node.origin, node.also) == ("expert_gemm_act", ("up",), "h", ("up",))
    assert "up" not in decided(directives).graph.node


@pytest.mark.parametrize(
    "directives",
    [
        "use grouped for up",
        "use dense for up when rows < 8 else batched",
        "use torch for h",
        "use persistent for up  use triton for h",
        "run up on here  run h on there",
        "run up on here  run h on compute",
    ],
)
def test_fuse_keeps_apart_what_the_schedule_speaks_of_apart(directives: str) -> None:
    graph = decided(directives).graph
    assert (graph.node["up"].kind, graph.node["h"].kind) == ("expert_gemm", "activation")


@pytest.mark.parametrize("more", ["bias=true", "transposed=true"])
def test_fuse_joins_products_with_biases_and_of_weights_as_in_out(more: str) -> None:
    found = compiled(BLOCK.replace("up, 64)", f"up, 64, {more})")).schedule.graph
    assert found.node["h"].kind == "expert_gemm_act"


def test_fuse_keeps_apart_what_is_cut_differently() -> None:
    bound = BLOCK.replace("h    = swiglu(gemm(sent, up, 64))", "g = gemm(sent, up, 64)\n  h = swiglu(g)")
    cuts = "split g by expert_group into 2  split h by expert_group into 5"
    made = compiled(f"{bound}\ncluster c {{ ep = 2 }}\nschedule s {{ {cuts} }}").schedule
    assert (len(keys(made, "g")), len(keys(made, "h"))) == (2, 5)


def test_fuse_leaves_what_the_persistent_kernel_cannot_run_or_others_read() -> None:
    for old, new in (
        ("up, 64)", "up, 36)"),
        ("swiglu(gemm(sent", "relu(gemm(sent"),
        ("bf16", "fp32"),
    ):
        assert compiled(BLOCK.replace(old, new)).schedule.graph.node["h"].kind == "activation", new
    twice = BLOCK.replace("h    = swiglu(gemm(sent, up, 64))", "g = gemm(sent, up, 64)  h = swiglu(g) + geglu(g)")
    assert "expert_gemm_act" not in {node.kind for node in compiled(twice).schedule.graph.nodes}
    plain = decided(passes="fuse{epilogue=false}")
    assert plain.graph.node["h"].kind == "activation" and plain.graph.node["return"].kind == "unpermute_sum"


def test_what_is_joined_is_found_by_every_name_that_it_had() -> None:
    bound = BLOCK.replace("h    = swiglu(gemm(sent, up, 64))", "g = gemm(sent, up, 64)\n  h = swiglu(g)")
    for name in ("g", "up", "h"):
        made = compiled(f"{bound}\ncluster c {{ ep = 2 }}\nschedule s {{ run {name} on other }}").schedule
        assert made.step["h"].lane == "other" and made.graph.node["h"].also == ("g", "up")
        assert Graph.parse(str(made.graph)) == made.graph
    in_stack = decided("run up on other", layers=2)
    assert [step.node for step in in_stack.steps if step.lane == "other"] == ["layers.0.h", "layers.1.h"]


def test_fuse_joins_a_product_and_what_brings_its_rows_home_where_that_is_asked_for() -> None:
    apart = decided("use put for sent, back").graph
    assert (apart.node["down"].kind, apart.node["back.put"].kind) == ("expert_gemm", "put_back")
    joined = decided("use put for sent  use direct for back").graph
    put = joined.node["back.put"]
    assert (put.kind, put.params, put.origin, put.also) == ("expert_gemm_put", ("down",), "back", ("down",))
    assert put.ins == ("h", "sent.aim.ends", "sent.aim.place", "sent.tell.counts")
    assert "down" not in joined.node
    assert Graph.parse(str(joined)) == joined
