"""Memory that a plan keeps: what programs take, a warning where a device has less, and `auto` looking for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from epsc import driver
from epsc.codegen.one_sided import pairs
from epsc.ir.source import Source
from epsc.machine.profile import load, shipped
from epsc.machine.totals import buffer_bytes, held_bytes

EXAMPLES = Path(__file__).parents[2] / "examples"
FORMS = {
    "copies": "use put for sent, back",
    "bounded copies": "use put for sent, back room 2 for sent",
    "slots": "use copy for sent use put for back local_reduce back",
    "bounded slots": "use copy for sent use put for back local_reduce back room 2 for sent",
}


def layer_of(name: str, ep: int, directives: str, memory: float = 0) -> driver.Layer:
    text = (EXAMPLES / f"{name}.eps").read_text(encoding="utf-8")
    source = Source("it.eps", f"{text}\nschedule it {{ {directives} }}")
    layer = driver.understand(source, driver.Options({"ep": str(ep), "tokens": "16384"}))
    device = replace(layer.cluster.device, memory_bytes=int(memory)) if memory else layer.cluster.device
    return replace(layer, cluster=replace(layer.cluster, device=device))


@pytest.mark.parametrize("ep", [4, 8, 64])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_counted_is_what_a_program_takes(form: str, ep: int) -> None:
    plan = driver.plan(layer_of("qwen3_30b_a3b", ep, FORMS[form]), "it")
    schedule = plan.schedule
    (pair,) = pairs(schedule.graph)
    apart = replace(schedule, storages=tuple(s for s in schedule.storages if s.symmetric))
    # What ranks tell each other of tokens is left out: of 64 ranks up to 6 % more.
    assert buffer_bytes(apart, 16384) == pytest.approx(pair.symmetric_bytes(ep, 16384), rel=0.07)
    # What the experts' products make of them lies in room for as many as can come, too.
    rows = pair.rows(ep, 16384)
    assert rows == 16384 * (2 * 8 if "bounded" in form else ep * min(8, 128 // ep))
    assert buffer_bytes(schedule, 16384) - buffer_bytes(apart, 16384) >= 2 * rows * (768 + 2048)


def test_room_decides_how_much_memory_more_ranks_take() -> None:
    """Without it rows for whatever tokens choose: ep times balanced routing. With it as much at any ep, in copies."""
    whole, bounded = (
        [buffer_bytes(driver.plan(layer_of("deepseek_v3", ep, FORMS[form]), "it").schedule, 16384) for ep in (2, 4, 8)]
        for form in ("copies", "bounded copies")
    )
    assert [size / whole[0] for size in whole] == pytest.approx([1, 2, 4], rel=0.2)
    assert bounded == pytest.approx([bounded[0]] * 3)


@pytest.mark.parametrize("form, fits", [("copies", False), ("bounded copies", True), ("slots", True)])
def test_a_plan_that_does_not_fit_is_told_of(form: str, fits: bool) -> None:
    plan = driver.plan(layer_of("deepseek_v3", 8, FORMS[form], 30e9), "it")
    assert [(w.code, w.severity.value, w.span is not None) for w in plan.warnings] == (
        [] if fits else [("memory", "warning", True)]
    )


def test_auto_takes_what_fits() -> None:
    """The fastest plan stores rows into 24 GB at each rank; where there are 12, a collective one is next."""
    large, small = (driver.plan(layer_of("deepseek_v3", 8, "", memory), "best") for memory in (141e9, 12e9))
    assert pairs(large.schedule.graph) and not pairs(small.schedule.graph)
    assert not large.warnings and not small.warnings
    assert buffer_bytes(small.schedule, 16384) + held_bytes(small.schedule) < 12e9
    # Where nothing fits, the best of all, with the warning.
    none = driver.plan(layer_of("deepseek_v3", 8, "", 1e9), "best")
    assert none.schedule.steps == large.schedule.steps and [w.code for w in none.warnings] == ["memory"]


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_of_gpus_say_how_much_memory_there_is(name: str) -> None:
    device = load(name).device
    assert (device.memory_bytes >= 80e9) == (device.backend == "cuda")
