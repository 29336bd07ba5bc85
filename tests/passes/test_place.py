"""place: lanes and SMs."""

from __future__ import annotations

import pytest

from epsc.ir.schedule import Schedule
from tests.passes.block import decided, keys, refusal


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
