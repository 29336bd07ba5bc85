"""Schedules of papers: they run, equal the interpreter, and have the structure that their paper describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver
from epsc.ir.dims import Axis
from epsc.ir.schedule import Schedule
from epsc.proof.happens import Happens
from tests.programs.ranks import Job, Ranks

PAPERS = Path(__file__).parents[2] / "examples" / "papers"
LIMIT = 1e-5


def planned(name: str, **defines: str) -> Schedule:
    layer = driver.understand(driver.read(PAPERS / f"{name}.eps"), driver.Options(defines))
    return driver.plan(layer).schedule


@pytest.mark.distributed
@pytest.mark.parametrize("path", sorted(PAPERS.glob("*.eps")), ids=lambda path: path.stem)
def test_equals_the_interpreter(path: Path, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    layer = driver.understand(driver.read(path), driver.Options({"ep": "2"}, preset="small"))
    for decl in layer.schedules:
        for seed, tokens in enumerate(((24, 24), (0, 7), (1, 0))):
            results = ranks_of(2).run(prepare(layer, decl.name, tokens, seed=seed))
            assert max(result.error for result in results) < LIMIT, f"{decl.name}, tokens {tokens}"


def test_eps_moe() -> None:
    """dispatch[i] and combine[i] by expert group on 16 SMs, in order; products of the group on 116; one sum."""
    made = planned("eps_moe")
    for node in ("sent.all2all", "back.all2all"):
        steps = [step for step in made.steps if step.node == node]
        assert [(step.cuts[0].axis, step.cuts[0].index) for step in steps] == [(Axis.EXPERT_GROUP, i) for i in range(5)]
        assert {(step.sms, step.lane) for step in steps} == {(16, "transfer")}
    gemms = [step for step in made.steps if step.node in ("gate_up", "down")]
    assert {step.sms for step in gemms} == {116}
    assert {str(step.impl) for step in gemms} == {"grouped when mean_rows < 2048 else dense"}
    happens = Happens.of(made)
    for i in range(5):
        chunk = f"[expert_group:{i}/5]"
        assert happens.before(f"sent.all2all{chunk}", f"gate_up{chunk}")
        assert happens.before(f"down{chunk}", f"back.all2all{chunk}")
    assert happens.beside("gate_up[expert_group:0/5]", "sent.all2all[expert_group:2/5]")
    assert happens.beside("gate_up[expert_group:3/5]", "back.all2all[expert_group:1/5]")


def test_tutel() -> None:
    """Pieces of the capacity; all dispatches are issued before any combine; one sum at the end."""
    made = planned("tutel")
    place = {step.key: i for i, step in enumerate(made.steps)}
    dispatches = [place[f"sent.all2all[tokens:{i}/4]"] for i in range(4)]
    combines = [place[f"back.all2all[tokens:{i}/4]"] for i in range(4)]
    assert dispatches == sorted(dispatches) and combines == sorted(combines)
    assert max(dispatches) < min(combines)
    assert {made.step[made.steps[i].key].lane for i in (*dispatches, *combines)} == {"transfer"}
    assert Happens.of(made).beside("h[tokens:0/4]", "sent.all2all[tokens:3/4]")


def test_read_me() -> None:
    """No router in the layer: rows are on their way before anything else, and nothing is waited for to send them."""
    made = planned("read_me")
    assert not [node for node in made.graph.nodes if node.kind == "route"]
    assert not made.step["sent.copy"].waits
    assert Happens.of(made).beside("sent.copy", "sent.tell")
    assert Happens.of(made).beside("sent.copy", "mlp.gate_up")


def test_ppmoe() -> None:
    """No all2all: rows of local experts are selected where they are, put into zeros, and one all_reduce sums them."""
    made = planned("ppmoe")
    assert [step.key for step in made.steps if step.comm] == ["y"] and made.graph.node["y"].kind == "all_reduce"
    assert not [step for step in made.steps if made.node(step).info.one_sided]
    kinds = [made.node(step).kind for step in made.steps]
    wanted = ["route", "own_rows", "pick_rows", "expert_gemm_act", "expert_gemm", "place_rows", "all_reduce"]
    assert [kind for kind in kinds if kind in wanted] == wanted
    assert made.same_tokens == ((1, 8),)


def test_memtl() -> None:
    """Nothing is sent; heads run beside each other, behind the trunk."""
    made = planned("memtl")
    assert not [step for step in made.steps if step.comm or made.node(step).info.one_sided]
    happens = Happens.of(made)
    assert all(happens.before("trunk", f"{head}_up") for head in ("one", "two", "three"))
    assert happens.beside("one_up", "two_up")
