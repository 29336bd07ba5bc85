"""The ranges that `auto by tokens` finds: fewest plans, each within the margin at every load of its range."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from epsc import driver, lock, plans
from epsc.grammar import parse
from epsc.ir.source import Source
from epsc.ir.spec import ScheduleDecl
from epsc.machine.totals import symmetric_bytes
from epsc.passes.auto import MARGIN, Candidate, best_of, fastest
from epsc.passes.auto_by_tokens import loads_between, pieces

EXAMPLE = Path(__file__).parents[2] / "examples/mixtral_8x7b.eps"
ANY = driver.plan(driver.understand(driver.read(EXAMPLE), driver.Options(preset="small")), "serial").schedule


def found(low: int, times: dict[str, dict[int, float]], room: float = 0.0) -> list[tuple[tuple[int, int], str]]:
    """The ranges for candidates of these times at each load; `room`: so much more for each doubling of the most."""
    loads = sorted(next(iter(times.values())))
    asked = {n: [Candidate(ScheduleDecl(name), ANY, own[n]) for name, own in times.items()] for n in loads}

    def seconds(number: int, load: int, most: int) -> float:
        return list(times.values())[number][load] * (1 + room * (loads.index(most) - loads.index(load)))

    return [(each.load, each.best.decl.name) for each in pieces(low, asked, seconds, set(times))]


def test_neighbours_are_joined_where_one_plan_is_near_the_best_at_all_of_them() -> None:
    times = {
        "serial": {1: 1.0, 2: 1.3, 4: 2.0, 8: 4.0},
        "mid": {1: 1.02, 2: 1.0, 4: 1.03, 8: 3.0},
        "wide": {1: 3.0, 2: 2.0, 4: 1.0, 8: 1.0},
    }
    assert found(0, times) == [((0, 2), "mid"), ((3, 8), "wide")]
    # `mid` is as good at 4, but then there are three plans, or it is no better.
    assert found(1, times)[0][0] == (1, 2)


def test_one_plan_that_is_near_everywhere_is_the_only_one() -> None:
    times = {"serial": {1: 1.0, 2: 1.0}, "other": {1: 0.97, 2: 1.2}}
    assert found(1, times) == [((1, 2), "serial")]


def test_room_for_more_tokens_counts() -> None:
    times = {"serial": {1: 1.0, 2: 2.0, 4: 4.0}, "put": {1: 0.5, 2: 1.0, 4: 2.0}}
    assert found(1, times) == [((1, 4), "put")]
    assert found(1, times, room=0.04) == [((1, 1), "put"), ((2, 4), "put")]


def test_loads_are_powers_of_two_and_the_ends() -> None:
    assert loads_between(3, 20) == (3, 4, 8, 16, 20)
    assert loads_between(0, 2) == (1, 2)
    assert loads_between(16, 16) == (16,)


@pytest.fixture(scope="module")
def layer() -> driver.Layer:
    text = (
        EXAMPLE.read_text().replace("tokens 512 .. 16384", "tokens 512 .. 4096") + "\nschedule found = auto by tokens\n"
    )
    assert "512 .. 4096" in text
    return driver.understand(Source("mixtral.eps", text), driver.Options({"ep": "2"}))


def test_every_plan_is_near_the_best_at_every_load_that_was_asked_about(layer: driver.Layer) -> None:
    made = plans.plans(layer, "found")
    assert made.parts[0].layer.load[0] == 512
    assert made.parts[-1].layer.load[1] == 4096
    for load in loads_between(*layer.load):
        part = made.at(load)
        now = [replace(c, seconds=fastest(c.schedule, layer.cluster, load)[0]) for c in made.parts[0].considered]
        own = fastest(part.schedule, layer.cluster, load, part.layer.load[1])[0]
        assert own <= best_of(now).seconds * (1 + MARGIN)


def test_plans_that_together_are_too_large_are_done_without(layer: driver.Layer) -> None:
    whole = plans.plans(layer, "found")
    assert any(symmetric_bytes(part.schedule, part.layer.load[1]) for part in whole.parts)
    device = replace(layer.cluster.device, memory_bytes=2e9)
    small = plans.plans(replace(layer, cluster=replace(layer.cluster, device=device)), "found")
    assert not small.warnings
    assert [part.schedule.name for part in small.parts] != [part.schedule.name for part in whole.parts]


def test_what_was_measured_at_a_load_counts_there(tmp_path: Path) -> None:
    """A candidate, and a schedule that none of today's candidates is: each at the load that it was measured for."""
    path = tmp_path / "mixtral.eps"
    text = EXAMPLE.read_text().replace("tokens 512 .. 16384", "tokens 512 .. 1024")
    path.write_text(f"{text}\nschedule found = auto by tokens\n")
    layer = driver.understand(driver.read(path), driver.Options({"ep": "2"}))
    (whole,) = plans.plans(layer, "found").parts
    assert whole.schedule.name not in ("serial", "it")
    own = parse(Source("it", "schedule tuned { split sent, h, back by tokens into 3 }")).schedules[0]
    few = {"serial": 1.0, whole.schedule.name: 2.0}
    for load, decl, times in ((512, ScheduleDecl("tuned"), few), (1024, own, {"it": 1.0})):
        key = driver.key_of(replace(layer, load=(load, load)))
        entry = lock.Entry(key, lock.text_of(decl), load, times, 0.02, "two ranks", {}, "2026-01-01")
        Path(f"{path}.lock").write_text(lock.with_entry(Path(f"{path}.lock"), entry))
    made = plans.plans(layer, "found")
    assert [(part.layer.load, part.schedule.name) for part in made.parts] == [
        ((512, 512), "serial"),
        ((513, 1024), "tuned_1024"),
    ]
    assert len([step for step in made.parts[1].schedule.steps if step.node == "h"]) == 3
