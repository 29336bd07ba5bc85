"""The persistent product over experts: uneven experts, experts without rows, tails in every dimension."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch

from epsc.codegen.triton_expert_gemm import expert_gemm
from epsc.codegen.triton_kernels import tiles
from epsc.interpret.arithmetic import activation
from epsc.ir.attrs import Act, ActAttrs
from epsc.machine.tiles import Tile

Load = Callable[[str], Any]
SMALL = Tile(16, 32, 16, 4, 1, 2)
ENDED_LOW = Tile(16, 32, 16, 4, 1, 2, 8)
SWIGLU = ActAttrs(Act.SWIGLU)
SOFTCAPPED = ActAttrs(Act.SWIGLU, gate_softcap=0.8, up_softcap=2.0)
COUNTS = ([5, 0, 40, 16], [0, 0, 0, 1], [32, 16, 0, 0], [0, 0, 0, 0])
LOW_COUNTS = ([100, 17, 33, 60], [8, 8, 3, 0], [9, 24, 40, 0], [16, 0, 9, 32])
"""Experts that end in low tiles and others, low tiles only, and none."""


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


@pytest.mark.parametrize("tile", [SMALL, ENDED_LOW], ids=str)
@pytest.mark.parametrize("attrs", [None, SWIGLU], ids=str)
def test_a_group_of_experts_among_all_rows(load: Load, attrs: ActAttrs | None, tile: Any) -> None:
    """Its rows begin where those of the expert before it end, and no other row is touched."""
    kernels = load(tiles() + expert_gemm("gemm", attrs))
    counts = [7, 0, 41, 1, 9]
    rows, weight, ends = problem(counts, 80, 24, torch.float32)
    wanted = right(rows, weight, counts)
    out = torch.full((len(rows), 40 if attrs else 80), torch.nan)
    for low, high in ((2, 5), (0, 2)):
        before = out.clone()
        kernels.gemm(rows, weight[low:high], ends[low:high], out, 2, tile, inside=low > 0)
        start, stop = sum(counts[:low]), sum(counts[:high])
        assert not out[start:stop].isnan().any()
        out_of_group = torch.cat((out[:start], out[stop:])), torch.cat((before[:start], before[stop:]))
        torch.testing.assert_close(*out_of_group, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(out[: sum(counts)], activation(attrs, wanted) if attrs else wanted)


def test_columns_of_a_weight(load: Load) -> None:
    """Experts are farther apart than such a weight is large."""
    kernels = load(tiles() + expert_gemm("gemm"))
    counts = [7, 0, 41]
    rows, weight, ends = problem(counts, 80, 24, torch.float32)
    for first, stop in ((0, 32), (32, 80)):
        out = torch.full((len(rows), stop - first), torch.nan)
        kernels.gemm(rows, weight[:, first:stop], ends, out, 2, SMALL)
        torch.testing.assert_close(out[: sum(counts)], right(rows, weight, counts)[:, first:stop])


@pytest.mark.parametrize("counts", LOW_COUNTS, ids=str)
@pytest.mark.parametrize("attrs", [None, SWIGLU, ActAttrs(Act.SWIGLU, 7.0, 1.702, 1.0, interleaved=True)], ids=str)
def test_low_tiles_end_experts(load: Load, counts: list[int], attrs: ActAttrs | None) -> None:
    """However many programs share them."""
    kernels = load(tiles() + expert_gemm("gemm", attrs))
    rows, weight, ends = problem(counts, 80, 24, torch.float32)
    wanted = right(rows, weight, counts)
    for programs in (1, 2, 3, 5):
        out = torch.full((len(rows), 40 if attrs else 80), torch.nan)
        kernels.gemm(rows, weight, ends, out, programs, ENDED_LOW)
        torch.testing.assert_close(out[: sum(counts)], activation(attrs, wanted) if attrs else wanted)
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
    monkeypatch.setattr(kernels, "row_tiles", lambda *args: heights.append(args[2]) or find(*args))
    rows, weight, _ = problem([1500], 16, 16, torch.float16)
    weight, ends = weight.expand(2, -1, -1).contiguous(), torch.tensor([4, 10], dtype=torch.int32)
    out = torch.full((len(rows), 16), torch.nan, dtype=rows.dtype)
    kernels.gemm(rows, weight, ends, out, expected=expected)
    assert heights == [height]
    torch.testing.assert_close(out[:10], right(rows, weight, [4, 6]).to(rows.dtype))
    assert out[10:].isnan().all()


def test_the_nearest_shape_says_the_tile(load: Load) -> None:
    """Weights of a cut by columns have half the columns of those that were measured, or fewer."""
    narrow, wide = {0: Tile(64), 9: Tile(128)}, {0: Tile(64, 128)}
    kernels = load(tiles() + expert_gemm("gemm", None, {(1024, 512): narrow, (4096, 512): wide}))
    found = [
        tuple(kernels.tile_for(kernels.GEMM_TILES, *at)[:2]) for at in ((512, 512, 8), (1024, 512, 9), (3000, 600, 50))
    ]
    assert found == [(64, 256), (128, 256), (64, 128)]


@pytest.mark.parametrize("counts", COUNTS[:2], ids=str)
@pytest.mark.parametrize(
    "attrs",
    [SWIGLU, ActAttrs(Act.SWIGLU, 0.7, 1.702, 1.0, interleaved=True), ActAttrs(Act.GEGLU_TANH), SOFTCAPPED],
    ids=str,
)
def test_activation_in_the_epilogue(load: Load, counts: list[int], attrs: ActAttrs) -> None:
    kernels = load(tiles() + expert_gemm("gemm", attrs))
    rows, weight, ends = problem(counts, 2 * 40, 24, torch.bfloat16)
    out = torch.full((len(rows), 40), torch.nan, dtype=rows.dtype)
    kernels.gemm(rows, weight, ends, out, 2, SMALL)
    wanted = activation(attrs, right(rows, weight, counts)).to(rows.dtype)
    torch.testing.assert_close(out[: sum(counts)], wanted)
    assert out[sum(counts) :].isnan().all()


@pytest.mark.parametrize("low", [0, 8])
@pytest.mark.parametrize(
    "attrs", [None, SWIGLU, ActAttrs(Act.SWIGLU, 7.0, 1.702, 1.0, interleaved=True)], ids=["plain", "swiglu", "pairs"]
)
def test_biases_and_weights_that_lie_the_other_way(load: Load, attrs: ActAttrs | None, low: int) -> None:
    """Each or both, by one kernel; an output as wide as no number of tiles."""
    kernels = load(tiles() + expert_gemm("gemm", attrs, bias=True, turned=True))
    counts, wide = [5, 0, 40, 9], 2 * 40
    rows, weight, ends = problem(counts, wide, 24, torch.bfloat16)
    bias = torch.randn(len(counts), wide).to(rows.dtype)
    plain = right(rows, weight, counts)
    added = plain + bias.float().repeat_interleave(torch.tensor(counts), 0)
    lying = weight.mT.contiguous().mT
    tile = Tile(16, 32, 16, 4, 1, 2, low)
    for given, own, wanted in ((weight, bias, added), (lying, bias, added), (lying, None, plain)):
        out = torch.full((len(rows), 40 if attrs else wide), torch.nan, dtype=rows.dtype)
        kernels.gemm(rows, given, ends, out, 2, tile, bias=own)
        made = activation(attrs, wanted) if attrs else wanted
        torch.testing.assert_close(out[: sum(counts)], made.to(rows.dtype))
        assert out[sum(counts) :].isnan().all()


@pytest.mark.parametrize("low", [0, 8])
@pytest.mark.parametrize("counts", [[7, 0, 130, 1, 0], [0] * 7 + [40] + [0] * 3, [8, 9, 16, 24]], ids=str)
def test_row_tiles(load: Load, counts: list[int], low: int) -> None:
    """An expert ends in a low tile where that holds the rest of its rows, and else in a tall one."""
    kernels = load(tiles())
    ends = list(accumulate(counts))
    table, low_table = kernels.row_tiles(torch.tensor(ends, dtype=torch.int32), sum(counts), 16, low)
    tall: list[list[int]] = []
    short: list[list[int]] = []
    for expert, (count, end) in enumerate(zip(counts, ends, strict=True)):
        start = end - count
        is_low = 0 < count % 16 <= low
        of = count // 16 + (count % 16 > low)
        tall += [[start + 16 * i, end, expert, i, of] for i in range(of)]
        short += [[start + 16 * of, end, expert, 0, 1]] if is_low else []
    assert table[0, 0] == len(tall)
    assert table[1 : 1 + len(tall), :5].tolist() == tall
    if low:
        assert table[0, 1] == len(short)
        assert low_table[: len(short), :5].tolist() == short


SHARES = """
@jit
def shares_kernel(found, tall, low, programs):
    few, waves, early = shared(tall, low, tl.program_id(0), programs)
    tl.store(found + tl.program_id(0) * 3, few)
    tl.store(found + tl.program_id(0) * 3 + 1, waves)
    tl.store(found + tl.program_id(0) * 3 + 2, early)


"""


@pytest.mark.parametrize(("tall", "low"), [(0, 0), (40, 0), (0, 40), (1, 1), (3, 50), (400, 48), (4320, 480)])
def test_nobody_works_much_longer_than_others(load: Load, tall: int, low: int, programs: int = 12) -> None:
    """A low tile takes 5/8 of the time of a tall one."""
    kernels = load(tiles() + SHARES)
    found = torch.zeros(programs, 3, dtype=torch.int32)
    kernels.shares_kernel[(programs,)](found, tall, low, programs)
    few, waves, early = found.T.tolist()
    assert sum(waves) == low and not any(waves[few[0] :])
    some = programs - few[0]
    assert early[0] * some <= tall
    late = tall - early[0] * some
    most = max(waves[0] * 5 / 8 + -(-late // programs) if few[0] else 0, early[0] + -(-late // programs))
    assert most <= (tall + low * 5 / 8) / programs + 2
