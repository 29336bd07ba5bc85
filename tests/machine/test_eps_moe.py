"""EPS-MoE's table of one layer on 4 x H800 (arXiv 2410.12247), simulated with a profile fitted to a part of it.

docs/eps-moe.md tells which figures the profile `eps_moe` is taken from; the others are predictions.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from epsc import driver
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from epsc.machine.cluster import Cluster
from epsc.machine.simulate import simulate
from tests.machine.schedules import synced

ROWS = (3072, 1024, 256)
"""Rows per expert."""
PAPER = {
    # (groups, implementation, overlap, SMs of the product): ms for 1536 columns, then for 15360
    (1, "grouped", False, 0): ((5.698, 2.120, 1.032), (32.469, 8.996, 2.349)),
    (5, "grouped", True, 0): ((4.837, 1.790, 0.683), (25.979, 8.333, 2.452)),
    (5, "grouped", True, 116): ((4.248, 1.568, 0.636), (26.270, 8.808, 2.461)),
    (5, "dense", True, 0): ((4.299, 1.714, 0.798), (20.203, 7.128, 2.598)),
    (20, "dense", True, 0): ((4.855, 2.133, 1.016), (20.599, 7.043, 2.655)),
}
FITTED = {
    *(((1, "grouped", False, 0), n, rows) for n in (1536, 15360) for rows in ROWS),
    *(((5, "dense", True, 0), 15360, rows) for rows in ROWS),
    ((5, "grouped", True, 0), 1536, 3072),
    ((5, "grouped", True, 116), 1536, 3072),
}


def layer(groups: int, impl: str, overlap: bool, sms: int, out: int) -> Schedule:
    """An all2all of rows of 5120 for 20 experts on each of 4 ranks, and one product of them."""
    of = "experts=80, top_k=1"
    graph = f"""graph one(x: bf16[tokens, 5120]) -> y {{
  param w: bf16[80, {out}, 5120] sharded ep
  sent.all2all = all2all(x; direction=dispatch, {of}) of sent : bf16[rows(sent.all2all), 5120]
  y = expert_gemm(sent.all2all; experts=80, out={out}) using w of y : bf16[rows(sent.all2all), {out}]
}}"""
    comm = "comm" if overlap else "comp"
    limit = f"; sms {sms}" if sms else ""
    steps = []
    cuts = [f"[expert_group:{i}/{groups}]" if groups > 1 else "" for i in range(groups)]
    for cut in cuts:
        own = "; sms 16" if overlap else ""
        steps.append(f"  step sent.all2all{cut} = nccl; on {comm}; via ep{own}; reads x; writes sent.all2all{cut}")
    for cut in cuts:
        steps.append(f"  step y{cut} = {impl}; on comp{limit}; reads sent.all2all{cut}; writes y{cut}")
    lanes = ["  lane comp: compute priority 0", *(["  lane comm: transfer priority -1"] if overlap else [])]
    return synced(
        Schedule.parse("\n".join([graph, "schedule one: ep 4, sms 132, stage ordered {", *lanes, *steps, "}"]))
    )


def predicted(plan: tuple[int, str, bool, int], out: int, rows: int) -> float:
    cluster = Cluster.make("paper", "h800", 4, profile="eps_moe")
    return simulate(layer(*plan, out), cluster, rows * 20).total * 1e3


def table() -> dict[tuple[tuple[int, str, bool, int], int, int], tuple[float, float]]:
    """(plan, columns, rows per expert) -> published and predicted milliseconds."""
    return {
        (plan, out, rows): (ms, predicted(plan, out, rows))
        for plan, both in PAPER.items()
        for out, row in zip((1536, 15360), both, strict=True)
        for rows, ms in zip(ROWS, row, strict=True)
    }


def test_what_was_not_fitted_is_predicted() -> None:
    errors = [abs(said / ms - 1) for key, (ms, said) in table().items() if key not in FITTED]
    assert len(errors) == 19
    assert median(errors) < 0.13
    assert max(errors) < 0.35  # the page tells which, and why


def best(out: int, rows: int) -> tuple[int, str, bool, int]:
    plans = [(n, impl, n > 1, sms) for n in (1, 2, 4, 5, 10, 20) for impl in ("grouped", "dense") for sms in (0, 116)]
    return min((plan for plan in plans if plan[0] > 1 or not plan[3]), key=lambda plan: predicted(plan, out, rows))


@pytest.mark.parametrize("rows", [1024, 1700, 2048, 3072])
def test_about_five_groups_are_best_for_narrow_experts(rows: int) -> None:
    on_116 = {groups: predicted((groups, "grouped", True, 116), 1536, rows) for groups in (2, 4, 5, 10, 20)}
    assert on_116[5] < 1.03 * min(on_116.values())
    assert min(on_116[2], on_116[20]) > 1.02 * on_116[5]


def test_the_cap_helps_narrow_experts_and_not_wide_ones() -> None:
    narrow, wide = ([predicted((5, "grouped", True, sms), out, 3072) for sms in (0, 116)] for out in (1536, 15360))
    assert narrow[1] < narrow[0]
    assert wide[1] > wide[0]


def test_grouped_for_few_rows_and_dense_for_many() -> None:
    assert best(1536, 256)[1] == best(15360, 256)[1] == "grouped"
    assert best(1536, 4096)[1] == best(15360, 4096)[1] == "dense"
    assert best(1536, 2048)[1] == "grouped"
    assert best(15360, 1024)[1] == "dense"


def whole(tokens: int) -> float:
    """How many times as long DeepSeek-V2's layer takes serially by grouped products as in 5 groups, on 8 x H800."""
    path = Path(__file__).parents[2] / "examples" / "deepseek_v2.eps"
    text = path.read_text(encoding="utf-8") + "\nschedule plain { use grouped for gate_up, down }\n"
    options = driver.Options({"ep": "8", "device": "h800", "tokens": str(tokens)}, profile="eps_moe")
    made = driver.understand(Source(str(path), text), options)
    plain, eps = (simulate(driver.plan(made, name).schedule, made.cluster, tokens).total for name in ("plain", "eps"))
    return plain / eps


@pytest.mark.parametrize(("tokens", "gain"), [(2048, 1.18), (4096, 1.20), (8192, 1.39)])
def test_the_whole_layer_gains_what_the_page_says(tokens: int, gain: float) -> None:
    assert whole(tokens) == pytest.approx(gain, abs=0.05)


if __name__ == "__main__":
    for (plan, out, rows), (ms, said) in table().items():
        mark = "fitted" if (plan, out, rows) in FITTED else ""
        print(plan, out, rows, f"{ms:.3f} {said:.3f} {said / ms - 1:+.0%}", mark)
    for tokens in (2048, 4096, 8192):
        print(f"the whole layer, {tokens} tokens per rank: {whole(tokens) - 1:+.0%}")
