"""One pass at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epsc.ir.dims import Axis
from epsc.ir.errors import EpsError
from epsc.ir.graph import Graph
from epsc.ir.schedule import Hazard, Schedule
from epsc.proof.verify import prove
from tests.proof.schedules import compiled

BLOCK = """
layer block(x: bf16[tokens, 64]) {
  r    = route(x, experts=10, top_k=2)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, up, 64))
  back = combine(gemm(h, down, 64), r)
  return back + mlp(x, swiglu, 64)
}
"""


def decided(directives: str = "", passes: str = "", ep: int = 2, layers: int = 1) -> Schedule:
    stack = f"layer model(x: bf16[tokens, 64]) {{ return stack(block, x, {layers}) }}" if layers > 1 else ""
    text = f"{BLOCK}{stack}\ncluster c {{ ep = {ep} }}\nschedule s {{\n{directives}\n}}"
    return compiled(text, passes).schedule


def refusal(directives: str, passes: str = "", ep: int = 2) -> EpsError:
    with pytest.raises(EpsError) as caught:
        decided(directives, passes, ep)
    return caught.value


def keys(schedule: Schedule, node: str) -> list[str]:
    return [step.key for step in schedule.steps if step.node == node]


def place(schedule: Schedule, key: str) -> int:
    return next(i for i, step in enumerate(schedule.steps) if step.key == key)


# --- choose -----------------------------------------------------------------------------------------------------------


def test_choose_takes_what_the_schedule_says_else_the_option_else_the_only_one() -> None:
    made = decided("use dense for up when rows < 8 else batched", "choose{experts=dense}")
    assert str(made.step["up"].impl) == "dense when rows < 8 else batched"
    assert str(made.step["down"].impl) == "dense"
    assert str(made.step["mlp"].impl) == "torch"
    assert str(made.step["sent.all2all"].impl) == "nccl when device == cuda else gloo"


def test_choose_takes_what_needs_cuda_on_cuda_only() -> None:
    made = decided(passes="fuse{epilogue=false, addends=false}")
    for key in ("h", "back.ungroup", "back", "mlp.act"):
        assert str(made.step[key].impl) == "triton when device == cuda else torch"
    for key in ("sent", "sent.permute", "mlp.gate_up", "return"):
        assert str(made.step[key].impl) == "torch"


def test_use_reaches_every_op_that_has_the_implementation() -> None:
    made = decided("use torch for h, back\nuse triton for mlp when tokens > 4096 else torch")
    # What the layer adds to `back` is part of its sum.
    assert [str(made.step[key].impl) for key in ("h", "back.ungroup", "return")] == ["torch"] * 3
    assert str(made.step["back.all2all"].impl) == "nccl when device == cuda else gloo"
    # Gemms have no `triton`, and so keep what they had.
    assert str(made.step["mlp.act"].impl) == "triton when tokens > 4096 else torch"
    made = decided("use triton for h when rows > 4096 else torch")
    assert str(made.step["h"].impl) == "triton when rows > 4096 else torch"


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("use triton for mlp when rows > 4096 else torch", "`mlp` runs on tokens, where nothing has `rows`"),
        ("use torch for back when max_rows < 8 else triton", "`back` also runs on tokens, where nothing has"),
        ("use triton for back when tokens > 8 else nccl", "no op of `back` has `triton` and `nccl`"),
        ("use batched for sent", "`batched` is no implementation of `sent`"),
        ("use torch for h when rows < 8 else grouped", "no op of `h` has `torch` and `grouped`"),
    ],
)
def test_use_refuses_what_an_op_cannot_have(directive: str, message: str) -> None:
    assert message in str(refusal(directive))


# --- fuse -------------------------------------------------------------------------------------------------------------


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


# --- chunk ------------------------------------------------------------------------------------------------------------


def test_chunks_of_expert_groups_cut_what_lies_between_the_transfers() -> None:
    made = decided("split sent, h, back by expert_group into 3")
    cut = {step.node for step in made.steps if step.cuts}
    assert cut == {"sent.all2all", "sent", "h", "down", "back.ungroup", "back.all2all"}
    assert all(len(keys(made, node)) == 3 for node in cut)
    assert str(made.layouts[0]) == "layout sent: expert_group 3"


def test_chunks_of_tokens_cut_the_ends_too() -> None:
    made = decided("split sent, h, back by tokens into 2")
    cut = {step.node for step in made.steps if step.cuts}
    assert {"sent.permute", "return"} <= cut and "sent.arrange" not in cut
    assert str(made.layouts[0]) == "layout sent: tokens 2"


def test_a_chunk_reads_its_part_of_rows_and_the_whole_of_an_index() -> None:
    step = decided("split sent, h, back by expert_group into 2").step["sent[expert_group:1/2]"]
    assert list(map(str, step.reads)) == ["sent.all2all[expert_group:1/2]", "sent.arrange.index"]


def test_one_chunk_is_no_chunk() -> None:
    assert not any(step.cuts for step in decided("split sent, h, back by expert_group into 1").steps)


def test_chunk_options_replace_axis_and_count() -> None:
    made = decided("split sent, h, back by expert_group into 2", "chunk{n=4, axis=tokens}")
    assert (made.layouts[0].axis, made.layouts[0].count) == (Axis.TOKENS, 4)


def test_local_compute_may_be_cut_where_transfers_are_not() -> None:
    made = decided("split h by expert_group into 5")
    assert len(keys(made, "h")) == 5 and len(keys(made, "sent.all2all")) == 1
    assert str(made.layouts[0]) == "layout sent: whole"


@pytest.mark.parametrize(
    ("directives", "passes", "code"),
    [
        ("split sent by expert_group into 2", "", "split-mismatch"),
        ("split sent by expert_group into 2 split back by expert_group into 5", "", "split-mismatch"),
        ("split sent, back by tokens into 2", "", "split-mismatch"),
        ("split h by tokens into 2", "", "split-mismatch"),
        ("split sent, back by expert_group into 5 split h by expert_group into 2", "", "split-mismatch"),
        ("split sent, h, back by expert_group into 6", "", "chunks-over-experts"),
        ("split sent, h, back by expert_group into 2", "chunk{n=6}", "chunks-over-experts"),
        ("split mlp by expert_group into 2", "", "axis"),
        ("split h by columns into 2", "", "axis"),
        ("split down by columns into 2", "", "split-mismatch"),
        ("split back by columns into 3", "", "uneven-chunks"),
        ("split sent by peer into 9", "", "uneven-chunks"),
        ("split down by peer into ep", "", "axis"),
        ("split sent, h, back by expert_group into 2", "chunk{axis=slot}", "axis"),
    ],
)
def test_chunk_refuses_what_no_layout_serves(directives: str, passes: str, code: str) -> None:
    error = refusal(directives, passes)
    assert [d.code for d in error.diagnostics] == [code], error
    assert error.diagnostics[0].help


# --- place ------------------------------------------------------------------------------------------------------------


def lanes(schedule: Schedule) -> dict[str, str]:
    return {step.node: step.lane for step in schedule.steps}


def test_without_wishes_all_is_on_one_lane_and_one_communicator() -> None:
    made = decided()
    assert set(lanes(made).values()) == {"compute", "host"}
    assert {step.comm for step in made.steps if step.comm} == {"ep"}
    assert not any(step.sms for step in made.steps)


def test_split_transfers_get_a_lane_for_each_direction() -> None:
    made = decided("split sent, h, back by expert_group into 2")
    assert (lanes(made)["sent.all2all"], lanes(made)["back.all2all"]) == ("dispatch", "combine")
    assert {lane.name: lane.priority for lane in made.lanes} == {"compute": 0, "dispatch": -1, "combine": -1, "host": 0}
    assert {step.comm for step in made.steps if step.comm} == {"dispatch", "combine"}


def test_transfers_that_share_sms_share_a_lane_and_gemms_get_the_rest() -> None:
    made = decided("split sent, h, back by expert_group into 2  reserve 20 sms for sent, back")
    assert (lanes(made)["sent.all2all"], lanes(made)["back.all2all"]) == ("transfer", "transfer")
    assert {made.graph.node[s.node].kind: s.sms for s in made.steps if s.sms} == {
        "exchange": 20,
        "all2all": 20,
        "expert_gemm_act": 112,
        "expert_gemm": 112,
        "gemm": 112,
    }


def test_two_reservations_are_two_lanes() -> None:
    made = decided("reserve 20 sms for sent  reserve 12 sms for back")
    assert (lanes(made)["sent.all2all"], lanes(made)["back.all2all"]) == ("dispatch", "combine")
    assert made.step["h"].sms == 100


def test_gemms_on_two_lanes_share_what_is_left() -> None:
    made = decided("reserve 32 sms for sent, back  run mlp on other")
    assert made.step["h"].sms == made.step["mlp"].sms == 50


def test_run_on_names_a_lane() -> None:
    made = decided("run sent on inter  run mlp on other")
    assert (lanes(made)["sent.all2all"], lanes(made)["mlp.act"], lanes(made)["h"]) == ("inter", "other", "compute")


def test_compute_beside_compute_gets_a_lane_of_its_own() -> None:
    made = decided("run mlp beside h")
    assert {lanes(made)[node] for node in ("mlp.gate_up", "mlp.act", "mlp")} == {"side"}


@pytest.mark.parametrize(("directives", "passes"), [("overlap none", ""), ("", "place{overlap=false}")])
def test_no_overlap_is_one_lane_that_is_still_cut(directives: str, passes: str) -> None:
    made = decided(f"split sent, h, back by expert_group into 2  reserve 16 sms for sent, back  {directives}", passes)
    assert set(lanes(made).values()) == {"compute", "host"}
    assert len(keys(made, "h")) == 2 and not any(step.sms for step in made.steps)


@pytest.mark.parametrize(
    ("directives", "code"),
    [
        ("reserve 132 sms for sent", "sms-over-chip"),
        ("reserve 100 sms for sent  reserve 40 sms for back", "sms-over-chip"),
        ("reserve 16 sms for h", "reserve"),
        ("reserve 16 sms for sent, back  run sent on inter", "reserve"),
        ("run mlp on host", "host-lane"),
    ],
)
def test_place_is_not_asked_for_what_the_chip_has_not(directives: str, code: str) -> None:
    assert [d.code for d in refusal(directives).diagnostics] == [code]


# --- order ------------------------------------------------------------------------------------------------------------


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


# --- synchronise ------------------------------------------------------------------------------------------------------


def test_one_lane_waits_for_nothing_but_the_counts() -> None:
    waits = [(step.key, wait.step) for step in decided().steps for wait in step.waits]
    assert waits == [("sent.sizes", "sent.exchange")]


def test_each_wait_says_what_it_guards() -> None:
    made = decided("split sent, h, back by expert_group into 2")
    first = made.step["sent[expert_group:0/2]"].waits
    assert [(w.step, w.value, w.hazard) for w in first] == [
        ("sent.all2all[expert_group:0/2]", "sent.all2all", Hazard.RAW)
    ]


def test_no_wait_is_more_than_a_race_needs() -> None:
    made = decided("split sent, h, back by expert_group into 5  run mlp beside sent  run down on second")
    assert len([w for step in made.steps for w in step.waits]) >= 12
    for i, step in enumerate(made.steps):
        for wait in step.waits:
            less = replace(step, waits=tuple(w for w in step.waits if w is not wait))
            with pytest.raises(EpsError, match=f"make `.*` wait for `{wait.step.split('[')[0]}"):
                prove(made.with_steps((*made.steps[:i], less, *made.steps[i + 1 :])))


# --- buffers ----------------------------------------------------------------------------------------------------------

SHARING = (
    "",
    "split sent, h, back by expert_group into 5",
    "split sent, h, back by tokens into 3  run mlp beside sent",
    "run down on second  split sent, h, back by expert_group into 2",
)


@pytest.mark.parametrize("directives", SHARING)
def test_sharing_memory_adds_no_wait(directives: str) -> None:
    shared, apart = decided(directives), decided(directives, "buffers{share=false}")
    assert shared.steps == apart.steps
    assert len(shared.storages) < len(apart.storages) == len(apart.buffers) == len(shared.buffers)


@pytest.mark.parametrize("directives", SHARING)
def test_a_result_has_memory_of_its_own(directives: str) -> None:
    made = decided(directives)
    homes = [buffer.storage for buffer in made.buffers]
    results = [buffer for buffer in made.buffers if buffer.value in made.graph.results]
    assert len(results) == 1 and homes.count(results[0].storage) == 1


def test_chunks_follow_each_other_through_the_same_memory() -> None:
    few, many = (decided(f"split sent, h, back by expert_group into {n}") for n in (2, 5))
    assert len(many.storages) <= len(few.storages) + 1


def test_what_an_index_addresses_is_in_one_piece() -> None:
    made = decided("split sent, h, back by expert_group into 5")
    whole = {buffer.value for buffer in made.buffers if not buffer.cuts}
    assert {"sent.permute", "sent.all2all", "back.ungroup", "back.all2all"} <= whole
    assert "up" not in whole


def test_no_buffer_takes_memory_before_its_size_is_known() -> None:
    made = decided()
    known = place(made, "sent.sizes")
    first = {b.storage: place(made, b.key) for b in reversed(made.buffers)}
    early = [s for s in made.storages if first[s.name] < known]
    assert early and not [size for s in early for size in s.sizes if size.symbol == "rows(sent)"]
