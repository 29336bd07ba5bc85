"""Kernels that move, weigh and sum rows do what torch does, and write every element."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from epsc.codegen.triton_kernels import scatter_rows, weighted_sum

Load = Callable[[str], Any]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def nan(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens, copies, hidden", [(3, 2, 256), (2, 6, 1288), (4, 1, 8), (0, 6, 64)])
@pytest.mark.parametrize("added", [False, True])
def test_weighted_sum(load: Load, tokens: int, copies: int, hidden: int, dtype: torch.dtype, added: bool) -> None:
    numbers = torch.Generator().manual_seed(tokens + hidden)
    kernels = load(weighted_sum())
    rows = torch.randn(tokens * copies + 1, hidden, generator=numbers).to(dtype)
    place = torch.randperm(tokens * copies, generator=numbers)
    weights = torch.randn(tokens, copies, generator=numbers)
    addend = torch.randn(tokens, hidden, generator=numbers).to(dtype) if added else None
    out = nan(tokens, hidden, dtype=dtype)
    assert kernels.fused_weighted_sum(rows, place, weights, out, addend) is out
    right = (rows[place].float().view(tokens, copies, hidden) * weights.unsqueeze(-1)).sum(1)
    right = right + addend.float() if addend is not None else right
    torch.testing.assert_close(out, right.to(dtype))
    torch.testing.assert_close(kernels.fused_weighted_sum(rows, place, weights, addend=addend), out)


def test_copies_that_were_not_sent_have_no_row(load: Load) -> None:
    kernels = load(weighted_sum(selective=True))
    rows = torch.randn(2, 264).bfloat16()
    place = torch.tensor([1, -1, -1, -1, -1, 0])
    weights = torch.randn(3, 2)
    made = kernels.fused_weighted_sum(rows, place, weights)
    right = torch.stack([rows[1] * weights[0, 0], torch.zeros(264), rows[0] * weights[2, 1]])
    torch.testing.assert_close(made, right.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count, width", [(5, 24), (3, 1288), (0, 64)])
def test_scatter_rows(load: Load, count: int, width: int, dtype: torch.dtype) -> None:
    numbers = torch.Generator().manual_seed(count)
    kernels = load(scatter_rows())
    rows = torch.randn(count, width, generator=numbers).to(dtype)
    index = torch.randperm(count, generator=numbers)
    moved = kernels.scatter_rows(rows, index, nan(count, width, dtype=dtype))
    assert torch.equal(moved[index], rows)
