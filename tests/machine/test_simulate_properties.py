"""What holds for the timeline of any schedule."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from epsc.ir.kinds import KINDS, Role
from epsc.machine.timeline import length, union
from tests.machine.toys import Toy, hides, run

SECONDS = st.integers(0, 50).map(lambda n: n / 8)
SLACK = 1e-9
SMS = {Role.COMPUTE: 132, Role.TRANSFER: 132, Role.MEMORY: 50}
"""SMs that a step takes when nothing limits it."""


@st.composite
def toys(draw: st.DrawFn) -> list[Toy]:
    """Steps on a few lanes, each waiting for some that were issued before it."""
    made: list[Toy] = []
    for i in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["gemm", "add", "all2all", "sizes"]))
        lane = "host" if kind == "sizes" else draw(st.sampled_from(["comp", "comm", "side"]))
        waits = draw(st.lists(st.sampled_from(made), max_size=3, unique=True)) if made else []
        sms = draw(st.sampled_from([0, 16, 60, 116]))
        made.append(Toy(f"s{i}", kind, lane, draw(SECONDS), sms, tuple(w.name for w in waits)))
    return made


@given(toys(), st.sampled_from([0, 0.25]), st.sampled_from([0, 0.5]))
def test_timelines_obey_order_and_resources(steps: list[Toy], launch_s: float, event_s: float) -> None:
    timeline = run(*steps, urgent=("comm",), launch_s=launch_s, event_s=event_s)
    at = timeline.event
    assert len(timeline.events) == len(steps)
    previous: dict[str, str] = {}
    for step in steps:
        event = at[step.name]
        assert event.seconds >= step.seconds - SLACK
        for wait in step.waits:
            assert event.start >= at[wait].end + (event_s if at[wait].lane != event.lane else 0)
        if step.lane in previous:
            assert event.start >= at[previous[step.lane]].end
        previous[step.lane] = step.name
    # No moment at which more SMs are taken than there are, or two transfers share the link.
    for moment in [event.start for event in timeline.events]:
        now = [event for event in timeline.events if event.start <= moment < event.end and event.role is not Role.HOST]
        assert sum(event.sms or SMS[event.role] for event in now) <= 132
        assert sum(event.role is Role.TRANSFER for event in now) <= 1


@given(toys(), st.sampled_from([0, 0.25]), st.sampled_from([0, 0.5]))
def test_makespan_is_bounded(steps: list[Toy], launch_s: float, event_s: float) -> None:
    timeline = run(*steps, launch_s=launch_s, event_s=event_s)
    total = timeline.total + SLACK
    assert total >= sum(timeline.event[name].seconds for name in timeline.critical_path)
    for lane in timeline.lanes:
        assert total >= sum(step.seconds for step in steps if step.lane == lane)
    assert total >= sum(step.seconds for step in steps if step.kind == "all2all")
    device = [step for step in steps if step.kind != "sizes"]
    assert total >= sum(step.seconds * (step.sms or SMS[KINDS[step.kind].role]) for step in device) / 132
    # Nothing is slower than one step after the other, each with its launch and its event.
    assert timeline.total <= sum(step.seconds + launch_s + event_s for step in steps) + SLACK
    assert 0 <= timeline.exposed_transfer <= length(timeline.transfers) + SLACK


@given(toys(), st.sampled_from([-0.5, 0, 0.5, 1]), st.sampled_from([256, 1024, 1e30]), st.sampled_from([0, 0.25]))
def test_contention_never_beats_the_work_of_a_resource(
    steps: list[Toy], share: float, hbm: float, launch_s: float
) -> None:
    timeline = run(*steps, besides=hides(share), hbm=hbm, launch_s=launch_s)
    total = timeline.total + 1e-6
    assert all(timeline.event[step.name].seconds >= step.seconds - 1e-6 for step in steps)
    path = timeline.critical_path
    assert total >= sum(step.seconds for step in steps if step.name in path)
    for lane in timeline.lanes:
        assert total >= sum(step.seconds for step in steps if step.lane == lane)
    assert total >= sum(step.seconds for step in steps if step.kind == "all2all")
    needed = [
        min(step.seconds, timeline.event[step.name].work.hbm_bytes / hbm) for step in steps if step.kind != "sizes"
    ]
    assert total >= sum(needed)
    # Products and passes keep to their SMs whatever a transfer does beside them.
    own = [step for step in steps if step.kind in ("gemm", "add")]
    assert total >= sum(step.seconds * (step.sms or SMS[KINDS[step.kind].role]) for step in own) / 132
    # What runs beside a measured pair gains at most the share that was measured.
    if share <= 0 and hbm == 1e30:
        gemms = sum(step.seconds for step in steps if step.kind == "gemm" and not step.sms)
        assert total >= max(gemms, sum(step.seconds for step in steps if step.kind == "all2all"))


@given(toys())
def test_the_critical_path_has_no_gaps_without_latencies(steps: list[Toy]) -> None:
    timeline = run(*steps)
    path = [timeline.event[name] for name in timeline.critical_path]
    assert path[0].start == 0
    assert path[-1].end == timeline.total
    assert all(a.end == b.start for a, b in pairwise(path))


@given(toys())
def test_the_same_schedule_gives_the_same_timeline(steps: list[Toy]) -> None:
    assert run(*steps) == run(*steps)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_union_covers_the_same_moments(intervals: list[tuple[int, int]]) -> None:
    merged = union(intervals)
    for moment in range(10):
        inside = any(start <= moment < end for start, end in intervals)
        assert any(start <= moment < end for start, end in merged) == inside
    assert all(a[1] < b[0] for a, b in pairwise(merged))
