"""Break schedules that are cut by peer, by columns, or by groups of experts whose rows travel one-sided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from epsc.ir.dims import Axis
from epsc.ir.errors import EpsError
from epsc.ir.rows import by_source
from epsc.ir.schedule import Layout, Ref, Schedule
from epsc.proof.verify import prove
from tests.proof.mutations import MUTATORS, shuffled
from tests.proof.schedules import Made, compiled
from tests.proof.test_mutations import check

LAYER = """
layer moe(x: bf16[tokens, 64]) {
  r    = route(x, experts=16, top_k=3)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 48))
  back = combine(gemm(h, down, 64), r)
  return back + mlp(x, swiglu, 32)
}
cluster c { device = h200  ep = 4 }
"""
PEERS = "split sent, h by peer into ep  split back by columns into 2"
GROUPS = "use put for sent, back  split sent, h, back by expert_group into 3"
CUTS = (
    PEERS,
    f"{PEERS}  reserve 16 sms for sent, back",
    f"{GROUPS}  reserve 16 sms for sent, back",
    "use put for sent, back  dedup sent  local_reduce back  split sent, h by expert_group into 2"
    "  split back by columns into 2  reserve 16 sms for sent  reserve 24 sms for back",
)


def made(directives: str) -> Made:
    return Made(directives, compiled(f"{LAYER}schedule s {{ {directives} }}"))


def refused(broken: Schedule) -> set[str]:
    with pytest.raises(EpsError) as caught:
        prove(broken)
    return {d.code for d in caught.value.diagnostics}


@pytest.mark.parametrize("directives", CUTS)
def test_a_mutation_is_caught(directives: str) -> None:
    whole, random, count = made(directives), Random(3), 0
    for mutator in MUTATORS:
        for mutant in islice(mutator(whole.schedule, shuffled(random)), 4):
            check(whole, mutator, mutant)
            count += 1
    assert count >= 60


@pytest.mark.parametrize("directives", CUTS)
def test_a_wait_for_the_chunk_before_is_no_wait_for_this_one(directives: str) -> None:
    schedule, count = made(directives).schedule, 0
    for broken in _wait_for_the_chunk_before(schedule):
        assert refused(broken) & {"race", "unsignalled"}
        count += 1
    assert count >= 2


def _wait_for_the_chunk_before(schedule: Schedule) -> Iterator[Schedule]:
    for i, step in enumerate(schedule.steps):
        for wait in step.waits:
            chunks = [other.key for other in schedule.steps if other.node == schedule.step[wait.step].node]
            if (at := chunks.index(wait.step)) > 0:
                waits = tuple(replace(w, step=chunks[at - 1]) if w is wait else w for w in step.waits)
                yield schedule.with_steps((*schedule.steps[:i], replace(step, waits=waits), *schedule.steps[i + 1 :]))


def test_rows_of_several_ranks_are_not_by_expert() -> None:
    """The first product of all ranks at once would multiply rows of one expert with the weights of another."""
    schedule = made(PEERS).schedule
    for node in ("h", "gate_up"):
        chunks = [step for step in schedule.steps if step.node == node]
        if not chunks or not by_source(schedule.graph, schedule.graph.node[node].ins[0]):
            continue
        reads, writes = (tuple(Ref(ref.value) for ref in refs) for refs in (chunks[-1].reads, chunks[-1].writes))
        whole = replace(chunks[-1], cuts=(), reads=reads, writes=writes)
        steps = [whole if step is chunks[-1] else step for step in schedule.steps if step not in chunks[:-1]]
        assert "layout" in refused(schedule.with_steps(tuple(steps)))
        return
    raise AssertionError("nothing runs on rows as they come")


@pytest.mark.parametrize(
    "wrong", [Layout("sent"), Layout("sent", Axis.PEER, 2), Layout("sent", Axis.EXPERT_GROUP, 4)], ids=str
)
def test_rows_must_lie_by_rank(wrong: Layout) -> None:
    schedule = made(PEERS).schedule
    assert refused(replace(schedule, layouts=(wrong,))) == {"layout"}


def test_a_product_needs_every_column() -> None:
    schedule = made("use put for sent, back  split back by columns into 2").schedule
    step = schedule.step["down[columns:0/2]"]
    reads = tuple(Ref(ref.value, step.cuts) if ref.value == "h" else ref for ref in step.reads)
    steps = tuple(replace(step, reads=reads) if each is step else each for each in schedule.steps)
    assert refused(schedule.with_steps(steps)) == {"operands"}
