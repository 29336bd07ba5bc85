"""One program, several plans: which one is taken, and that forward after forward is as the interpreter says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver, plans
from epsc.ir.source import Source
from tests.programs.ranks import Job, Ranks, layer_class, load_program
from tests.programs.test_papers import MESHES, PAPERS

LIMIT = 1e-5
SOON_S = 45
FILE = """
layer moe(x: fp32[tokens, 24]) {
  r    = route(x, experts=8, top_k=3)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 32))
  back = combine(gemm(h, down, 24), r)
  return back + mlp(x, swiglu, 16)
}
cluster c { ep = 2 }
tokens 0 .. 100
schedule decode { use put for sent, back  dedup sent  local_reduce back }
schedule chunks { split sent, h, back by expert_group into 2  run mlp beside sent }
schedule copies { use copy for sent  use put for back  split back by columns into 2 }
schedule serving = decode when tokens <= 8 else chunks when tokens <= 40 else copies
"""


def layer_of(ep: int, text: str = FILE) -> driver.Layer:
    return driver.understand(Source("moe.eps", text), driver.Options({"ep": str(ep)}))


def every_load(ep: int) -> tuple[tuple[tuple[int, ...], ...], dict[str, int]]:
    """Loads in turn, from one plan to another and back, even and not; and how often each plan is due."""
    even = (8, 100, 9, 1, 41, 40, 0, 12, 8, 100)
    loads = [(n,) * ep for n in even]
    loads += [(3, *(100,) * (ep - 1)), (9, *(0,) * (ep - 1)), (*(8,) * (ep - 1), 2), (*(0,) * (ep - 1), 40), (5,) * ep]
    return tuple(loads), {"plan decode": 6, "plan chunks": 5, "plan copies": 4}


@pytest.mark.distributed
@pytest.mark.parametrize("ep", [2, 4])
def test_the_fullest_rank_decides_forward_after_forward(
    ep: int, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    (first, *more), due = every_load(ep)
    job = prepare(layer_of(ep), "serving", first, more=tuple(more), forwards=2 * (1 + len(more)), routing="skewed")
    for result in ranks_of(ep).run(job):
        assert result.error < LIMIT
        assert {name: n for name, n in result.choices.items() if name in due} == {k: 2 * n for k, n in due.items()}


@pytest.mark.distributed
def test_who_is_told_of_the_fullest_rank_does_not_ask(
    ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    for told, plan in ((8, "decode"), (9, "chunks"), (40, "chunks"), (41, "copies")):
        for result in ranks_of(2).run(prepare(layer_of(2), "serving", (8, 3), told=told)):
            assert result.error < LIMIT
            assert result.choices[f"plan {plan}"] == 2


@pytest.mark.distributed
def test_more_tokens_than_the_fullest_rank_is_said_to_have_end_the_wait_of_all(
    ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    ranks = ranks_of(2)
    fine = prepare(layer_of(2), "serving", (5, 8), more=((20, 50), (30, 30)), forwards=6)
    begin = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        ranks.run(prepare(layer_of(2), "serving", (5, 60), told=8))
    assert "ValueError: moe: rank 1 has 60 tokens, and was told that no rank has more than 8" in str(caught.value)
    assert "rank 0 waited in vain for sent.tell of rank 1, which gave up" in str(caught.value)
    assert time.monotonic() - begin < SOON_S
    assert max(result.error for result in ranks.run(fine)) < LIMIT
    with pytest.raises(AssertionError) as caught:
        ranks.run(prepare(layer_of(2), "serving", (101, 101)))
    assert str(caught.value).count("ValueError: moe: 101 tokens, but the plan has room for 100 of each rank") == 2
    assert max(result.error for result in ranks.run(fine)) < LIMIT


def alone(tmp_path: Path) -> object:
    import torch

    path = tmp_path / "alone.py"
    path.write_text(plans.write(plans.plans(layer_of(1), "serving")).text)
    return layer_class(load_program(path))(device="cpu", dtype=torch.float32)


def test_a_graph_holds_one_plan_and_says_which_can_be_one(tmp_path: Path) -> None:
    import torch

    layer = alone(tmp_path)
    with pytest.raises(ValueError, match="the plan chunks reads counts on the host") as caught:
        layer.capture(torch.zeros(20, 24))  # type: ignore[attr-defined]
    assert "only decode, copies can be captured" in str(caught.value)
    with pytest.raises(ValueError, match="and this runs on cpu"):
        layer.capture(torch.zeros(3, 24))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the plan chunks"):
        layer.capture(torch.zeros(3, 24), most=9)  # type: ignore[attr-defined]


def test_the_plans_of_a_program_share_functions_kernels_and_weights(tmp_path: Path) -> None:
    text = plans.write(plans.plans(layer_of(2), "serving")).text
    lines = text.splitlines()
    for head in (
        "def route(",
        "def swiglu(",
        "def triton_route(",
        "class Slots:",
        "WEIGHTS: ",
        "class Moe(nn.Module):",
    ):
        assert sum(line.startswith(head) for line in lines) == 1, head
    for name in ("Decode", "Chunks", "Copies"):
        assert f"class {name}:" in lines
    assert "PLANS = (Decode, Chunks, Copies)  # by load, the least first" in lines
    assert "    9 to 40 tokens    Chunks  the plan chunks" in lines[:40]
    assert "share the weights, and nothing else. Together they keep 58.85 kB of symmetric memory." in lines[:40]
    layer = alone(tmp_path)
    assert [name for name, _ in layer.named_parameters()] == [  # type: ignore[attr-defined]
        *("r_weight", "gate_up", "down", "mlp_gate_up", "mlp_down")
    ]


def test_names_of_schedules_stay_out_of_the_way_of_those_of_the_file() -> None:
    text = FILE.replace("decode", "run").replace("chunks", "moe").replace("copies", "torch").replace("down", "most")
    text = text.replace("x: fp32", "plans: fp32").replace("(x,", "(plans,")
    lines = plans.write(plans.plans(layer_of(2, text), "serving")).text.splitlines()
    assert "PLANS = (Run_2, Moe_2, Torch)  # by load, the least first" in lines
    assert sum(line.startswith("    most_2: Tensor") for line in lines) == 4


@pytest.mark.distributed
def test_transfers_in_two_levels_beside_linear_ones(
    ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    text = FILE.replace("ep = 2", "ep = 4 nodes = 2").replace("tokens <= 8 else chunks", "tokens <= 8 else levels")
    text = text.replace("= decode when", "= chunks when").replace("else copies", "else serial")
    text += "schedule levels { use two_level for sent, back }"
    layer = driver.understand(Source("moe.eps", text), driver.Options({"ep": "4"}))
    job = prepare(layer, "serving", (8, 1, 2, 3), more=((9, 40, 0, 2), (41, 1, 1, 60), (9, 9, 9, 9)), forwards=8)
    for result in ranks_of(4).run(job):
        assert result.error < LIMIT
        assert {n for n in result.choices if n.startswith("plan ")} == {"plan chunks", "plan levels", "plan serial"}


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["comet", "fsmoe", "parm_s2", "read_me", "scmoe", "tutel_two_level"])
def test_all_schedules_of_a_paper_are_one_program(
    name: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    """Of other axes, meshes and transports: each is as right beside the others as alone."""
    text = re.sub(r"^tokens .*$", "tokens 0 .. 40", (PAPERS / f"{name}.eps").read_text(), flags=re.MULTILINE)
    text = re.sub(r"  tokens = \d+", "", text)  # a preset's: one load has one plan
    options = driver.Options(MESHES.get(name, {"ep": "2"}), preset="small")
    named = [decl.name for decl in driver.understand(Source(name, text), options).schedules if not decl.by_load]
    *first, last = dict.fromkeys([*(each for each in named if each != "best"), "serial"])
    limits = [5 * (i + 1) for i in range(len(first))]
    taken = "".join(f"{each} when tokens <= {limit} else " for each, limit in zip(first, limits, strict=True))
    layer = driver.understand(Source(name, f"{text}\nschedule every = {taken}{last}\n"), options)
    count = layer.cluster.ranks
    loads = [tuple((n, 1, 0, n - 3)[:count]) for n in (*limits, 30, 5, 40)]
    job = prepare(layer, "every", loads[0], more=tuple(loads[1:]), forwards=2 * len(loads))
    for result in ranks_of(count).run(job):
        assert result.error < LIMIT
        assert {key for key in result.choices if key.startswith("plan ")} == {f"plan {each}" for each in (*first, last)}
