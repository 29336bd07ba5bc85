"""Transfers in two levels: what must be known, and by whom, is proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from epsc.ir.dims import Axis, Cut
from epsc.ir.errors import EpsError
from epsc.ir.impls import Choice, Condition, Metric
from epsc.ir.schedule import Schedule, Step
from epsc.proof.verify import prove
from tests.proof.schedules import compiled

LAYER = """
layer moe(x: bf16[tokens, 64]) {
  r    = route(x, experts=8, top_k=2)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, up, 64))
  back = combine(gemm(h, down, 64), r)
  return back
}
cluster c { ep = 4  nodes = 2 }
schedule s { use two_level for sent, back }
"""


def changed(made: Schedule, key: str, change: Callable[[Step], Step]) -> Schedule:
    return made.with_steps(tuple(change(step) if step.key == key else step for step in made.steps))


def untold(made: Schedule) -> Schedule:
    """Nobody tells how many rows pass through whom."""
    sizes = made.graph.node["sent.sizes"]
    node = replace(sizes, ins=sizes.ins[:2])
    nodes = tuple(node if each is sizes else each for each in made.graph.nodes)
    graph = made.graph.with_nodes(nodes, made.graph.types)
    made = replace(made, graph=graph)
    return changed(made, "sent.sizes", lambda step: replace(step, reads=step.reads[:2]))


BROKEN: dict[str, tuple[Callable[[Schedule], Schedule], str]] = {
    "untold": (untold, "to which nobody tells how many"),
    "no nodes": (lambda made: replace(made, meshes=made.meshes[:2]), "there is no mesh of nodes"),
    "by load": (
        lambda made: changed(
            made,
            "sent.all2all",
            lambda step: replace(step, impl=Choice("nccl", (("two_level", Condition(Metric.TOKENS, "<", 8)),))),
        ),
        "others would wait for it for ever",
    ),
    "by peer": (
        lambda made: changed(made, "sent.all2all", lambda step: replace(step, cuts=(Cut(Axis.PEER, 0, 4),))),
        "each piece goes to one rank, on one way",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_is_refused(name: str) -> None:
    made = compiled(LAYER).schedule
    prove(made)
    change, why = BROKEN[name]
    with pytest.raises(EpsError, match=why):
        prove(change(made))
