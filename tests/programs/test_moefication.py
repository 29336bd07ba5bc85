"""MoEfication of examples/papers, on ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver
from epsc.ir.attrs import RouteAttrs
from epsc.passes.moefy import Moefy
from epsc.proof.happens import Happens
from tests.programs.ranks import Job, Ranks, load_program

PAPER = Path(__file__).parents[2] / "examples" / "papers" / "moefication.py"
LIMIT = 1e-5


def test_the_file_beside_it_is_what_the_pass_makes() -> None:
    paper = load_program(str(PAPER))
    made = paper.understood(paper.FEW).said
    said = driver.understand(driver.read(PAPER.with_suffix(".eps"))).said
    assert [(node.kind, node.attrs) for node in said.nodes] == [(node.kind, node.attrs) for node in made.nodes]
    assert sorted(str(p.type) for p in said.params) == sorted(str(p.type) for p in made.params)


@pytest.mark.distributed
@pytest.mark.parametrize("top_k", [3, 8])
def test_moefication(ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job], top_k: int) -> None:
    """A dense FFN of ReLU becomes a router, a dispatch, two products of experts and a sum without weights.

    It equals the interpreter on ranks; tests of the pass say that with every expert it is the dense layer.
    """
    paper = load_program(str(PAPER))
    dense = paper.understood(Moefy(), "small", ep="2").said
    assert [node.kind for node in dense.nodes] == ["call", "gemm", "activation", "gemm", "add"]
    layer = paper.understood(Moefy(8, top_k), "small", ep="2", hidden=str(64 + top_k * 8))
    kinds = [node.kind for node in layer.said.nodes]
    assert kinds == ["call", "route", "dispatch", "expert_gemm", "activation", "expert_gemm", "combine", "add"]
    assert layer.said.node["ffn_router"].attrs == RouteAttrs(8, top_k, weighted=False)
    assert {str(param.type.shape[0]) for param in layer.said.params if param.sharded} == {"8"}
    schedule = driver.plan(layer, "groups").schedule
    assert Happens.of(schedule).beside("ffn_up[expert_group:0/2]", "ffn_sent.all2all[expert_group:1/2]")
    for decl in ("groups", "serial"):
        for seed, tokens in enumerate(((24, 24), (0, 7))):
            results = ranks_of(2).run(prepare(layer, decl, tokens, seed=seed))
            assert max(result.error for result in results) < LIMIT, f"{decl}, tokens {tokens}"
