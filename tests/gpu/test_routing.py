"""Kernels that route and lay out rows, compiled and run on a GPU, do what torch does there."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from epsc.codegen.triton_kernels import copy_ranks, head, ordering, route
from epsc.ir.attrs import Choose, GroupBy, RouteAttrs, Score
from tests.kernels.conftest import IMPORTS
from tests.kernels.test_route import check, distinct, routers
from tests.programs.ranks import load_program

pytestmark = pytest.mark.gpu
Load = Callable[[str], ModuleType]
ROUTERS = [
    RouteAttrs(8, 2, renorm=True),
    RouteAttrs(60, 6, groups=6, top_groups=3, scale=16.0),
    RouteAttrs(64, 8, Score.SIGMOID, choice_bias=True, groups=8, top_groups=4, group_by=GroupBy.TOP2, renorm=True),
    RouteAttrs(128, 4, choose=Choose.BY_LOGIT, bias=True),
    RouteAttrs(512, 10, renorm=True),
    RouteAttrs(1024, 16),
]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The module of a kernel's text. Triton reads the source of a kernel, so it must be a file."""

    def load(text: str) -> ModuleType:
        path = tmp_path / "routing.py"
        path.write_text(IMPORTS + head() + text)
        return load_program(path)

    return load


@pytest.mark.parametrize("a", ROUTERS, ids=lambda a: f"{a.top_k} of {a.experts}")
@pytest.mark.parametrize("tokens", [1, 33])
def test_routers(load: Load, a: RouteAttrs, tokens: int) -> None:
    check(routers(load, a), a, [each.cuda() for each in distinct(a, tokens, 0)])


def test_router_on_nan(load: Load) -> None:
    a = ROUTERS[2]
    made = load(f"def router_logits(x, weight):\n    return x\n\n\n{ordering()}{route('by_triton', a)}")
    x = torch.full((9, a.experts), torch.nan, device="cuda")
    experts, weights = made.by_triton(x, x, torch.zeros(a.experts, device="cuda"))
    assert experts.min() >= 0 and experts.max() < a.experts and weights.isnan().all()


@pytest.mark.parametrize("tokens, experts, top_k", [(1, 8, 2), (1024, 256, 8), (40000, 160, 6), (7, 4096, 3)])
def test_copy_ranks(load: Load, tokens: int, experts: int, top_k: int) -> None:
    """A stable sort puts the copies for an expert into a row, in their order."""
    numbers = torch.Generator("cuda").manual_seed(tokens)
    chosen = torch.randint(experts, (tokens, top_k), device="cuda", generator=numbers)
    within, counts = load(copy_ranks()).copy_ranks(chosen, experts)
    wanted = torch.bincount(chosen.flatten(), minlength=experts)
    order = chosen.flatten().argsort(stable=True)
    starts = torch.repeat_interleave(wanted.cumsum(0) - wanted, wanted)
    assert torch.equal(counts.long(), wanted)
    assert torch.equal(within.flatten()[order].long(), torch.arange(len(order), device="cuda") - starts)
