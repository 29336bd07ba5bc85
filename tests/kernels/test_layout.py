"""Layouts by kernels are those by sorting, in programs that lay out rows by expert, by token, and both."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from epsc.driver import plan, understand
from epsc.ir.source import Source
from tests.codegen.layers import program_of
from tests.programs.ranks import load_program

TEXT = """
layer two(x: bf16[tokens, 16]) {
  r      = route(x, experts=12, top_k=3)
  first  = dispatch(x, r)
  y      = combine(gemm(swiglu(gemm(first, up, 2*8)), down, 16), r)
  s      = route(y, experts=12, top_k=2)
  second = dispatch(y, s)
  z      = combine(gemm(swiglu(gemm(second, wider, 2*8)), narrow, 16), s)
  return z
}
cluster here { ep = 4 }
tokens 4 .. 8
schedule by_expert { split first, y, second, z by expert_group into 3 }
schedule by_token { split first, y, second, z by tokens into 4 }
schedule both {
  split first, y by expert_group into 2
  split second, z by tokens into 3
}
"""
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(interpreted: None, tmp_path: Path) -> Load:
    """The program of a schedule as a module. Triton reads the source of a kernel, so it must be a file."""

    def load(schedule: str) -> ModuleType:
        path = tmp_path / f"{schedule}.py"
        path.write_text(program_of(plan(understand(Source("two.eps", TEXT)), schedule)).text)
        return load_program(path)

    return load


@pytest.mark.parametrize(
    "schedule, kind, pieces",
    [
        ("by_expert", "ByExpert", 1),
        ("by_expert", "ByExpert", 3),
        ("by_token", "ByToken", 4),
        ("both", "ByExpert", 2),
        ("both", "ByToken", 3),
    ],
)
def test_layouts(load: Load, schedule: str, kind: str, pieces: int) -> None:
    program = load(schedule)
    layout = getattr(program, kind)(3, pieces, (pieces,), torch.device("cpu"))
    for tokens in (0, 1, 2, 5, 150):
        numbers = torch.Generator().manual_seed(tokens)
        experts = torch.rand(tokens, 12, generator=numbers).square().topk(3, dim=-1).indices
        sorted_, ranked = program.sort_rows(layout, experts), program.rank_rows(layout, experts)
        for right, made in zip(sorted_, ranked, strict=True):
            assert made.dtype == right.dtype and torch.equal(made, right)


def test_all_to_one_expert_and_a_routing_in_another_order(load: Load) -> None:
    program = load("both")
    for layout in (program.ByExpert(3, 2, (2,), torch.device("cpu")), program.ByToken(3, 3, (3,), torch.device("cpu"))):
        for experts in (torch.full((50, 1), 7), torch.stack([torch.arange(12), torch.arange(12).flip(0)]).T):
            sorted_, ranked = program.sort_rows(layout, experts), program.rank_rows(layout, experts)
            assert all(torch.equal(right, made) for right, made in zip(sorted_, ranked, strict=True))


def test_programs_hold_only_what_their_layouts_need(load: Load) -> None:
    texts = {name: Path(str(load(name).__file__)).read_text() for name in ("by_expert", "by_token", "both")}
    assert {name: "def token_runs" in text for name, text in texts.items()} == {
        "by_expert": False,
        "by_token": True,
        "both": True,
    }
    assert {name: "isinstance(layout, ByToken)" in text for name, text in texts.items()} == {
        "by_expert": False,
        "by_token": False,
        "both": True,
    }
