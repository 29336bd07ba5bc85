"""`Regions` and what the hazard check makes of it, against asking `overlap` of every pair."""

from __future__ import annotations

from random import Random
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epsc.ir.dims import Axis, Cut, Cuts, overlap
from epsc.ir.errors import Faults
from epsc.ir.regions import Regions
from epsc.ir.schedule import Schedule, Stage
from epsc.proof.happens import Happens
from epsc.proof.hazards import check_hazards
from tests.proof.mutations import Reach, remove_wait, shuffled
from tests.proof.schedules import example_schedules, random_schedules


@st.composite
def one_cut(draw: st.DrawFn) -> Cut:
    count = draw(st.integers(1, 12) | st.just(10**9))
    axis = draw(st.sampled_from([Axis.TOKENS, Axis.EXPERT_GROUP, Axis.COLUMNS]))
    return Cut(axis, draw(st.integers(0, count - 1)), count)


regions = st.lists(one_cut(), max_size=3).map(tuple) | one_cut().map(lambda cut: (cut,))


@given(st.lists(regions, max_size=40), st.lists(regions, max_size=8))
def test_regions_meet_as_pairs_overlap(added: list[Cuts], asked: list[Cuts]) -> None:
    # `object`: things need neither compare nor hash.
    things = [(cuts, object()) for cuts in added]
    index: Regions[object] = Regions()
    for n, (cuts, thing) in enumerate(things):
        index.add(cuts, thing)
        assert len(index) == n + 1
        # Between additions too: in use, one asks and adds in turn.
        for ask in (*asked, cuts):
            assert index.meeting(ask) == [t for c, t in things[: n + 1] if overlap(c, ask)]
    assert list(index) == [thing for _, thing in things]
    assert all(index.meeting(ask) == [] for ask in asked) or things


def test_all_parts_of_all_counts_meet_as_pairs_overlap() -> None:
    cuts = [(Cut(Axis.TOKENS, i, n),) for n in range(1, 10) for i in range(n)]
    for few in (cuts, cuts[::7]):  # more parts there than meet, and fewer
        index: Regions[Cuts] = Regions()
        for cut in few:
            index.add(cut, cut)
        for ask in cuts:
            assert index.meeting(ask) == [cut for cut in few if overlap(cut, ask)]


def races(schedule: Schedule, reach: Reach) -> int:
    """Pairs of uses in one place that nothing orders, one by one, with an order that is not `Happens`."""
    uses: list[tuple[str, object, Cuts, bool, str]] = []
    found = 0
    for step in schedule.steps:
        fresh = []
        for ref, writes in [*((r, False) for r in step.reads), *((w, True) for w in step.writes)]:
            place, home = ref.value, (ref.value, ())
            if schedule.stage >= Stage.BUFFERED:
                for buffer in schedule.buffers:
                    if buffer.value == ref.value and buffer.cuts in ((), ref.cuts):
                        place, home = buffer.storage, (ref.value, buffer.cuts)
                        break
            for other_place, other_home, cuts, wrote, key in uses:
                conflict = place == other_place and (writes or wrote)
                if conflict and (home != other_home or overlap(cuts, ref.cuts)) and not reach(key, step.key):
                    found += 1
            fresh.append((place, home, ref.cuts, writes, step.key))
        uses += fresh
    return found


@pytest.mark.parametrize("broken", [False, True])
def test_races_are_found_as_by_comparing_every_two_uses(broken: bool) -> None:
    random, seen = Random(3), 0
    for made in (*example_schedules()[::8], *random_schedules(40)):
        mutants = [m[1] for m in remove_wait(made.schedule, shuffled(random))][:2] if broken else [made.schedule]
        for schedule in mutants:
            faults = Faults()
            check_hazards(schedule, Happens.of(schedule), faults)
            reported = sum(fault.code == "race" for fault in faults.errors)
            expected = races(schedule, Reach(schedule))
            # A write that replaced what was there stands for it: of several races it may leave out some, never all.
            assert reported <= expected and bool(reported) == bool(expected), made.origin
            seen += expected
    assert (seen > 100) == broken


def test_time_grows_with_what_is_found_only() -> None:
    """Chunks that each ask for their own part: 64 times as many take far less than 64 * 64 times as long."""

    def seconds(count: int) -> float:
        start = perf_counter()
        index: Regions[int] = Regions()
        for i in range(count):
            index.add((Cut(Axis.TOKENS, i, count),), i)
        for i in range(count):
            assert index.meeting((Cut(Axis.TOKENS, i, count),)) == [i]
        return perf_counter() - start

    assert min(seconds(16_000) for _ in range(3)) < 64 * 12 * min(seconds(250) for _ in range(3))
