"""order: what is issued when."""

from __future__ import annotations

import pytest

from tests.passes.block import BLOCK, decided, place, refusal
from tests.proof.schedules import compiled


def test_dispatches_are_issued_ahead_of_the_experts() -> None:
    made = decided("split sent, h, back by expert_group into 5")
    last = place(made, "sent.all2all[expert_group:4/5]")
    assert last < place(made, "sent[expert_group:0/5]"), "with a lane of its own, nothing queues behind a dispatch"


def test_dispatches_on_a_shared_lane_run_two_chunks_ahead() -> None:
    made = decided("split sent, h, back by expert_group into 5  reserve 16 sms for sent, back")
    order = [s.key for s in made.steps if s.node in ("sent.all2all", "back.all2all")]
    assert order.index("back.all2all[expert_group:0/5]") == 4, order
    sooner = decided("split sent, h, back by expert_group into 5  reserve 16 sms for sent, back", "order{prefetch=1}")
    order = [s.key for s in sooner.steps if s.node in ("sent.all2all", "back.all2all")]
    assert order.index("back.all2all[expert_group:0/5]") == 3, order


@pytest.mark.parametrize("axis", ["expert_group", "tokens"])
def test_chunks_take_turns(axis: str) -> None:
    """Chunk i's combine is issued before the work of chunk i + 1 is done, and its sum after that work."""
    made = decided(f"split sent, h, back by {axis} into 3")
    assert place(made, f"back.all2all[{axis}:0/3]") < place(made, f"h[{axis}:1/3]") < place(made, f"h[{axis}:2/3]")
    if axis == "tokens":
        assert place(made, "down[tokens:1/3]") < place(made, "return[tokens:0/3]") < place(made, "h[tokens:2/3]")


@pytest.mark.parametrize("axis", ["expert_group", "tokens"])
def test_every_layer_of_a_stack_keeps_the_order_of_a_single_one(axis: str) -> None:
    directives = f"split sent, h, back by {axis} into 3  reserve 16 sms for sent, back  run mlp beside sent"
    single, stack = decided(directives), decided(directives, layers=3)
    for i in range(3):
        own = [s.key.removeprefix(f"layers.{i}.") for s in stack.steps if s.key.startswith(f"layers.{i}.")]
        wanted = [s.key for s in single.steps if s.node != "return"]
        assert [key for key in own if not key.startswith("return")] == wanted


def test_the_host_stops_as_late_as_it_can() -> None:
    made = decided()
    assert place(made, "sent.permute") < place(made, "sent.sizes") < place(made, "sent.all2all")
    # With a branch more, both exchanges are on their way before the host asks for either.
    text = BLOCK.replace(
        "return back",
        "r2 = route(x, experts=4, top_k=1)\n  s2 = dispatch(x, r2)\n"
        "  b2 = combine(gemm(s2, only, 64), r2)\n  return b2 + back",
    )
    two = compiled(f"{text}cluster c {{ ep = 2 }}\nschedule s {{ }}").schedule
    hosts = [i for i, step in enumerate(two.steps) if step.lane == "host"]
    assert place(two, "sent.exchange") < hosts[0] and place(two, "s2.exchange") < hosts[0]
    assert place(two, "sent.permute") < hosts[0] and place(two, "s2.permute") < hosts[0]


def test_what_runs_beside_a_dispatch_is_issued_right_behind_it() -> None:
    made = decided("split sent, h, back by expert_group into 2  run mlp beside sent")
    beside = [place(made, key) for key in ("mlp.gate_up", "mlp.act", "mlp")]
    assert place(made, "sent.all2all[expert_group:1/2]") < min(beside)
    assert max(beside) < place(made, "sent[expert_group:0/2]")
    plain = decided("split sent, h, back by expert_group into 2")
    assert place(plain, "mlp") > place(plain, "down[expert_group:1/2]")


def test_before_is_kept_for_every_chunk() -> None:
    made = decided("split sent, h, back by expert_group into 2  run mlp before sent")
    assert place(made, "mlp") < place(made, "sent.layout")
    assert ("mlp", "sent.all2all") in made.order


def test_before_speaks_of_each_layer_of_a_stack() -> None:
    made = decided("run mlp before sent", layers=3)
    for i in range(3):
        assert place(made, f"layers.{i}.mlp") < place(made, f"layers.{i}.sent.layout")
    assert not [pair for pair in made.order if pair[0].split(".")[1] != pair[1].split(".")[1]]


@pytest.mark.parametrize(
    ("directives", "messages"),
    [
        ("run back before sent", ["`back` cannot run before `sent`: it needs what `sent` makes"]),
        (
            "run sent before mlp  run mlp before r",
            ["`mlp` cannot run before `r`: another line", "`sent` cannot run before"],
        ),
    ],
)
def test_an_impossible_order_is_refused(directives: str, messages: list[str]) -> None:
    error = refusal(directives)
    assert {d.code for d in error.diagnostics} == {"impossible-order"}
    assert all(d.span and d.help for d in error.diagnostics)
    assert all(message in str(error) for message in messages), error
