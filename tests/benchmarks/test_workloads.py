"""Workloads reach a router as it is: the experts that were asked for are those that it chooses."""

import pytest
import torch

from epsc.bench.loads import WORKLOADS
from epsc.bench.reference import chosen_experts
from epsc.bench.shape import Router
from epsc.bench.workloads import Workloads

ROUTERS = {
    "v2": Router(16, 4, groups=8, top_groups=3),
    "v3": Router(32, 4, score="sigmoid", choice_bias=True, groups=8, top_groups=4, group_by="top2"),
    "mixtral": Router(8, 2),
    "gpt-oss": Router(16, 4, choose="by_logit", bias=True),
}
HIDDEN, TOKENS, WORLD = 64, 96, 2


def workloads(router: Router, dtype: torch.dtype) -> Workloads:
    made = torch.Generator().manual_seed(5)
    raw = {
        "r.weight": torch.randn(router.experts, HIDDEN, generator=made).mul(HIDDEN**-0.5).to(dtype),
        "r.bias": torch.randn(router.experts, generator=made).to(dtype),
        "r.choice_bias": torch.randn(router.experts, generator=made).mul(0.02).to(dtype),
    }
    return Workloads(router, lambda name: raw[name], 1, WORLD, dtype)


def rows(made: Workloads, workload: str) -> tuple[torch.Tensor, bool]:
    """Rows per expert that the router chooses, and whether they are those that were wanted."""
    x, wanted = made.make(workload, TOKENS)
    chosen = chosen_experts(made.router, x.float(), lambda name: made.raw(name).float())[1]
    assert chosen.sum(-1).tolist() == [made.router.top_k] * TOKENS
    same = wanted is None or torch.equal(torch.zeros_like(chosen).scatter_(1, wanted, True), chosen)
    return chosen.sum(0), same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_the_router_chooses_what_was_wanted(router: Router, dtype: torch.dtype) -> None:
    made, half = workloads(router, dtype), router.experts // WORLD
    found = {}
    for workload in WORKLOADS:
        found[workload], same = rows(made, workload)
        assert same, workload
    assert found["hot-expert"][0] == TOKENS
    assert found["hot-expert"][1:].max() < TOKENS
    assert found["hot-rank"][half:].sum() == 0
    assert found["empty-rank"][half:].sum() == 0
    assert found["balanced"].max() - found["balanced"].min() <= 2
    most, least = found["zipf"].max(), found["zipf"].min()
    assert most > 3 * least + 3
    assert found["zipf"].argmax() == made.popularity[0]


def test_bursts_come_after_small_loads() -> None:
    made = workloads(ROUTERS["mixtral"], torch.float32)
    assert made.sizes("burst", 96, 5) == [12, 12, 12, 96, 12]
    assert made.sizes("random", 96, 2) == [96, 96]


def test_what_came_out_is_counted_over_all_ranks() -> None:
    made = workloads(ROUTERS["mixtral"], torch.float32)
    x, wanted = made.make("hot-rank", TOKENS)
    asked = torch.zeros_like(wanted) if wanted is not None else None  # what nobody chose
    found = made.achieved([(x, wanted), (x, asked)], lambda value: [value, value])
    assert found.per_rank == (0, 2.0 * TOKENS, 4 * TOKENS)
    assert found.per_expert[2] >= found.per_expert[1] == 4 * TOKENS / 8
    assert found.as_wanted == 0.5


def test_no_tokens() -> None:
    made = workloads(ROUTERS["v2"], torch.float32)
    for workload in WORKLOADS:
        assert made.make(workload, 0)[0].shape == (0, HIDDEN)
