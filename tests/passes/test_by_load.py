"""Schedules that take others by load: which one is taken where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epsc import driver, plans
from epsc.ir.errors import EpsError
from epsc.ir.source import Source

FILE = """
layer moe(x: fp32[tokens, 24]) {
  r    = route(x, experts=8, top_k=3)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 32))
  back = combine(gemm(h, down, 24), r)
  return back
}
cluster c { ep = 2 }
tokens 1 .. 100
let few = 8
schedule decode { use put for sent  use put for back }
schedule middle { split sent, h, back by expert_group into 2 }
schedule serving = decode when tokens <= few else middle when tokens < 41 else serial
schedule outer = serving when tokens <= 20 else auto
schedule alias = middle
"""


def layer_of(**defines: str) -> driver.Layer:
    return driver.understand(Source("moe.eps", FILE), driver.Options(defines))


def taken(schedule: str, **defines: str) -> list[tuple[tuple[int, int], str, bool]]:
    layer = layer_of(**defines)
    ranges = driver.ranges_in(layer, driver.named(layer, schedule))
    return [(each.load, each.decl.name, each.decl.auto) for each in ranges]


def test_ranges_cover_the_load_without_gaps() -> None:
    assert taken("serving") == [((1, 8), "decode", False), ((9, 40), "middle", False), ((41, 100), "serial", False)]
    assert taken("serving", few="3")[0] == ((1, 3), "decode", False)


def test_a_schedule_by_load_may_take_another() -> None:
    assert taken("outer") == [((1, 8), "decode", False), ((9, 20), "middle", False), ((21, 100), "auto", True)]


@pytest.mark.parametrize("tokens, steps", [("8", 1), ("9", 2), ("40", 2), ("41", 1), ("500", 1)])
def test_at_one_load_it_is_the_schedule_for_it(tokens: str, steps: int) -> None:
    ((load, name, auto),) = taken("serving", tokens=tokens)
    assert (load, name, auto) == ((int(tokens), int(tokens)), "serving", False)
    schedule = driver.plan(layer_of(tokens=tokens), "serving").schedule
    assert schedule.name == "serving"
    assert len([step for step in schedule.steps if step.node == "h"]) == steps


def test_one_that_takes_one_is_that_one() -> None:
    assert taken("alias") == [((1, 100), "alias", False)]
    made, plain = (driver.plan(layer_of(), name).schedule for name in ("alias", "middle"))
    assert made.steps == plain.steps


def test_what_takes_one_plan_refuses_several() -> None:
    with pytest.raises(EpsError, match=r"`serving` has plans by load, for 1 .. 100 tokens") as caught:
        driver.plan(layer_of(), "serving")
    assert "-D tokens=N" in str(caught.value)


def test_plans_of_one_program_leave_no_gap_and_hold_the_same_weights() -> None:
    made = plans.plans(layer_of(), "serving")
    made.verify()
    first, *rest = made.parts

    def told(*parts: driver.Plan) -> list[str]:
        with pytest.raises(EpsError) as caught:
            replace(made, parts=parts).verify()
        return [each.message for each in caught.value.diagnostics]

    assert told(*rest) == ["plan `middle` is for 9 .. 40, where 1 is due"]
    assert told(first, *rest[1:]) == ["plan `serial` is for 41 .. 100, where 9 is due"]
    assert told(first, *rest[:-1]) == ["no plan is for the loads from 41 to 100"]
    assert told(first, first, *rest)[0] == "plan `decode` is for 1 .. 8, where 9 is due"
    param, *params = first.schedule.graph.params
    graph = replace(first.schedule.graph, params=(replace(param, parts=3), *params))
    other = replace(rest[0], schedule=replace(first.schedule, graph=graph))
    assert told(first, other, *rest[1:]) == ["`decode` and `decode` are one program and have other weights"]
