"""Perfetto itself reads our traces: every step once per rank, on its lane, in its order, and a flow for every wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from epsc.ir.schedule import Schedule
from epsc.machine.cluster import Cluster
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Timeline
from epsc.render.measured import measured
from epsc.render.perfetto import perfetto
from tests.codegen.layers import planned, program_of
from tests.codegen.test_runs import LIMIT, start
from tests.render import browser, trace_processor
from tests.render.pages import side, trace

MISSING = browser.missing() or trace_processor.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")

SLICES = """
select process.name as rank, thread.name as lane, slice.name as step, slice.ts as ts, slice.dur as dur from slice
join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid)
order by slice.ts, slice.dur
"""
FLOWS = """
select a_process.name as at, b_process.name as there, a.name as step, b.name as later, a.ts + a.dur as until, b.ts as ts
from flow
join slice a on flow.slice_out = a.id join thread_track a_track on a.track_id = a_track.id
join thread a_thread on a_track.utid = a_thread.utid join process a_process on a_thread.upid = a_process.upid
join slice b on flow.slice_in = b.id join thread_track b_track on b.track_id = b_track.id
join thread b_thread on b_track.utid = b_thread.utid join process b_process on b_thread.upid = b_process.upid
"""
FAULTS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"

Loaded = Callable[[Any], trace_processor.TraceProcessor]


@pytest.fixture(scope="module")
def load() -> Iterator[Loaded]:
    with browser.browser() as started:
        engine = trace_processor.Engine(started)
        yield lambda data: trace_processor.TraceProcessor(engine, json.dumps(data).encode())


def in_order(found: trace_processor.TraceProcessor, process: str) -> dict[str, list[str]]:
    """The steps of a process, lane by lane, as Perfetto sorts them."""
    lanes: dict[str, list[str]] = {}
    for rank, lane, step, _, _ in found.query(SLICES):
        if rank == process:
            lanes.setdefault(lane, []).append(step)
    return lanes


def issued(schedule: Schedule) -> dict[str, list[str]]:
    lanes: dict[str, list[str]] = {}
    for step in schedule.steps:
        lanes.setdefault(step.lane, []).append(step.key)
    return lanes


def run_of(timeline: Timeline) -> list[tuple[str, int, int]]:
    return [(e.step, round(e.start * 1e9), round(e.end * 1e9)) for e in timeline.events]


def test_a_prediction(load: Loaded) -> None:
    given = side()
    schedule, timeline = given.schedule, given.predicted[-1]
    assert schedule
    found = load(perfetto(schedule, [timeline]))
    assert found.query(FAULTS) == [], "nothing was dropped"
    for rank in range(schedule.ep):
        assert in_order(found, f"rank {rank}") == issued(schedule), "every step once, on its lane, in its order"
    mine = [(step, ts, ts + dur) for rank, _, step, ts, dur in found.query(SLICES) if rank == "rank 7"]
    for (step, at, until), (key, begin, end) in zip(sorted(mine), sorted(run_of(timeline)), strict=True):
        assert step == key and abs(at - begin) <= 1 and abs(until - end) <= 1, "nanoseconds"
    waits = sorted((wait.step, step.key) for step in schedule.steps for wait in step.waits if not wait.everywhere)
    drawn = found.query(FLOWS)
    for rank in range(schedule.ep):
        name = f"rank {rank}"
        assert sorted((a, b) for at, to, a, b, _, _ in drawn if at == to == name) == waits
    assert all(end <= begin for *_, end, begin in drawn), "what is waited for ends before"


def test_a_run_beside_its_prediction(load: Loaded) -> None:
    given = side()
    schedule = given.schedule
    assert schedule
    found = load(perfetto(schedule, given.predicted[-1:], measured("run.json", trace(schedule), schedule)))
    assert found.query(FAULTS) == []
    for name in ("rank 0, predicted", "rank 0, measured", "rank 1, predicted", "rank 1, measured"):
        assert in_order(found, name) == issued(schedule)
    colours = dict[str, set[str]]()
    for rank, _, step, _, _ in found.query(SLICES):
        colours.setdefault(rank.split(", ")[1], set()).add(step)
    assert colours["predicted"] == colours["measured"], "Perfetto colours slices by name"


RUN = """
import runpy, sys
import torch.distributed as dist

dist.init_process_group("gloo")
leave = dist.destroy_process_group
dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None  # one group for all
programs, arguments = sys.argv[1].split(","), sys.argv[2:]
for program in programs:
    sys.argv = [program, *arguments, "--trace", program.replace(".py", ".json")]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as done:
        assert done.code == 0, f"{program}: {done.code}"
leave()
"""
SKEW_S = 0.25
"""How far the clock of each rank is ahead of the one before: as if they were on hosts of their own."""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Schedule, Cluster, str]]:
    """What two programs traced on two ranks: all ran in one torchrun, as most of its time is that of its start."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "run.py").write_text(RUN)
    plans = {name: planned("tiny", name, ep="2") for name in ("eps", "put")}
    for name, made in plans.items():
        text = program_of(made).text
        assert "time.perf_counter()" in text
        skewed = f'(time.perf_counter() + {SKEW_S} * int(os.environ["RANK"]))'
        (folder / f"{name}.py").write_text(text.replace("time.perf_counter()", skewed), encoding="utf-8")
    programs = ",".join(str(folder / f"{name}.py") for name in plans)
    done = start(2, folder / "run.py", programs, "--tokens", "33,7", "--timeout", "60")
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: (made.schedule, made.layer.cluster, (folder / f"{name}.json").read_text()) for name, made in plans.items()
    }


@pytest.mark.distributed
@pytest.mark.timeout(LIMIT + 60)
def test_what_a_program_traced(load: Loaded, traced: dict[str, tuple[Schedule, Cluster, str]]) -> None:
    schedule, cluster, text = traced["eps"]
    found = load(json.loads(text))
    assert found.query(FAULTS) == []
    lane = {step.key: step.lane for step in schedule.steps}
    waits = sorted((w.step, s.key) for s in schedule.steps for w in s.waits if lane[w.step] != s.lane)
    for rank in (0, 1):
        name = f"rank {rank}"
        assert in_order(found, name) == issued(schedule)
        assert sorted((a, b) for at, to, a, b, _, _ in found.query(FLOWS) if at == to == name) == waits
    run = measured("trace.json", text, schedule)
    both = load(perfetto(schedule, [simulate(schedule, cluster, 33)], run))
    assert both.query(FAULTS) == []
    for rank in (0, 1):
        assert in_order(both, f"rank {rank}, measured") == in_order(both, f"rank {rank}, predicted")
    clocks = json.loads(text)["otherData"]["clocks"]
    assert run.residual is not None and f"at most {run.residual * 1e6:.1f} us apart" in clocks
    times = {(rank, step): (ts, ts + dur) for rank, _, step, ts, dur in both.query(SLICES)}
    for step in schedule.steps:
        if schedule.node(step).kind == "all2all":
            one, other = (times[f"rank {rank}, measured", step.key] for rank in (0, 1))
            wrong = max(one[0] - other[1], other[0] - one[1])
            assert wrong <= run.residual * 1e9 + 2, "nobody leaves before all have come, as far as clocks say"


@pytest.mark.distributed
@pytest.mark.timeout(LIMIT + 60)
def test_signals_that_a_program_traced(load: Loaded, traced: dict[str, tuple[Schedule, Cluster, str]]) -> None:
    schedule, _, text = traced["put"]
    found = load(json.loads(text))
    assert found.query(FAULTS) == []
    names = ("rank 0", "rank 1")
    for name in names:
        assert in_order(found, name) == issued(schedule)
    signals = [(wait.step, step.key) for step in schedule.steps for wait in step.waits if wait.everywhere]
    drawn = found.query(FLOWS)
    wanted = [(at, there, a, b) for a, b in signals for at in names for there in names]
    assert signals and set(wanted) <= {(at, there, a, b) for at, there, a, b, _, _ in drawn}, (
        "from every rank to every rank"
    )
    assert all(end <= begin + 1 for *_, end, begin in drawn), "what is waited for ends before, on any rank"
