"""Cuts by peer and by columns, and cuts of one-sided transfers: as the interpreter, in the order that they are for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from epsc import driver
from epsc.ir.dims import Axis, Cut
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.proof.happens import Happens
from tests.programs.ranks import Job, Ranks

LIMIT = 1e-5
LAYER = """
layer moe(x: bf16[tokens, 32]) {{
  r    = route(x, experts=12, top_k=3, score=softmax)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 48{options}))
  back = combine(gemm(h, down, 32{options}), r)
  return back + mlp(x, swiglu, 16)
}}
cluster c {{ device = h200  ep = {ep} }}
tokens 0 .. 12
schedule s {{ {directives} }}
"""
PUT = "use put for sent, back"
CUTS = {
    "peers": "split sent, h by peer into ep",
    "peers, product alone": "split sent, gate_up by peer into ep",
    "peers, columns": "split sent, h by peer into ep  split back by columns into 2  reserve 16 sms for sent, back",
    "home by peer": "split back by peer into ep",
    "columns": "split back by columns into 4  use batched for down",
    "columns of groups": "split h by expert_group into 2  split back by columns into 2  use grouped for gate_up, down",
    "put groups": f"{PUT}  split sent, h, back by expert_group into 3",
    "put groups, columns": f"{PUT}  split sent, h by expert_group into 2  split back by columns into 2",
    "dedup, sums": f"{PUT}  dedup sent  local_reduce back  split sent, h by expert_group into 2"
    "  split back by columns into 4  reserve 16 sms for sent, back",
    "copy, groups": "use copy for sent  use put for back  split sent, back by expert_group into 2",
}


def layer_of(ep: int, directives: str, options: str = "") -> driver.Layer:
    return driver.understand(Source("moe.eps", LAYER.format(ep=ep, directives=directives, options=options)))


def planned(directives: str, ep: int = 4) -> Schedule:
    return driver.plan(layer_of(ep, directives)).schedule


@pytest.mark.distributed
@pytest.mark.parametrize("ep", [2, 4])
@pytest.mark.parametrize("cuts", CUTS)
def test_equals_the_interpreter(
    cuts: str, ep: int, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    for seed, (tokens, routing) in enumerate(
        (((12,) * ep, "random"), (tuple(range(ep)), "skewed"), ((1, 9) * (ep // 2), "one"))
    ):
        job = prepare(layer_of(ep, CUTS[cuts]), "s", tokens, routing=routing, seed=seed)
        assert max(found.error for found in ranks_of(ep).run(job)) < LIMIT, f"tokens {tokens}, routing {routing}"


@pytest.mark.distributed
@pytest.mark.parametrize("impl", ["dense", "grouped", "batched"])
@pytest.mark.parametrize("options", ["", ", transposed=true", ", bias=true", ", bias=true, transposed=true"])
def test_columns_of_weights_as_checkpoints_hold_them(
    options: str, impl: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    directives = f"split sent, h by peer into ep  split back by columns into 2  use {impl} for gate_up, down"
    job = prepare(layer_of(2, directives, options), "s", (12, 5))
    assert max(found.error for found in ranks_of(2).run(job)) < LIMIT


def test_the_first_group_does_not_wait_for_the_rows_of_later_ones() -> None:
    made = planned(f"{PUT}  split sent, h, back by expert_group into 3  reserve 16 sms for sent, back")
    happens = Happens.of(made)
    chunks = [f"[expert_group:{i}/3]" for i in range(3)]
    for chunk in chunks:
        (wait,) = (wait for wait in made.step[f"h{chunk}"].waits if wait.step == f"sent{chunk}")
        assert wait.everywhere  # other ranks write these rows: a signal for each chunk
        assert happens.before(f"down{chunk}", f"back.put{chunk}")
    for chunk, later in pairwise(chunks):
        assert happens.beside(f"h{chunk}", f"sent{later}")
        assert happens.beside(f"back.put{chunk}", f"h{later}")
    # The result needs all of them.
    assert all(happens.before(f"back.put{chunk}", "return") for chunk in chunks)
    assert {made.step[f"{node}{chunks[0]}"].sms for node in ("sent", "back.put")} == {16}
    assert {made.step[f"{node}{chunks[0]}"].sms for node in ("h", "down")} == {116}


def test_columns_go_home_while_others_are_made() -> None:
    made = planned(f"{PUT}  local_reduce back  split back by columns into 2  reserve 16 sms for back")
    happens = Happens.of(made)
    first, second = "[columns:0/2]", "[columns:1/2]"
    # A product needs every column of what it reads, and sends some of what it makes.
    (reads,) = (ref for ref in made.step[f"down{first}"].reads if ref.value == "h")
    assert not reads.cuts
    (writes,) = made.step[f"down{first}"].writes
    assert writes.cuts == (Cut(Axis.COLUMNS, 0, 2),)
    assert happens.beside(f"back.put{first}", f"down{second}")
    assert happens.before(f"back.put{first}", f"return{first}")
    assert not happens.before(f"back.put{second}", f"return{first}")
    (signal,) = (wait for wait in made.step[f"return{second}"].waits if wait.step.startswith("back.put"))
    assert signal.everywhere and signal.step == f"back.put{second}"


def test_own_rows_first() -> None:
    """A program has one order of chunks for all ranks, and the chunk 0 stays on each."""
    made = planned("split sent, h by peer into ep")
    happens = Happens.of(made)
    place = {step.key: i for i, step in enumerate(made.steps)}
    peers = [f"[peer:{i}/4]" for i in range(4)]
    for one, other in pairwise(peers):
        assert place[f"sent{one}"] < place[f"sent{other}"] and place[f"h{one}"] < place[f"h{other}"]
        assert happens.beside(f"h{one}", f"sent{other}")
    # What one rank sent is by expert already; for the second product the rows of all ranks go by expert.
    assert [node.name for node in made.graph.nodes if node.kind == "regroup"] == ["h.regroup"]
    assert all(happens.before(f"h{peer}", "h.regroup") for peer in peers)
    text = driver.write(driver.plan(layer_of(4, "split sent, h by peer into ep"))).text
    assert "to, source = (self.rank + i) % EP, (self.rank - i) % EP" in text
