"""The product that stores its rows at home: its kernels against torch, all ranks in one process; its stores in PTX."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from epsc import driver
from epsc.codegen.triton_expert_gemm import expert_gemm
from epsc.codegen.triton_kernels import head, tiles
from epsc.ir.source import Source
from tests.kernels.conftest import IMPORTS
from tests.kernels.test_one_sided_copies import EP, EXPERTS, GUARD, HIDDEN, TOP_K, Ranks
from tests.programs.ranks import load_program

LAYER = """
layer moe(x: bf16[tokens, {hidden}]) {{
  r    = route(x, experts={experts}, top_k={top_k}, score=softmax)
  sent = dispatch(x, r)
  return combine(gemm(sent, up, {hidden}{bias}), r)
}}
cluster c {{ ep = {ep} }}
tokens 1 .. 6
schedule direct {{
  use put for sent
  use direct for combine
}}
"""


@pytest.fixture
def program(request: pytest.FixtureRequest, tmp_path: Path, interpreted: None) -> ModuleType:
    bias = ", bias=true" if getattr(request, "param", False) else ""
    text = LAYER.format(hidden=HIDDEN, experts=EXPERTS, top_k=TOP_K, ep=EP, bias=bias)
    file = tmp_path / "moe_direct.py"
    file.write_text(driver.write(driver.plan(driver.understand(Source("moe.eps", text)), "direct")).text)
    return load_program(str(file))


def brought_home(program: ModuleType, ranks: Ranks, kernels: bool, low: int, bias: bool) -> list[torch.Tensor]:
    """What all ranks find at home, NaN where nobody wrote."""
    local = EXPERTS // EP
    for own, (place, ends, rows) in zip(ranks.slots, ranks.dispatch(), strict=True):
        numbers = torch.Generator().manual_seed(own.rank)
        weight = torch.randn(local, HIDDEN, HIDDEN, generator=numbers)
        added = torch.randn(local, HIDDEN, generator=numbers)
        bound = rows[:-GUARD] if not own.straight else rows[: own.rows]
        if kernels:
            more: dict[str, Any] = {"bias": added} if bias else {}
            at = program.homes(own, place, rows.dtype)
            program.direct_product(bound, weight, ends, at, 3, program.Tile(16, 32, 16, 4, 1, 2, low), **more)
            continue
        counts = ends.diff(prepend=ends.new_zeros(1))
        which = torch.arange(local).repeat_interleave(counts)
        made = torch.einsum("ri,roi->ro", bound[: len(which)], weight[which]) + added[which] * bias
        own.put_back(made, place)
    return [own.memory.own("combine copies") for own in ranks.slots]


@pytest.mark.parametrize("program", [False, True], ids=["plain", "bias"], indirect=True)
@pytest.mark.parametrize("tokens, choose", [((6, 3), "any"), ((0, 5), "first rank")], ids=str)
@pytest.mark.parametrize("low", [0, 8])
def test_rows_go_home_as_they_are_made(
    request: pytest.FixtureRequest, program: ModuleType, tokens: tuple[int, ...], choose: str, low: int
) -> None:
    bias = request.node.callspec.params["program"]
    by_torch, by_kernels = (
        brought_home(program, Ranks(program, kernels, tokens, choose, straight=True, apart=True), kernels, low, bias)
        for kernels in (False, True)
    )
    for rank, (a, b) in enumerate(zip(by_torch, by_kernels, strict=True)):
        assert not a[: tokens[rank]].isnan().any()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_rows_past_the_room_go_nowhere(program: ModuleType) -> None:
    ways = {"straight": True, "apart": True, "room": 1.25}
    homes = brought_home(program, Ranks(program, True, (6, 4), "first rank", **ways), True, 0, False)
    stored = sum(int((~home.isnan().any(-1)).sum()) for home in homes)
    assert stored == 15  # of 20 copies, as many as there is room for
    assert all(bool((home.isnan().any(-1) == home.isnan().all(-1)).all()) for home in homes)


@pytest.mark.parametrize("tile", [(64, 256, 64, 4, 5, 16, 0), (128, 256, 64, 8, 4, 8, 64)], ids=str)
def test_rows_are_stored_16_bytes_at_a_time(tmp_path: Path, tile: tuple[int, ...]) -> None:
    """Compiled for a GPU that need not be here, and small enough for it."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows, columns, depth, warps, stages, band, low = tile
    file = tmp_path / "direct_kernels.py"
    file.write_text(IMPORTS + head() + tiles() + expert_gemm("gemm", home=True))
    kernel = load_program(file).gemm_kernel
    numbers = {"WIDTH": 5120, "DEEP": 1536, "ROWS": rows, "LOW": low, "COLUMNS": columns, "DEPTH": depth, "BAND": band}
    numbers["UPCAST"] = False
    signature = {
        "rows": f"tensordesc<bf16[{rows}, {depth}]>",
        "low_rows": f"tensordesc<bf16[{low or rows}, {depth}]>",
        "weight": f"tensordesc<bf16[1, {columns}, {depth}]>",
        "address": "*i64",
        "table": "*i32",
        "low_table": "*i32",
        **dict.fromkeys(numbers, "constexpr"),
    }
    at = {arg: (i,) for i, arg in enumerate(signature)}
    aligned = {at[arg]: [["tt.divisibility", 16]] for arg, type in signature.items() if type.startswith("*")}
    source = ASTSource(kernel, signature, {at[arg]: value for arg, value in numbers.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})
    assert set(re.findall(r"st\.global[\w.]*", made.asm["ptx"])) == {"st.global.v4.b32"}
    assert made.metadata.shared <= 227 * 1024
