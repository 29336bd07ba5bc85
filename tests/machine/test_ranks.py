"""Ranks that are not alike: each at the pace of its rows, and together where they wait for each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epsc import driver
from epsc.ir.errors import EpsError
from epsc.ir.mesh import DeviceMesh
from epsc.ir.schedule import Schedule
from epsc.machine import ranks
from epsc.machine.cluster import Cluster
from epsc.machine.ranks import simulate_ranks, skewed
from epsc.machine.simulate import Run, simulate
from epsc.machine.timeline import Timeline
from tests.machine.schedules import eps
from tests.machine.test_simulate_properties import SECONDS, toys
from tests.machine.toys import Toy
from tests.machine.toys import cluster as toy_cluster
from tests.machine.toys import schedule as schedule_of

CLUSTER = Cluster.make("h", "h200", 8)
LOAD = 4096
EXAMPLE = Path(__file__).parents[2] / "examples/deepseek_v2.eps"


def planned(name: str) -> Schedule:
    """A schedule of DeepSeek-V2's example."""
    layer = driver.understand(driver.read(EXAMPLE), driver.Options(defines={"tokens": str(LOAD)}))
    return driver.plan(layer, name).schedule


@pytest.fixture(scope="module", params=["cut", "serial", "whole chip", "one_sided"])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    made = {"cut": lambda: eps(3), "serial": lambda: eps(1, overlap=False), "whole chip": lambda: eps(4, sms=0)}
    return made[request.param]() if request.param in made else planned(request.param)


def collectives(schedule: Schedule) -> list[str]:
    return [step.key for step in schedule.steps if schedule.node(step).info.collective]


def test_ranks_that_are_alike_run_as_one_of_them(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated apart, but with the same rows, they meet without waiting: the timeline is that of `simulate`."""
    alone = simulate(schedule, CLUSTER, LOAD)
    assert simulate_ranks(schedule, CLUSTER, LOAD, [1.0] * 8) == (alone,)
    monkeypatch.setattr(ranks, "_kinds", lambda *_: [0, 1, 1, 2, 1, 0, 0, 2])
    apart = simulate_ranks(schedule, CLUSTER, LOAD, [1.0] * 8)
    assert [timeline.ranks for timeline in apart] == [(0, 5, 6), (1, 2, 4), (3, 7)]
    for timeline in apart:
        assert [replace(event, met=None) for event in timeline.events] == list(alone.events)
        assert all(timeline.event[key].met == timeline.event[key].start for key in collectives(schedule))


@pytest.mark.parametrize("skew", [1.01, 1.5, 4, 8])
def test_nobody_leaves_a_collective_before_all_have_come(schedule: Schedule, skew: float) -> None:
    busy, others = simulate_ranks(schedule, CLUSTER, LOAD, skewed(8, skew))
    assert (busy.ranks, others.ranks) == ((0,), (1, 2, 3, 4, 5, 6, 7)) and busy.share == skew
    for key in collectives(schedule):
        one, other = busy.event[key], others.event[key]
        assert one.met is not None and one.met == other.met and one.end == other.end
        assert one.met >= max(one.start, other.start)
        assert min(one.slowed, other.slowed) >= -1e-15, "to wait for others is not to be slowed by what runs beside"
    for step in schedule.steps:
        for wait in (wait.step for wait in step.waits if wait.everywhere):
            assert min(t.event[step.key].start for t in (busy, others)) >= max(
                t.event[wait].end for t in (busy, others)
            )
    assert busy.total > simulate(schedule, CLUSTER, LOAD).total


def test_the_idle_ranks_wait_where_the_busy_one_comes_late() -> None:
    busy, others = simulate_ranks(eps(1, overlap=False), CLUSTER, LOAD, skewed(8, 2))

    def waited(timeline: Timeline, key: str) -> float:
        event = timeline.event[key]
        assert event.met is not None
        return event.met - event.start

    assert waited(busy, "back.all2all") == 0 < waited(others, "back.all2all")
    longer = busy.event["up"].seconds - others.event["up"].seconds
    assert waited(others, "back.all2all") > longer > 0
    assert busy.event["up"].work.rows == pytest.approx(2 * 7 / 6 * others.event["up"].work.rows)
    assert busy.event["mlp"].work == others.event["mlp"].work, "own tokens are as many on every rank"


@given(toys(), st.lists(SECONDS, min_size=28, max_size=28), st.sampled_from([0, 0.25]))
def test_ranks_in_another_order_never_block_each_other(steps: list[Toy], seconds: list[float], launch_s: float) -> None:
    """Two ranks for which each step takes another time, with a communicator for each lane."""
    made = schedule_of(*steps)
    made = replace(made, steps=tuple(replace(step, comm=step.comm and step.lane) for step in made.steps))
    at = {step.key: i for i, step in enumerate(made.steps)}

    def run(rank: int) -> Run:
        return Run(made, toy_cluster(launch_s), 64, lambda _s, step, _c, _l: seconds[rank * 14 + at[step.key]])

    runs = {0: run(0), 1: run(1)}
    ranks._together(list(runs.values()), ranks._meetings(made, runs, [0, 1]))
    one, other = (run.result() for run in runs.values())
    for key in at:
        a, b = one.event[key], other.event[key]
        if key in collectives(made):
            assert a.met is not None and a.met == b.met >= max(a.start, b.start) and a.end == b.end
            assert a.end - a.met >= max(seconds[at[key]], seconds[14 + at[key]]) - 1e-9
        for rank, event, timeline in ((0, a, one), (1, b, other)):
            assert event.seconds >= seconds[rank * 14 + at[key]] - 1e-9
            for wait in made.step[key].waits:
                assert event.start >= timeline.event[wait.step].end
    moving = [e for e in one.events if e.step in collectives(made)]
    for moment in [e.met for e in moving]:
        assert moment is not None
        assert sum(e.met is not None and e.met <= moment < e.end for e in moving) <= 1, "one transfer has the link"


def test_ranks_of_a_mesh_are_of_one_kind_if_they_meet_the_same_kinds() -> None:
    schedule = replace(eps(1, ep=4), meshes=(DeviceMesh("experts", (("ep", 4), ("etp", 2))),))
    shares = [share for share in (2.0, 1.0, 0.5, 0.5) for _ in range(2)]
    assert ranks._kinds(schedule, shares) == [0, 0, 1, 1, 2, 2, 2, 2]
    shares[1] = 1.0
    assert ranks._kinds(schedule, shares)[0] != ranks._kinds(schedule, shares)[1]


@pytest.mark.parametrize(("ep", "skew"), [(8, 8.5), (1, 2), (8, float("nan")), (8, 0.5)])
def test_more_than_all_rows_is_refused(ep: int, skew: float) -> None:
    with pytest.raises(EpsError, match=f"no rank of {ep} can have {skew:g} times"):
        skewed(ep, skew)


@pytest.mark.parametrize("skew", [1, 1.5, 8])
def test_shares_are_of_all_rows(skew: float) -> None:
    assert sum(skewed(8, skew)) == pytest.approx(8) and skewed(8, skew)[0] == skew
    assert skewed(1, 1) == (1,)
