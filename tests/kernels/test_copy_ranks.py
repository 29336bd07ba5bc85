"""Ranks of copies: counted one after the other, over several blocks, experts without copies, and no tokens."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from epsc.codegen.triton_kernels import copy_ranks

Load = Callable[[str], Any]


def one_by_one(experts: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    seen: Counter[int] = Counter()
    within = torch.empty(experts.numel(), dtype=torch.int32)
    for copy, expert in enumerate(experts.flatten().tolist()):
        within[copy] = seen[expert]
        seen[expert] += 1
    return within.view(experts.shape), torch.tensor([seen[each] for each in range(count)], dtype=torch.int32)


# The last: 3 * 512 copies in 6 blocks of 2 pieces each.
@pytest.mark.parametrize(
    "tokens, copies, experts", [(0, 6, 160), (1, 1, 1), (3, 2, 5), (64, 4, 8), (43, 6, 160), (9, 16, 300), (512, 3, 40)]
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_ranks(load: Load, tokens: int, copies: int, experts: int, dtype: torch.dtype) -> None:
    numbers = torch.Generator().manual_seed(tokens + experts)
    chosen = torch.rand(tokens, experts, generator=numbers).square().topk(min(copies, experts)).indices.to(dtype)
    chosen = chosen[:, :copies]
    within, counts = load(copy_ranks()).copy_ranks(chosen, experts)
    right, wanted = one_by_one(chosen, experts)
    assert within.dtype == counts.dtype == torch.int32
    assert torch.equal(within, right) and torch.equal(counts, wanted)


def test_one_expert_takes_all_over_many_blocks(load: Load) -> None:
    """Blocks are made small: as many of the real size as pass the columns of the table would take minutes here."""
    text = copy_ranks().replace("256), 4096)", "16), 16)")
    kernels = load(text.replace("COPIES=128, COLUMNS=32", "COPIES=8, COLUMNS=4").replace("// 128)", "// 8)"))
    chosen = torch.full((97, 3), 2)
    chosen[::7, 1] = 19
    within, counts = kernels.copy_ranks(chosen, 20)
    right, wanted = one_by_one(chosen, 20)
    assert torch.equal(within, right) and torch.equal(counts, wanted)


def test_into_what_is_given(load: Load) -> None:
    kernels = load(copy_ranks())
    within, counts = torch.full((5, 2), -1, dtype=torch.int32), torch.full((4,), -1, dtype=torch.int32)
    chosen = torch.tensor([[0, 3], [3, 0], [1, 3], [0, 1], [3, 1]])
    assert kernels.copy_ranks(chosen, 4, within, counts)[0] is within
    assert within.tolist() == [[0, 0], [1, 1], [0, 2], [2, 1], [3, 2]]
    assert counts.tolist() == [3, 3, 0, 4]
    kernels.copy_ranks(chosen[:0], 4, within[:0], counts)
    assert counts.tolist() == [0, 0, 0, 0]


def test_a_view_in_another_order(load: Load) -> None:
    chosen = torch.tensor([[0, 1, 0], [2, 1, 1]]).T
    within, counts = load(copy_ranks()).copy_ranks(chosen, 3)
    right, wanted = one_by_one(chosen, 3)
    assert torch.equal(within, right) and torch.equal(counts, wanted)
