"""JSON plans round-trip, and bad ones are explained."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epsc.ir.attrs import RouteAttrs, Score
from epsc.ir.dims import Axis, Cut, Dim, DType, Tensor
from epsc.ir.errors import EpsError
from epsc.ir.impls import Choice, Condition, Metric
from epsc.ir.schedule import Buffer, Layout, Stage, Storage
from epsc.render.plan import plan_json, plan_parse
from tests.machine.schedules import eps


def rich() -> Any:
    """A schedule that uses every field."""
    schedule = eps(2)
    rows = Dim(1, "rows(sent)", (Cut(Axis.EXPERT_GROUP, 0, 2),))
    choice = Choice("dense", (("grouped", Condition(Metric.DEVICE, "==", "cuda")),))
    route = replace(
        schedule.graph.nodes[0], attrs=RouteAttrs(160, 6, Score.SIGMOID, choice_bias=True, scale=2.5, groups=8)
    )
    return replace(
        schedule,
        graph=replace(schedule.graph, nodes=(route, *schedule.graph.nodes[1:])),
        stage=Stage.BUFFERED,
        steps=tuple(replace(s, impl=choice) if s.node == "up" else s for s in schedule.steps),
        layouts=(Layout("sent", Axis.EXPERT_GROUP, 2), Layout("other")),
        storages=(Storage("arena", DType.BF16, (rows.times(5120), Dim(7))),),
        buffers=(Buffer("up", Tensor(DType.BF16, (rows, Dim(3072))), "arena", (Cut(Axis.EXPERT_GROUP, 0, 2),)),),
        order=(("sent", "back"),),
    )


@given(st.integers(1, 6), st.sampled_from([0, 8, 16]), st.booleans(), st.sampled_from([Stage.ORDERED, Stage.SYNCED]))
def test_plans_round_trip(groups: int, sms: int, overlap: bool, stage: Stage) -> None:
    schedule = eps(groups, sms, overlap=overlap, stage=stage)
    assert plan_parse(plan_json(schedule)) == schedule


def test_every_field_round_trips() -> None:
    schedule = rich()
    text = plan_json(schedule)
    again = plan_parse(text)
    assert again == schedule
    assert again.stage is Stage.BUFFERED
    assert plan_json(again) == text


def test_a_plan_is_plain_json_with_a_version() -> None:
    data = json.loads(plan_json(rich()))
    assert data["format"] == 1
    assert data["schedule"]["steps"][0]["node"] == "r"
    assert data["schedule"]["layouts"][0] == {"dispatch": "sent", "axis": "expert_group", "count": 2}
    assert "span" not in plan_json(rich())


def broken(change: Any) -> str:
    data = json.loads(plan_json(rich()))
    change(data["schedule"])
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "plan.json:1:2: error: this is no JSON"),
        ("[]", "a plan is an object with a `format`"),
        ('{"format": 2}', "has format 2, and only 1 is known"),
        ('{"format": true, "schedule": {}}', "has format True"),
        ('{"format": 1}', "schedule: None should be an object"),
        ('{"format": 1, "schedule": {}}', "schedule: lacks the field `name`"),
        (broken(lambda s: s.update(ep="8")), r"schedule.ep: '8' should be a whole number"),
        (broken(lambda s: s.update(ep=True)), r"schedule.ep: True should be a whole number"),
        (broken(lambda s: s.update(stage=True)), r"schedule.stage: True should be one of 0, 1"),
        (broken(lambda s: s.update(stage=9)), r"schedule.stage: 9 should be one of 0, 1"),
        (broken(lambda s: s.update(stepz=[])), r"has no field `stepz`\n  help: did you mean `steps`"),
        (broken(lambda s: s["steps"][3].update(cuts=[{"axis": "x"}])), r"steps\[3\].cuts\[0\]: lacks the field"),
        (
            broken(lambda s: s["steps"][3].update(cuts=[{"axis": "peer", "index": 3, "count": 2}])),
            r"steps\[3\].cuts\[0\]: cut 3/2 is out of range",
        ),
        (broken(lambda s: s["graph"]["nodes"][0].update(kind="rout")), r"`rout` is no kind of op\n.*did you mean"),
        (broken(lambda s: s["graph"]["nodes"][0].update(kind=[])), r"kind: \[\] should be a text"),
        (broken(lambda s: s["graph"]["nodes"][0]["attrs"].update(scale="a")), r"attrs.scale: 'a' should be a number"),
        (broken(lambda s: s.update(order=[["a"]])), r"order\[0\]: should hold 2 items, not 1"),
        (
            broken(lambda s: s["steps"][0]["impl"].update(cases=[["a", {"metric": "rows", "op": "<", "value": 1.5}]])),
            r"value: 1.5 should be a whole number or a text",
        ),
    ],
)
def test_bad_plans_are_explained(text: str, message: str) -> None:
    with pytest.raises(EpsError, match=message):
        plan_parse(text, "plan.json")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=5), st.data())
def test_no_damage_escapes_as_another_exception(value: Any, data: st.DataObject) -> None:
    plan = json.loads(plan_json(eps(1)))
    at: Any = plan
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            at[key] = value
            break
        at = at[key]
    with suppress(EpsError):
        plan_parse(json.dumps(plan))
