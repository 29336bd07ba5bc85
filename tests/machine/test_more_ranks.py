"""Ranks that nobody here has: what `auto` takes of examples on 4, 8 and 64 is proven, and its prediction is sane."""

from __future__ import annotations

from collections import Counter
from math import comb
from pathlib import Path

import pytest

from benchmarks.more_ranks import rows
from epsc import driver
from epsc.ir.attrs import RouteAttrs
from epsc.ir.errors import EpsError
from epsc.ir.kinds import Role
from epsc.machine.simulate import simulate
from epsc.machine.timeline import Timeline
from epsc.proof.verify import prove

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.eps"))
T = 4096
MACHINES = [
    pytest.param("h200", 4, 1, marks=pytest.mark.slow),
    ("h200", 8, 1),
    pytest.param("h800", 8, 1, marks=pytest.mark.slow),
    ("h100", 64, 8),
]


def options(device: str, ep: int, nodes: int) -> driver.Options:
    return driver.Options({"device": device, "ep": str(ep), "nodes": str(nodes), "tokens": str(T)})


def sent_rows(experts: int, top_k: int, ep: int) -> dict[str, float]:
    """Rows that a rank sends to others, by kind of transfer, of tokens that choose evenly."""
    each = T * top_k * (ep - 1) / ep
    # The ranks that have an expert of a token: each other one, unless all of its experts are elsewhere.
    once = T * (ep - 1) * (1 - comb(experts - experts // ep, top_k) / comb(experts, top_k))
    every = T * (ep - 1.0)
    return {
        "all2all": each,
        "put_copies": each,
        "put_back": each,
        "put_rows": once,
        "put_sums": once,
        "copy_rows": every,
    }


@pytest.mark.parametrize("device, ep, nodes", MACHINES)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_auto(path: Path, device: str, ep: int, nodes: int) -> None:
    source, wanted = driver.read(path), options(device, ep, nodes)
    (experts,) = (int(line.split("=")[1]) for line in source.text.splitlines() if line.startswith("let experts"))
    if experts % ep:
        with pytest.raises(EpsError, match=f"{experts} experts cannot be shared evenly by ep = {ep}"):
            driver.understand(source, wanted)
        return
    layer = driver.understand(source, wanted)
    plan = driver.plan(layer, "best")
    schedule, cluster = plan.schedule, layer.cluster
    prove(schedule)
    timeline, serial = (simulate(s, cluster, T) for s in (schedule, driver.plan(layer, "serial").schedule))

    (route,) = (node.attrs for node in schedule.graph.nodes if isinstance(node.attrs, RouteAttrs))
    (hidden,) = (schedule.graph.types[name].shape[1].scale for name in schedule.graph.inputs)
    sent = Counter[str]()
    for event in timeline.events:
        if event.role is Role.TRANSFER:
            sent[schedule.graph.node[event.node].kind] += event.work.link_bytes  # type: ignore[assignment]
    right = sent_rows(experts, route.top_k, ep)
    ways = [kind for kind in sent if kind in right]
    assert ways
    for kind in ways:
        directions = 2 if kind == "all2all" else 1
        assert sent[kind] == pytest.approx(directions * right[kind] * hidden * 2, rel=1e-6), kind
    if nodes > 1:
        assert ways == ["all2all"], "ranks store into each other's memory within a node only"

    bounded(timeline, cluster.device.flops_bf16, cluster.device.hbm_bytes_per_s)
    line = max(cluster.device.intra_bytes_per_s, cluster.device.copy_bytes_per_s)
    assert timeline.total >= sum(sent[kind] for kind in ways) / line
    if nodes > 1:  # of 63 others, 56 are on other nodes
        assert timeline.total >= sum(sent.values()) * 56 / 63 / cluster.device.inter_bytes_per_s
    best = min(timeline.total, simulate(schedule, cluster, T, graph=True).total if schedule.capturable else 1e9)
    assert best <= serial.total


def bounded(timeline: Timeline, flops: float, memory: float) -> None:
    """Never shorter than its critical path, or the work of a lane or a resource."""
    total = timeline.total * (1 + 1e-9)
    alone = {event.step: event.seconds if event.alone is None else event.alone for event in timeline.events}
    assert total >= sum(alone[name] for name in timeline.critical_path)
    for lane in timeline.lanes:
        assert total >= sum(alone[event.step] for event in timeline.events if event.lane == lane)
    assert total >= sum(event.work.flops for event in timeline.events) / flops
    assert total >= sum(event.work.weight_bytes for event in timeline.events) / memory


@pytest.mark.parametrize("name", ["deepseek_v2", "mixtral_8x7b"])
def test_work_of_a_rank(name: str) -> None:
    """With as many tokens on each rank: as many FLOP, weights that fall with the ranks, bytes for others that grow."""
    (path,) = (path for path in EXAMPLES if path.stem == name)
    found = []
    for ep in (2, 4, 8):
        layer = driver.understand(driver.read(path), options("h200", ep, 1))
        timeline = simulate(driver.plan(layer, "serial").schedule, layer.cluster, T)
        experts = [event for event in timeline.events if event.node in ("gate_up", "h", "down")]
        work = [event.work for event in timeline.events]
        found.append(
            (
                sum(each.flops for each in work),
                sum(event.work.weight_bytes for event in experts),
                sum(each.link_bytes for each in work if each.link_bytes),
            )
        )
    (flops, weights, link), *more = found
    for ep, (own_flops, own_weights, own_link) in zip((4, 8), more, strict=True):
        assert own_flops == pytest.approx(flops)
        assert own_weights == pytest.approx(weights * 2 / ep, rel=0.02)
        assert own_link == pytest.approx(link * 2 * (ep - 1) / ep, rel=0.01)


def test_the_table_says_what_is_predicted() -> None:
    found = list(rows(("mixtral_8x7b",), T))
    assert [(row.machine, row.ep) for row in found] == [("h200", 2), ("h200", 4), ("h200", 8), ("h800", 8)]
    for row in found:
        layer = driver.understand(
            driver.read(EXAMPLES[0].with_name("mixtral_8x7b.eps")), options(row.machine, row.ep, 1)
        )
        plan = driver.plan(layer, "best")
        assert row.taken.seconds == simulate(plan.schedule, layer.cluster, T, graph=row.taken.graph).total
        assert f"| {1e3 * row.taken.seconds:.2f} | {row.serial / row.taken.seconds:.2f}x |" in str(row)
        assert 0 <= row.exposed <= row.transfers <= row.taken.seconds < row.serial
