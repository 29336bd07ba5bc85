"""One-sided transfers by SMs: turns, signals, and what a product that takes every SM does to them; by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from epsc import driver
from epsc.grammar import parse
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.machine.cluster import Cluster
from epsc.machine.cost import price
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Event
from epsc.passes.auto import scheduled

EXAMPLE = Path(__file__).parents[2] / "examples" / "deepseek_v2.eps"
TOKENS = 8192
SLOTS = 2 * TOKENS
"""Of both ranks: what goes home is gone over for all of them."""


def planned(plan: str) -> tuple[Schedule, Cluster]:
    """A schedule of DeepSeek-V2's layer on two H200: rows of 5120 columns."""
    layer = driver.understand(driver.read(EXAMPLE), driver.Options({"ep": "2", "tokens": str(TOKENS)}))
    decl = parse(Source("plan", f"schedule s {{ {plan} }}")).schedules[0]
    return scheduled(decl, layer.said, layer.graph, layer.numbers, layer.cluster, layer.options.pipeline), layer.cluster


SUMS = "use copy for sent use put for back local_reduce back reserve 16 sms for back"


def test_on_few_sms_a_transfer_takes_its_turns() -> None:
    # A row goes home in 5 pieces of 1024 columns, by 4 programs for each of 16 SMs, in 1.31 us each.
    schedule, cluster = planned(SUMS)
    table = cluster.device.table["put_sums", "put"]
    put = schedule.step["back.put"]
    priced = price(schedule, put, cluster, TOKENS)
    turns = SLOTS * 5
    assert priced.work.turns == turns
    assert priced.seconds == pytest.approx(7e-6 + 1.31e-6 * turns / (16 * 4), rel=0.05)
    assert table.turn_s == 1.31e-6
    # Half as many columns, in a cut, are 5 pieces of 512: as many turns, and no less time for half the bytes.
    half, _ = planned(SUMS + " split back by columns into 2")
    step = next(step for step in half.steps if step.key.startswith("back.put"))
    part = price(half, step, cluster, TOKENS)
    assert part.work.hbm_bytes < 0.6 * priced.work.hbm_bytes
    assert part.work.turns == turns
    assert part.seconds > 0.9 * priced.seconds


def test_rows_that_leave_are_moved_whole() -> None:
    schedule, cluster = planned("use put for sent use put for back reserve 16 sms for sent, back")
    step = schedule.step["sent"]
    assert step.impl.names == ("put",)
    assert price(schedule, step, cluster, TOKENS).work.turns == TOKENS


def event(schedule: Schedule, cluster: Cluster, graph: bool, key: str = "back.put") -> Event:
    return simulate(schedule, cluster, TOKENS, graph=graph).event[key]


def test_beside_a_product_that_takes_every_sm_programs_are_packed() -> None:
    # Launched eagerly, the shared experts' product by cuBLAS comes first: it is on the lane, and the transfer waits for
    # an event. Its 64 programs of 4 warps then get 4 SMs of 64 warps, with 28 GB/s each.
    schedule, cluster = planned(SUMS)
    eager = event(schedule, cluster, graph=False)
    assert eager.seconds == pytest.approx(eager.work.hbm_bytes / (28e9 * 16 / 4), rel=1e-3)
    # In a graph both are let go at once and the more urgent is first: 64 SMs, at its own pace.
    replayed = event(schedule, cluster, graph=True)
    assert replayed.seconds == pytest.approx(
        price(schedule, schedule.step["back.put"], cluster, TOKENS).seconds, rel=1e-3
    )
    # The product then has the other 68 until the transfer is done.
    product = event(schedule, cluster, graph=True, key="mlp.gate_up")
    alone = price(schedule, schedule.step["mlp.gate_up"], cluster, TOKENS).seconds
    assert product.seconds == pytest.approx(alone * 132 / 68, rel=1e-3)
    # It was measured: 11.38 and 6.88 ms (benchmarks/regret/h200x2.json).
    assert simulate(schedule, cluster, TOKENS).total == pytest.approx(11.38e-3, rel=0.1)
    assert simulate(schedule, cluster, TOKENS, graph=True).total == pytest.approx(6.88e-3, rel=0.1)


def test_a_chip_of_which_one_sm_is_not_known_packs_nothing() -> None:
    schedule, cluster = planned(SUMS)
    unknown = replace(cluster, device=replace(cluster.device, sm_bytes_per_s=0.0))
    assert event(schedule, unknown, graph=False).seconds < 0.5 * event(schedule, cluster, graph=False).seconds


def test_what_comes_from_every_rank_is_signalled() -> None:
    schedule, cluster = planned("use put for sent use put for back local_reduce back dedup sent")
    slow = replace(cluster, device=replace(cluster.device, signal_s=1e-3))
    found = simulate(schedule, slow, TOKENS, graph=True).event
    # The rows themselves follow on the same lane and need no signal; who reads what others told or sent does.
    assert found["sent.put"].start == found["sent.tell"].end
    assert found["sent.locate"].start == pytest.approx(found["sent.tell"].end + 1e-3)
    assert found["sent"].start == pytest.approx(found["sent.put"].end + 1e-3)
    assert found["sent"].waited_for == "sent.put to be done"
    # The sums' is hidden: the shared experts run meanwhile.
    assert found["return"].start == found["mlp"].end > found["back.put"].end + 1e-3
