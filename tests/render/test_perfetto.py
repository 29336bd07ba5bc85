"""The trace of a prediction: every step once per rank, in order, on its lane, and a flow for every wait."""

import json
from collections import Counter
from typing import Any

import pytest

from epsc.ir.errors import EpsError
from epsc.machine.timeline import Timeline
from epsc.render.measured import measured
from epsc.render.perfetto import perfetto
from tests.render.pages import large, side, skewed_side, trace

Trace = list[dict[str, Any]]


def slices(events: Trace, pid: int) -> Trace:
    return [event for event in events if event["ph"] == "X" and event["pid"] == pid]


def given(run: bool = False) -> tuple[Any, Timeline, Trace]:
    found = side()
    assert found.schedule
    timeline = found.predicted[-1]
    held = measured("run.json", trace(found.schedule), found.schedule) if run else None
    return found.schedule, timeline, perfetto(found.schedule, [timeline], held)["traceEvents"]


def flows(events: Trace) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    starts = [event for event in events if event["ph"] == "s"]
    assert len(starts) == len(ends)
    return [(start, ends[start["id"]]) for start in starts]


def slice_at(events: Trace, point: dict[str, Any]) -> str:
    """The one slice of the thread that holds a point: where Perfetto hangs a flow."""
    found = [
        e["name"]
        for e in slices(events, point["pid"])
        if e["tid"] == point["tid"] and e["ts"] <= point["ts"] < round(e["ts"] + e["dur"], 3)
    ]
    assert len(found) == 1, point
    return str(found[0])


def test_every_step_runs_once_per_rank_as_predicted() -> None:
    schedule, timeline, events = given()
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {rank: f"rank {rank}" for rank in range(8)}, "as an emitted program names them"
    for rank in range(8):
        mine = slices(events, rank)
        assert Counter(e["name"] for e in mine) == Counter(list(schedule.step))
        for e in mine:
            event = timeline.event[e["name"]]
            assert threads[rank, e["tid"]] == event.lane
            assert (e["ts"], e["dur"]) == pytest.approx((event.start * 1e6, event.seconds * 1e6), abs=1e-3)


def test_every_wait_is_a_flow_between_its_steps() -> None:
    schedule, _, events = given()
    waits = Counter((wait.step, step.key) for step in schedule.steps for wait in step.waits)
    for rank in range(8):
        drawn = Counter(
            (slice_at(events, a), slice_at(events, b)) for a, b in flows(events) if a["pid"] == b["pid"] == rank
        )
        assert drawn == waits
    assert all(a["ts"] <= b["ts"] for a, b in flows(events))


def test_signals_come_from_every_rank() -> None:
    found = large(40)
    assert found.schedule
    events = perfetto(found.schedule, found.predicted)["traceEvents"]
    signals = [(a, b) for a, b in flows(events) if a["name"] == "signal"]
    waits = sum(wait.everywhere for step in found.schedule.steps for wait in step.waits)
    assert len(signals) == waits * 8 * 8
    assert {(a["pid"], b["pid"]) for a, b in signals} == {(a, b) for a in range(8) for b in range(8)}


def test_ranks_that_are_not_alike_have_times_of_their_own() -> None:
    found = skewed_side()
    assert found.schedule
    busy, others = found.predicted[-2:]
    events = perfetto(found.schedule, (busy, others))["traceEvents"]
    for rank in range(8):
        timeline = others if rank else busy
        mine = {e["name"]: e for e in slices(events, rank)}
        assert mine.keys() == found.schedule.step.keys()
        for key, e in mine.items():
            event = timeline.event[key]
            assert (e["ts"], e["dur"]) == pytest.approx((event.start * 1e6, event.seconds * 1e6), abs=2e-3)
            assert e["args"].get("us_until_all_ranks_came", 0) == pytest.approx(event.waits * 1e6, abs=1e-3)
    assert any(event.waits for event in others.events)
    assert all(a["ts"] <= b["ts"] for a, b in flows(events))


def test_a_run_stands_below_its_prediction() -> None:
    schedule, _, events = given(run=True)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names[0] == "rank 0, predicted" and names[1] == "rank 0, measured" and names[3] == "rank 1, measured"
    for rank in (0, 1):
        mine = slices(events, 2 * rank + 1)
        assert Counter(e["name"] for e in mine) == Counter(list(schedule.step))
        # The first of all ranks is where time begins.
        assert min(e["ts"] for e in mine) == pytest.approx(1.0 - rank, abs=1e-3)
    assert {e["name"] for e in slices(events, 0)} == {e["name"] for e in slices(events, 1)}


def test_times_of_ranks_mean_what_the_trace_says_of_its_clocks() -> None:
    schedule = side().schedule
    assert schedule
    run = measured("run.json", trace(schedule), schedule)
    assert run.residual == pytest.approx(2.5e-6) and run.clocks == "clocks aligned, at most 2.50 us apart"
    assert [timeline.events[0].start for timeline in run.ranks.values()] == pytest.approx([1e-6, 0.0])
    data = json.loads(trace(schedule))
    del data["otherData"]
    alone = measured("run.json", json.dumps(data), schedule)
    assert alone.residual is None and "not aligned" in alone.clocks
    assert {timeline.events[0].start for timeline in alone.ranks.values()} == {0.0}


@pytest.mark.parametrize("apart", [-1, "soon", None, [], float("nan"), 10**400])
def test_a_trace_that_says_nonsense_of_its_clocks_is_refused(apart: object) -> None:
    schedule = side().schedule
    assert schedule
    data = json.loads(trace(schedule)) | {"otherData": {"apart_us": apart}}
    with pytest.raises(EpsError, match=r"says that clocks are .* us apart"):
        measured("run.json", json.dumps(data), schedule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "holds no `traceEvents`"),
        ('{"traceEvents": []}', "holds no step that ran"),
        ('{"traceEvents": [{"ph": "X"}]}', "none of a trace"),
        ('{"traceEvents": [7]}', "none of a trace"),
        ('{"traceEvents": [{"ph": "X", "ts": 0, "dur": 1, "pid": 0}]}', "none of a trace"),
        ('{"traceEvents": [{"ph": "X", "name": "up", "ts": 0, "dur": 1, "pid": 0, "tid": []}]}', "none of a trace"),
        ('{"traceEvents": [{"ph": "X", "name": "up", "ts": NaN, "dur": 1, "pid": 0}]}', "none of a trace"),
        ('{"traceEvents": [{"ph": "X", "name": "upp", "ts": 0, "dur": 1, "pid": 0}]}', "has no step `upp`"),
        ('{"traceEvents": [{"ph": "X", "name": "up[x:1/0]", "ts": 0, "dur": 1, "pid": 0}]}', "is no step of a program"),
    ],
)
def test_what_is_no_trace_of_the_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(EpsError, match=message):
        measured("run.json", text, side().schedule)
