"""Ranks with the same tokens that send a share of them each, and gather what came home: values, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from epsc import driver
from epsc.ir.errors import EpsError
from epsc.ir.source import Source
from epsc.proof.verify import prove
from tests.programs.ranks import Job, Ranks

LIMIT = 1e-5
LAYER = """
layer moe(x: bf16[tokens, 64]) {
  r     = route(x, experts=16, top_k=3, renorm=true)
  share = split_tokens(r, tp)
  sent  = dispatch(split_tokens(x, tp), share)
  h     = swiglu(gemm(sent, gate_up, 64))
  back  = combine(gemm(h, down, 64), r)
  return back + mlp(x, swiglu, 32)
}

cluster c { device = h200  ep = 4  tp = %d  nodes = 2 }
tokens 1 .. 64
"""
SCHEDULES = {
    "serial": "",
    "home_by_peer": "split back by peer into ep  run tp on gather",
    "all_by_peer": "split sent, h, back by peer into ep  reserve 16 sms for ep  reserve 8 sms for tp",
    "by_group": "split sent, h, back by expert_group into 2",
    "by_tokens": "split sent, h, back by tokens into 3",
    "by_columns": "split back by columns into 2  run tp on gather",
    "two_level": "use two_level for sent, back",
}


def layer_of(tp: int) -> driver.Layer:
    said = "".join(f"schedule {name} {{ {text} }}\n" for name, text in SCHEDULES.items())
    return driver.understand(Source("shares.eps", LAYER % tp + said))


@pytest.mark.distributed
@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_the_interpreter(name: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    """Ranks 0 and 1, and 2 and 3, have the same tokens."""
    layer = layer_of(2)
    cases = [((9, 9, 17, 17), "random"), ((1, 1, 0, 0), "random"), ((5, 5, 12, 12), "one")]
    for seed, (tokens, routing) in enumerate(cases):
        results = ranks_of(4).run(prepare(layer, name, tokens, routing=routing, seed=seed))
        assert max(result.error for result in results) < LIMIT, (tokens, routing)


@pytest.mark.distributed
def test_all_have_the_same(ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    layer = layer_of(4)
    for name in ("serial", "home_by_peer"):
        results = ranks_of(4).run(prepare(layer, name, (11,) * 4, routing="skewed"))
        assert max(result.error for result in results) < LIMIT, name


def test_a_piece_that_comes_home_otherwise_is_refused() -> None:
    made = driver.plan(layer_of(2), "home_by_peer").schedule
    prove(made)
    whole = driver.plan(layer_of(2), "serial").schedule
    parts = {step.key for step in made.steps if step.node == "back.all2all"}
    home = replace(whole.step["back.all2all"], lane="combine", comm="combine")
    steps = [step for step in made.steps if step.key not in parts]
    place = next(i for i, step in enumerate(steps) if step.node == "back.gather")
    steps.insert(place, home)
    with pytest.raises(EpsError, match="gathers a piece that does not come home as one"):
        prove(made.with_steps(tuple(steps)))
