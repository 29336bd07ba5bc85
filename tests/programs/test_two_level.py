"""All2alls in two levels, within nodes and between them, bring the same rows, and equal the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver
from epsc.ir.source import Source
from tests.programs.ranks import Job, Ranks

LIMIT = 1e-5
SCHEDULES = {
    "both": "use two_level for sent, back",
    "there": "use two_level for sent",
    "home": "use two_level for back",
    "groups": "split sent, h, back by expert_group into 2  use two_level for sent, back",
    "tokens": "split sent, h, back by tokens into 3  use two_level for sent, back  reserve 16 sms for sent, back",
    "columns": "split back by columns into 2  use two_level for sent, back",
    "apart": "split sent, h, back by tokens into 2  use two_level for sent  run back on home",
}
LAYER = """
layer moe(x: bf16[tokens, 64]) {
  r    = route(x, experts=16, top_k=3, threshold=%s)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 64))
  back = combine(gemm(h, down, 64), r)
  return back
}

cluster c { device = h200  ep = %d  nodes = 2 }
tokens 1 .. 64
"""


def layer_of(ep: int, threshold: str = "0", names: tuple[str, ...] = tuple(SCHEDULES)) -> driver.Layer:
    said = "".join(f"schedule {name} {{ {SCHEDULES[name]} }}\n" for name in names)
    return driver.understand(Source("two_level.eps", LAYER % (threshold, ep) + said))


@pytest.mark.distributed
@pytest.mark.parametrize("name", SCHEDULES)
def test_on_two_nodes_of_two(name: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    layer = layer_of(4)
    cases = [((9, 0, 17, 1), "random"), ((5, 7, 1, 12), "skewed"), ((3, 0, 0, 2), "one")]
    for seed, (tokens, routing) in enumerate(cases):
        results = ranks_of(4).run(prepare(layer, name, tokens, routing=routing, seed=seed))
        assert max(result.error for result in results) < LIMIT, (tokens, routing)


@pytest.mark.distributed
def test_of_some_copies(ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    """Those below a threshold go nowhere, and so through no other rank."""
    layer = layer_of(4, "0.1", ("groups",))
    results = ranks_of(4).run(prepare(layer, "groups", (9, 0, 17, 1)))
    assert max(result.error for result in results) < LIMIT


@pytest.mark.distributed
def test_on_two_nodes_of_four(ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    """Nodes and places are not as many: which of the two a count is by shows."""
    layer = layer_of(8, names=("both", "tokens"))
    for name in ("both", "tokens"):
        results = ranks_of(8).run(prepare(layer, name, (9, 0, 17, 1, 4, 4, 30, 2), routing="skewed"))
        assert max(result.error for result in results) < LIMIT, name


def test_rows_pass_through_one_rank_of_each_node() -> None:
    """The counts of what passes are told within nodes; transfers are over communicators of both levels."""
    made = driver.plan(layer_of(8, names=("both",)), "both")
    node = made.schedule.graph.node["sent.passing"]
    assert (node.kind, node.attrs.mesh) == ("pass_counts", "intra")  # type: ignore[union-attr]
    assert made.schedule.graph.node["sent.sizes"].ins[-1] == "sent.passing"
    assert made.schedule.mesh_of("intra").groups("intra") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert made.schedule.mesh_of("inter").groups("inter") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    text = driver.write(made).text
    assert '"ep.intra": (0, 1, 4)' in text and '"ep.inter": (0, 4, 2)' in text


def test_examples_of_other_nodes_are_untouched() -> None:
    """Where nothing goes in two levels, nothing in a program speaks of them."""
    path = Path(__file__).parents[2] / "examples" / "papers" / "fsmoe.eps"
    text = driver.write(driver.plan(driver.understand(driver.read(path)), "fsmoe")).text
    assert "two_level" not in text and "NODE_RANKS" not in text
