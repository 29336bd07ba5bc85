"""Where time goes and why transfers are exposed, on timelines worked out by hand."""

import pytest

from epsc.machine.cluster import Cluster
from epsc.machine.ranks import simulate_ranks, skewed
from epsc.machine.reasons import Spent, Why, exposures, least_total, spent
from epsc.machine.simulate import simulate
from tests.machine.schedules import eps
from tests.machine.toys import Toy, cluster, hides, run, schedule

T, G = "all2all", "gemm"


def test_every_moment_is_spent_once() -> None:
    #   comm  t0 [0, 3]  t1 [3, 6]
    #   comp             g0 [3, 7]  add [7, 8]
    timeline = run(
        Toy("t0", T, "comm", 3, 16),
        Toy("t1", T, "comm", 3, 16),
        Toy("g0", G, "comp", 4, 116, ("t0",)),
        Toy("a", "add", "comp", 1),
    )
    found = {what: seconds for what, seconds in spent(timeline).items() if seconds}
    assert found == {Spent.EXPOSED: 3, Spent.PRODUCTS: 4, Spent.PASSES: 1}
    assert sum(found.values()) == timeline.total
    assert least_total(timeline) == {"transfers": 6, "products and passes": 5, "launches": 0}


def test_waiting_for_launches_is_nothing() -> None:
    timeline = run(
        Toy("a", G, "comp", 1), Toy("n", "sizes", "host", 2, waits=("a",)), Toy("b", G, "comp", 1), launch_s=1
    )
    # a [1, 2], n [2, 4], b issued at 5: [5, 6]
    assert spent(timeline)[Spent.HOST] == 2
    assert spent(timeline)[Spent.IDLE] == 2
    assert spent(timeline)[Spent.PRODUCTS] == 2


def why(*toys: Toy, **options: object) -> list[tuple[str, Why]]:
    made = schedule(*toys)
    timeline = run(*toys, **options)  # type: ignore[arg-type]
    return [(found.step, found.why) for found in exposures(timeline, made)]


def test_nothing_left_is_too_little_work() -> None:
    assert why(Toy("g", G, "comp", 1), Toy("t", T, "comm", 2, waits=("g",))) == [("t", Why.LITTLE_WORK)]


def test_a_full_chip_is_sm_contention() -> None:
    # t has 16 SMs; g wants all of them and needs nothing of t, but queues.
    assert why(Toy("t", T, "comm", 3, 16), Toy("g", G, "comp", 4)) == [("t", Why.SMS)]


def test_a_late_launch_is_launch() -> None:
    # The host issues t at 1 and g at 2.
    assert why(Toy("t", T, "comm", 3, 16), Toy("g", G, "comp", 4, 116), launch_s=1) == [("t", Why.LAUNCH)]


def test_a_lane_in_order_is_lane_order() -> None:
    # g could run beside t, but stands behind it on its lane.
    assert why(Toy("t", T, "comp", 3, 16), Toy("g", G, "comp", 4, 116)) == [("t", Why.LANE)]


def test_a_dependency_on_another_is_dependency() -> None:
    # g waits for n, which runs on the host until 3, and needs nothing of t.
    toys = Toy("t", T, "comm", 3, 16), Toy("n", "sizes", "host", 3), Toy("g", G, "comp", 1, 116, ("n",))
    assert why(*toys) == [("t", Why.DEPENDENCY)]


def test_ranks_that_have_not_come_are_load_imbalance() -> None:
    # Half the rows are there: it waits in the way home for the rank that has three times as many.
    made, on = eps(1, 0, ep=2, overlap=False), Cluster.make("h", "h200", 2)
    busy, idle = simulate_ranks(made, on, 8192, skewed(2, 1.5))
    found = {e.step: e for e in exposures(idle, made)}
    assert found["back.all2all"].why is Why.IMBALANCE
    assert "nothing moves, as other ranks have not come" in found["back.all2all"].words
    assert Why.IMBALANCE not in [e.why for e in exposures(busy, made)]
    (alike,) = simulate_ranks(made, on, 8192, (1.0, 1.0))
    assert Why.IMBALANCE not in [e.why for e in exposures(alike, made)]


def test_a_link_that_is_held_is_a_resource() -> None:
    # A product that stores its rows in the memory of other GPUs needs the link, which t holds.
    toys = Toy("t", T, "comm", 3, 16), Toy("p", "expert_gemm_put", "comp", 4, 116)
    made = schedule(*toys)
    timeline = run(*toys)
    assert timeline.event["p"].waited_for == "link, held by t"
    assert [(found.step, found.why) for found in exposures(timeline, made)] == [("t", Why.RESOURCE)]


def test_serial_says_that_its_one_lane_is_why() -> None:
    made = eps(1, 0, overlap=False)
    timeline = simulate(made, Cluster.make("h", "h200", 8), 4096)
    found = {e.step: e.why for e in exposures(timeline, made)}
    assert found["sent.all2all"] is Why.LANE  # the shared experts come after it on the one lane
    assert found["back.all2all"] is Why.LITTLE_WORK  # only the sum is left, which needs it
    total = sum(spent(timeline).values())
    assert total == pytest.approx(timeline.total)


def test_slower_compute_is_what_hiding_costs() -> None:
    timeline = run(Toy("t", T, "comm", 2), Toy("g", G, "comp", 4), besides=hides(0.5))
    assert least_total(timeline)["products and passes"] == pytest.approx(4)
    assert cluster().device.besides == ()
