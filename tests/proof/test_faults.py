"""Faults that need a schedule of their own to show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epsc.ir.errors import EpsError
from epsc.ir.schedule import Buffer, Schedule, Storage
from epsc.proof.verify import prove
from tests.proof.schedules import compiled

LAYER = """
layer moe(x: bf16[tokens, 64]) {
  r    = route(x, experts=8, top_k=2)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, up, 64))
  back = combine(gemm(h, down, 64), r)
  return back + mlp(x, swiglu, 64)
}
cluster c { ep = 2 }
"""


def schedule(directives: str, passes: str = "buffers{share=false}") -> Schedule:
    return compiled(f"{LAYER}schedule s {{ {directives} }}", passes).schedule


def codes(broken: Schedule, *others: Schedule) -> set[str]:
    with pytest.raises(EpsError) as caught:
        prove(broken, others)
    return {d.code for d in caught.value.diagnostics}


def moved(made: Schedule, key: str, storage: str) -> Schedule:
    """The buffer `key` moved into `storage`, which is made large enough."""
    found = next(b for b in made.buffers if b.key == key)
    buffers = tuple(replace(b, storage=storage) if b is found else b for b in made.buffers)
    storages = tuple(
        Storage(s.name, s.dtype, (*s.sizes, found.type.numel)) if s.name == storage else s for s in made.storages
    )
    return replace(made, buffers=buffers, storages=storages)


def home(made: Schedule, key: str) -> str:
    return next(b.storage for b in made.buffers if b.key == key)


def test_two_chunks_of_one_value_share_a_storage_only_one_after_the_other() -> None:
    """Chunks are apart in the value, but each buffer starts where its storage starts."""
    made = schedule("split sent, h, back by expert_group into 2  run down on second")
    # `down` reads on a lane of its own. What waits for it comes only after `h` is made again, so nothing says that it
    # has read what was there.
    late = [s for s in made.steps if s.key in ("back.ungroup[expert_group:0/2]", "back.all2all[expert_group:0/2]")]
    steps = [s for s in made.steps if s not in late]
    place = next(i for i, s in enumerate(steps) if s.key == "h[expert_group:1/2]") + 1
    made = made.with_steps((*steps[:place], *late, *steps[place:]))
    prove(made)
    broken = moved(made, "h[expert_group:1/2]", home(made, "h[expert_group:0/2]"))
    uses = [i for i, s in enumerate(broken.steps) for r in (*s.reads, *s.writes) if str(r) == "h[expert_group:0/2]"]
    after = next(i for i, s in enumerate(broken.steps) if s.key == "h[expert_group:1/2]")
    assert max(uses) < after, "in issue order the two are apart, so only the race is wrong"
    assert codes(broken) == {"race"}


def test_memory_of_unknown_size_is_not_taken() -> None:
    made = schedule("")
    # `sent.permute` is written before the host knows how many rows will come.
    assert codes(moved(made, "down", home(made, "sent.permute"))) == {"unknown-size"}


def test_a_value_has_one_buffer() -> None:
    made = schedule("")
    twice = Buffer("h", made.graph.types["h"], "more")
    more = (*made.storages, Storage("more", twice.type.dtype, (twice.type.numel,)))
    assert codes(replace(made, buffers=(*made.buffers, twice), storages=more)) == {"two-buffers"}


def test_a_value_that_is_read_whole_has_a_whole_buffer() -> None:
    made = schedule("split sent, h, back by expert_group into 2")
    whole = next(b for b in made.buffers if b.key == "back.all2all")
    cuts = [step.cuts for step in made.steps if step.node == "back.all2all"]
    pieces = [Buffer(whole.value, whole.type.cut(c), whole.storage, c) for c in cuts]
    others = [b for b in made.buffers if b is not whole]
    assert codes(replace(made, buffers=(*others, *pieces))) >= {"no-buffer"}


def test_results_are_never_shared() -> None:
    made = schedule("")
    assert codes(moved(made, "return", home(made, "mlp"))) == {"aliased"}


def test_a_dead_buffer_may_be_shared() -> None:
    """The proof refuses faults only: what is over may be overwritten."""
    made = schedule("")
    assert not [d for d in prove(moved(made, "down", home(made, "sent"))) if d.severity == "error"]


def test_an_order_that_was_asked_for_is_kept() -> None:
    made = schedule("run mlp before back")
    first = next(i for i, s in enumerate(made.steps) if s.node == "mlp")
    late = (*made.steps[:first], *made.steps[first + 1 : -1], made.steps[first], made.steps[-1])
    assert codes(made.with_steps(late)) == {"order"}


def test_one_rank_may_not_leave_a_communicator_early() -> None:
    """Ranks whose schedules are each sound must still agree."""
    one, two = schedule("run sent before back"), schedule("split sent, h, back by expert_group into 2")
    assert "rank-order" in codes(one, two)


@pytest.mark.parametrize("axis", ["expert_group", "tokens"])
def test_rows_lie_in_the_pieces_that_are_moved(axis: str) -> None:
    made = schedule(f"split sent, h, back by {axis} into 2")
    (layout,) = made.layouts
    for wrong in (replace(layout, count=4), replace(layout, axis=None, count=1)):
        assert codes(replace(made, layouts=(wrong,))) == {"layout"}
    assert codes(replace(made, layouts=())) == {"layout"}
