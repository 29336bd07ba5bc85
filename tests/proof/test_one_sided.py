"""What other ranks write: there before it is read, read before it is overwritten, and no wait for what never comes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epsc.ir.errors import EpsError, Faults
from epsc.ir.schedule import Schedule
from epsc.proof.collectives import check_collectives
from epsc.proof.one_sided import check_one_sided
from epsc.proof.verify import prove
from tests.proof.schedules import compiled

ROWS = "\n".join(
    (
        "graph rows(x: bf16[tokens, 8], ids: int64[tokens, 2], weights: fp32[tokens, 2]) -> seen.place {",
        "  d.count = count(ids; experts=4, top_k=2) of d : int32[2*tokens] | int32[4]",
        "  d.tell = tell(ids, weights, d.count.within, d.count.counts; direction=dispatch, experts=4, top_k=2) of d :"
        " int32[2*slots] | fp32[2*slots] | int32[2*slots] | int32[4*ranks]",
        "  seen = locate(d.tell.experts, d.tell.within, d.tell.counts; experts=4, top_k=2) of d :"
        " int32[2*slots] | int32[4]",
        "}",
    )
)
"""What each rank is told, and who reads it: nothing comes back that would hold a rank up."""


def text(steps: list[str]) -> Schedule:
    lanes = ["lane compute: compute priority 0", "lane side: compute priority 0"]
    return Schedule.parse("\n".join([ROWS, "schedule s: ep 2, sms 132, stage synced {", *lanes, *steps, "}"]))


def step(name: str, lane: str, reads: str, writes: str, waits: str = "") -> str:
    impl = "put" if name.endswith("tell") else "torch"
    return f"step {name} = {impl}; on {lane}; reads {reads}; writes {writes}" + (f"; waits {waits}" if waits else "")


TOLD = "d.tell.experts, d.tell.weights, d.tell.within, d.tell.counts"
COUNT = step("d.count", "compute", "ids", "d.count.within, d.count.counts")
TELL = step("d.tell", "compute", "ids, weights, d.count.within, d.count.counts", TOLD)
READ = "d.tell.experts, d.tell.within, d.tell.counts"
HEARD = "d.tell(d.tell.experts raw everywhere)"


def faults(*schedules: Schedule) -> list[str]:
    found = Faults()
    check_one_sided(schedules, found)
    return [f"{d.code}: {d.message}" for d in found.errors]


@pytest.mark.parametrize("lane, waits", [("compute", ""), ("side", "d.tell(d.tell.experts raw)")])
def test_order_on_one_rank_says_nothing_of_another(lane: str, waits: str) -> None:
    made = text([COUNT, TELL, step("seen", lane, READ, "seen.place, seen.ends", waits)])
    assert set(faults(made)) == {
        f"unsignalled: `seen` reads `d.tell.{value}` while `d.tell` of another rank may still be writing it"
        for value in ("experts", "within", "counts")
    }


@pytest.mark.parametrize("lane", ["compute", "side"])
def test_the_next_forward_may_not_overtake_a_reader(lane: str) -> None:
    """A signal says that others have written, and not that they have read: one that is behind may still be reading."""
    made = text([COUNT, TELL, step("seen", lane, READ, "seen.place, seen.ends", HEARD)])
    assert set(faults(made)) == {
        f"overrun: `d.tell` of another rank's next forward may overwrite `d.tell.{value}` before `seen` has read it"
        for value in ("experts", "within", "counts")
    }


LAYER = """
layer moe(x: bf16[tokens, 64]) {
  r     = route(x, experts=8, top_k=2)
  sent  = dispatch(x, r)
  back  = combine(gemm(sent, up, 64), r)
  sent1 = dispatch(x, r)
  back1 = combine(gemm(sent1, down, 64), r)
  return back + back1
}
cluster c { ep = 2 }
"""
TRANSPORTS = "use copy for sent, sent1  use put for back, back1  local_reduce back, back1"
DIRECT = "use put for sent, sent1  use direct for back, back1"


def planned(directives: str) -> Schedule:
    return compiled(f"{LAYER}schedule s {{ {directives} }}", "fuse{addends=false}").schedule


def test_what_comes_back_holds_a_rank_until_others_have_read() -> None:
    assert faults(planned(TRANSPORTS)) == []


def test_rows_that_go_home_as_they_are_made_are_signalled_and_waited_for() -> None:
    """Whoever sums them comes after every rank's product, and no rank's next product before that."""
    made = planned(DIRECT)
    assert faults(made) == []
    reader = made.step["back"]
    assert [str(wait) for wait in reader.waits] == ["back.put(back.put raw everywhere)"]
    broken = made.with_steps(tuple(replace(s, waits=()) if s is reader else s for s in made.steps))
    assert faults(broken) == [
        "unsignalled: `back` reads `back.put` while `back.put` of another rank may still be writing it"
    ]
    apart = replace(made, storages=tuple(replace(each, symmetric=False) for each in made.storages))
    with pytest.raises(EpsError, match=r"other ranks write `back\.put`, but its storage"):
        prove(apart)


def test_ranks_that_wait_for_each_other_never_start() -> None:
    """Each order is fine if all ranks have it. Of two, each waits for what the other does after waiting for the one."""
    one, two = (planned(f"{TRANSPORTS} run {first}") for first in ("back before sent1", "back1 before sent"))
    prove(one)
    prove(two)
    with pytest.raises(EpsError) as caught:
        prove(one, [two])
    assert {d.code for d in caught.value.diagnostics} == {"deadlock"}


@pytest.mark.parametrize("left_out", ["sent.tell", "sent.copy", "back.put"])
def test_a_rank_that_leaves_out_a_one_sided_step_holds_the_others_for_ever(left_out: str) -> None:
    made = planned(TRANSPORTS)
    found = Faults()
    check_collectives([made, made.with_steps(tuple(s for s in made.steps if s.node != left_out))], found)
    assert {d.code for d in found.errors} == {"deadlock"}
    assert any(d.message.startswith("rank 0: ") and f"`{left_out}` of rank 1" in d.message for d in found.errors)


def test_ranks_with_other_schedules_are_held_against_each_other() -> None:
    """Each alone reads what it is told only then; but the other one tells nobody when it is done."""
    made = planned(TRANSPORTS)
    reader = made.step["back"]
    deaf = replace(reader, waits=tuple(replace(w, everywhere=False) for w in reader.waits))
    broken = made.with_steps(tuple(deaf if s is reader else s for s in made.steps))
    assert faults(made, broken)
    assert faults(broken)


@pytest.mark.parametrize("others", [2, 7])
@pytest.mark.parametrize("directives", [TRANSPORTS, DIRECT, "use put for sent, sent1, back, back1"])
def test_two_ranks_stand_for_more(directives: str, others: int) -> None:
    """With each wait left out in turn, or for this rank alone: more ranks find the same faults, and no others."""
    made = planned(directives)
    found = set()
    for step in made.steps:
        for wait in step.waits:
            rest = tuple(each for each in step.waits if each is not wait)
            for waits in {rest, (*rest, replace(wait, everywhere=False))}:
                broken = made.with_steps(tuple(replace(s, waits=waits) if s is step else s for s in made.steps))
                two, more = Faults(), Faults()
                check_one_sided([broken], two)
                check_one_sided([broken], more, others)
                assert two.errors == more.errors
                found |= {d.code for d in two.errors}
    assert "unsignalled" in found
