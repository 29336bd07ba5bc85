"""Timelines worked out by hand."""

from dataclasses import replace

import pytest

from epsc.ir.errors import EpsError
from epsc.ir.schedule import Stage
from epsc.machine.simulate import simulate
from tests.machine.toys import Toy, cluster, hides, run, schedule, spans


def test_two_chunks_on_their_own_sms_overlap() -> None:
    # Transfers of 3 on 16 SMs, GEMMs of 4 on 116: they fit beside each other.
    #   comm  t0 [0, 3]  t1 [3, 6]
    #   comp             g0 [3, 7]  g1 [7, 11]   g1 waits for t1 (6) and for its lane (7)
    # Exposed is t0 alone: 3 of 6 seconds.
    timeline = run(
        Toy("t0", "all2all", "comm", 3, 16),
        Toy("t1", "all2all", "comm", 3, 16),
        Toy("g0", "gemm", "comp", 4, 116, ("t0",)),
        Toy("g1", "gemm", "comp", 4, 116, ("t1",)),
    )
    assert spans(timeline) == {"t0": (0, 3), "t1": (3, 6), "g0": (3, 7), "g1": (7, 11)}
    assert timeline.total == 11
    assert timeline.exposed == [(0, 3)]
    assert timeline.hidden == 0.5
    assert timeline.critical_path == ("t0", "g0", "g1")
    assert timeline.event["g0"].waited_for == "t0 to be done"
    assert timeline.event["g1"].waited_for == "g0 on its lane"


def test_a_gemm_that_wants_the_whole_chip_hides_nothing() -> None:
    # The same four steps, but GEMMs take every SM. At 3, t1 (issued first) and g0 are ready; t1 takes 16 SMs, so g0
    # queues until 6, and everything is serial: 3 + 3 + 4 + 4.
    timeline = run(
        Toy("t0", "all2all", "comm", 3, 16),
        Toy("t1", "all2all", "comm", 3, 16),
        Toy("g0", "gemm", "comp", 4, 0, ("t0",)),
        Toy("g1", "gemm", "comp", 4, 0, ("t1",)),
    )
    assert spans(timeline) == {"t0": (0, 3), "t1": (3, 6), "g0": (6, 10), "g1": (10, 14)}
    assert timeline.exposed_transfer == 6
    assert timeline.event["g0"].waited_for == "SMs, held by t1"
    assert timeline.critical_path == ("t0", "t1", "g0", "g1")


def test_a_measured_pair_runs_together_at_its_pace() -> None:
    # They hide half: both at 1 / (2 - 0.5) = 2/3. t (2) takes until 3, in which g does 2 of its 4; then g is alone.
    #   comm  t [0, 3]
    #   comp  g [0,      5]      2 + 4 - 0.5 * 2 = 5
    timeline = run(Toy("t", "all2all", "comm", 2), Toy("g", "gemm", "comp", 4), besides=hides(0.5))
    assert spans(timeline)["t"] == pytest.approx((0, 3))
    assert spans(timeline)["g"] == pytest.approx((0, 5))
    assert timeline.exposed_transfer == 0
    assert timeline.slowed == pytest.approx(1)
    assert timeline.hidden == pytest.approx(0.5)


def test_a_pair_that_hides_nothing_costs_what_one_after_the_other_does() -> None:
    # Pace 1/2. Both start at 1, when a is done: t has 2, g 3. t ends at 1 + 4 = 5 with g's 1 left: 6.
    timeline = run(
        Toy("a", "add", "comp", 1),
        Toy("t", "all2all", "comm", 2, waits=("a",)),
        Toy("g", "gemm", "comp", 3),
        besides=hides(0),
    )
    assert spans(timeline) == {"a": (0, 1), "t": (1, 5), "g": (1, 6)}
    assert timeline.hidden == 0


def test_a_pair_changes_its_pace_when_one_ends_and_the_next_starts() -> None:
    # Hidden 0, pace 1/2: t (3) runs beside g0 (1) until g0 is done at 2, and has done 1 itself; a gather then runs
    # undisturbed for 1, so t has done 2 at 3; then g1 (2) beside it: t's last 1 takes until 5, and g1 has done 1: 6.
    timeline = run(
        Toy("t", "all2all", "comm", 3, 16),
        Toy("g0", "gemm", "comp", 1),
        Toy("gather", "add", "comp", 1),
        Toy("g1", "gemm", "comp", 2),
        besides=hides(0),
    )
    assert spans(timeline) == {"t": (0, 5), "g0": (0, 2), "gather": (2, 3), "g1": (3, 6)}


def test_memory_is_shared_by_what_runs() -> None:
    # 64 rows of 8 bf16 are 1024 bytes written: an add of 1 second needs all of 1024 bytes/s, one of 2 half of it.
    # Together 1.5 of it: both at 2/3 until a ends at 1.5, with b's 1 left.
    timeline = run(Toy("a", "add", "one", 1, 16), Toy("b", "add", "two", 2, 16), hbm=1024)
    assert spans(timeline)["a"] == pytest.approx((0, 1.5))
    assert spans(timeline)["b"] == pytest.approx((0, 2.5))


def test_the_host_stops_until_it_knows_the_sizes() -> None:
    # Each launch takes the host 1 second.
    #   host  a issued at 1; then at `n` until a is done at 6 and n has taken 2: 8; then b issued
    #         at 9 and c at 10
    #   comp  a [1, 6]        b [9, 12]   c [12, 13]
    timeline = run(
        Toy("a", "gemm", "comp", 5),
        Toy("n", "sizes", "host", 2, waits=("a",)),
        Toy("b", "gemm", "comp", 3),
        Toy("c", "add", "comp", 1),
        launch_s=1,
    )
    assert spans(timeline) == {"a": (1, 6), "n": (6, 8), "b": (9, 12), "c": (12, 13)}
    assert timeline.critical_path == ("a", "n", "b", "c")
    assert timeline.event["b"].waited_for == "the host to issue it"
    assert timeline.host_busy == 3


def test_short_kernels_are_bound_by_their_launches() -> None:
    # The host issues at 1, 2, 3; each kernel takes 0.1, but cannot end before it was issued.
    timeline = run(*(Toy(name, "gemm", "comp", 0.1) for name in "abc"), launch_s=1)
    assert [event.start for event in timeline.events] == [1, 2, 3]
    assert timeline.total == pytest.approx(3.1)


def test_an_event_is_seen_later_on_another_lane_only() -> None:
    # b waits for a across lanes (+0.5), c follows b on its lane (+0).
    timeline = run(
        Toy("a", "gemm", "comp", 1, 60),
        Toy("b", "gemm", "side", 1, 60, ("a",)),
        Toy("c", "gemm", "side", 1, 60, ("b",)),
        event_s=0.5,
    )
    assert spans(timeline) == {"a": (0, 1), "b": (1.5, 2.5), "c": (2.5, 3.5)}


def test_transfers_share_the_link_one_after_the_other() -> None:
    # Both fit on the SMs, but there is one link: 2 + 2, on two lanes and two communicators or not.
    timeline = run(Toy("out", "all2all", "intra", 2, 16), Toy("home", "all2all", "inter", 2, 16))
    assert spans(timeline) == {"out": (0, 2), "home": (2, 4)}
    assert "held by out" in timeline.event["home"].waited_for


def test_transfers_on_the_cpu_take_no_compute() -> None:
    # gloo runs on a thread of its own: no SMs, so a step that wants every core runs beside it.
    timeline = run(Toy("t", "all2all", "comm", 3, impl="gloo"), Toy("g", "gemm", "comp", 4))
    assert spans(timeline) == {"t": (0, 3), "g": (0, 4)}
    assert timeline.exposed_transfer == 0


def test_a_gather_runs_beside_a_transfer_without_being_limited() -> None:
    # The gather (50 SMs are all it can use) fits beside the transfer's 16, a GEMM without a limit would not.
    timeline = run(Toy("t", "all2all", "comm", 3, 16), Toy("gather", "add", "comp", 2), Toy("g", "gemm", "comp", 1))
    assert spans(timeline) == {"t": (0, 3), "gather": (0, 2), "g": (3, 4)}


def test_an_urgent_lane_goes_first() -> None:
    # Both are ready at 0 and want the whole chip; the transfer lane has priority although g was issued first.
    steps = Toy("g", "gemm", "comp", 4), Toy("t", "all2all", "comm", 3)
    assert spans(run(*steps)) == {"g": (0, 4), "t": (4, 7)}
    assert spans(run(*steps, urgent=("comm",))) == {"t": (0, 3), "g": (3, 7)}


def test_what_does_not_fit_is_not_overtaken() -> None:
    # big (132) queues behind a (100, until 4); small (16) would fit beside a but was issued later: it queues too.
    timeline = run(Toy("a", "gemm", "one", 4, 100), Toy("big", "gemm", "two", 2), Toy("small", "gemm", "three", 1, 16))
    assert spans(timeline) == {"a": (0, 4), "big": (4, 6), "small": (6, 7)}


def test_steps_of_no_length_hold_nobody_up() -> None:
    timeline = run(*(Toy(name, "gemm", "comp", 0) for name in "abc"), Toy("d", "gemm", "other", 1, 0, ("c",)))
    assert timeline.total == 1
    assert len(timeline.events) == 4


def test_nothing_to_do_takes_no_time() -> None:
    timeline = run()
    assert (timeline.total, timeline.hidden, timeline.critical_path) == (0, 1, ())


def test_steps_that_wait_for_each_other_are_an_error() -> None:
    with pytest.raises(EpsError, match="`a` of `toy` can never start") as caught:
        run(Toy("a", "gemm", "one", 1, 16, ("b",)), Toy("b", "gemm", "two", 1, 16, ("a",)))
    assert "b to be done" in str(caught.value)


def test_steps_without_lanes_are_an_error() -> None:
    unplaced = replace(schedule(Toy("a", "gemm", "", 1)), stage=Stage.CUT)
    with pytest.raises(EpsError, match="is only cut"):
        simulate(unplaced, cluster(), 64)
