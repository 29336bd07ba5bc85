"""The persistent product over experts: uneven experts, experts without rows, tails in every dimension."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch

from epsc.codegen.triton_kernels import Tile, expert_gemm, tiles
from epsc.interpret.arithmetic import activation
from epsc.ir.attrs import Act, ActAttrs

Load = Callable[[str], Any]
SMALL = Tile(16, 32, 16, 4, 1, 2)
SWIGLU = ActAttrs(Act.SWIGLU)
COUNTS = ([5, 0, 40, 16], [0, 0, 0, 1], [32, 16, 0, 0], [0, 0, 0, 0])


def problem(counts: list[int], wide: int, deep: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    numbers = torch.Generator().manual_seed(sum(counts) + wide)
    rows = torch.randn(sum(counts) + 3, deep, generator=numbers).to(dtype)
    weight = (torch.randn(len(counts), wide, deep, generator=numbers) / deep**0.5).to(dtype)
    return rows, weight, torch.tensor(list(accumulate(counts)), dtype=torch.int32)


def right(rows: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
    parts = rows[: sum(counts)].float().split(counts)
    return torch.cat([part @ each.float().T for part, each in zip(parts, weight, strict=True)])


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_plain(load: Load, counts: list[int], dtype: torch.dtype) -> None:
    kernels = load(tiles() + expert_gemm("gemm"))
    rows, weight, ends = problem(counts, 40, 24, dtype)
    out = torch.full((len(rows), 40), torch.nan, dtype=rows.dtype)
    assert kernels.gemm(rows, weight, ends, out, 3, SMALL) is out
    torch.testing.assert_close(out[: sum(counts)], right(rows, weight, counts).to(rows.dtype))
    assert out[sum(counts) :].isnan().all()


def test_no_rows_are_no_launch(load: Load) -> None:
    kernels = load(tiles() + expert_gemm("gemm"))
    ends = torch.zeros(4, dtype=torch.int32)
    assert kernels.gemm(torch.empty(0, 24), torch.empty(4, 40, 24), ends, torch.empty(0, 40)).shape == (0, 40)


@pytest.mark.parametrize(("expected", "height"), [(0, 128), (10, 64), (512, 128)])
def test_the_tile_is_chosen_by_the_rows_that_are_expected(
    load: Load, monkeypatch: pytest.MonkeyPatch, expected: int, height: int
) -> None:
    """There may be room for far more rows than arrive: how many do is known on the device only."""
    kernels = load(tiles() + expert_gemm("gemm"))
    heights: list[int] = []
    find = kernels.row_tiles
    monkeypatch.setattr(kernels, "row_tiles", lambda ends, rows, each: heights.append(each) or find(ends, rows, each))
    rows, weight, _ = problem([1500], 16, 16, torch.float16)
    weight, ends = weight.expand(2, -1, -1).contiguous(), torch.tensor([4, 10], dtype=torch.int32)
    out = torch.full((len(rows), 16), torch.nan, dtype=rows.dtype)
    kernels.gemm(rows, weight, ends, out, expected=expected)
    assert heights == [height]
    torch.testing.assert_close(out[:10], right(rows, weight, [4, 6]).to(rows.dtype))
    assert out[10:].isnan().all()


@pytest.mark.parametrize("counts", COUNTS[:2], ids=str)
@pytest.mark.parametrize(
    "attrs", [SWIGLU, ActAttrs(Act.SWIGLU, 0.7, 1.702, 1.0, interleaved=True), ActAttrs(Act.GEGLU)], ids=str
)
def test_activation_in_the_epilogue(load: Load, counts: list[int], attrs: ActAttrs) -> None:
    kernels = load(tiles() + expert_gemm("gemm", attrs))
    rows, weight, ends = problem(counts, 2 * 40, 24, torch.bfloat16)
    out = torch.full((len(rows), 40), torch.nan, dtype=rows.dtype)
    kernels.gemm(rows, weight, ends, out, 2, SMALL)
    wanted = activation(attrs, right(rows, weight, counts)).to(rows.dtype)
    torch.testing.assert_close(out[: sum(counts)], wanted)
    assert out[sum(counts) :].isnan().all()


@pytest.mark.parametrize("counts", [[7, 0, 130, 1, 0], [0] * 7 + [40] + [0] * 3], ids=str)
def test_row_tiles(load: Load, counts: list[int]) -> None:
    kernels = load(tiles())
    ends = list(accumulate(counts))
    table = kernels.row_tiles(torch.tensor(ends, dtype=torch.int32), sum(counts), 16)
    starts = [end - count for end, count in zip(ends, counts, strict=True)]
    wanted = [
        [first, end, expert, (first - start) // 16, -(-(end - start) // 16)]
        for expert, (start, end) in enumerate(zip(starts, ends, strict=True))
        for first in range(start, end, 16)
    ]
    assert table[0, 0] == len(wanted)
    assert table[1 : 1 + len(wanted), :5].tolist() == wanted
