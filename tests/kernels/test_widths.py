"""Kernels that store into the memory of other ranks, compiled for a GPU that need not be here: 16 bytes at a time."""

import re
from types import ModuleType

import pytest

from epsc import driver
from epsc.ir.source import Source
from tests.kernels.test_one_sided import LAYER
from tests.programs.ranks import load_program

SIZES = {"MOST": 4096, "RANKS": 8, "EXPERTS": 160, "LOCAL": 20, "COPIES": 6, "POWER": 8, "WIDTH": 5120, "COLUMNS": 1024}
SIZES["HOME"] = SIZES["WIDTH"]
ROWS = ("x", "rows")
TABLES = ("rows_at", "copies_at", "sums_at")
NUMBERS = ("own", "rank", "count")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    layer = driver.understand(Source("moe.eps", LAYER.format(hidden=32, experts=8, top_k=2, ep=2, most=8)))
    file = tmp_path_factory.mktemp("program") / "moe_put.py"
    file.write_text(driver.write(driver.plan(layer, "put")).text)
    return load_program(str(file))


def signature_of(name: str) -> str:
    if name in ROWS:
        return "*bf16"
    if name in TABLES or name == "experts":
        return "*i64"
    if name == "weights":
        return "*fp32"
    return "i32" if name in NUMBERS else "*i32"


WHOLE = {"LOW": 0, "HIGH": 0, "FIRST": 0}
PIECE = {"LOW": 1, "HIGH": 2, "FIRST": 8}
"""A group of experts, and columns from one on that lies 16 bytes further."""


@pytest.mark.parametrize("piece", [WHOLE, PIECE], ids=["whole", "piece"])
@pytest.mark.parametrize("name", ["put_rows_kernel", "put_copies_kernel", "put_sums_kernel", "put_back_kernel"])
def test_rows_are_stored_16_bytes_at_a_time(program: ModuleType, name: str, piece: dict[str, int]) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(program, name)
    sizes = {**SIZES, **piece}
    numbers = {arg: sizes[arg] for arg in kernel.arg_names if arg in sizes}
    signature = {arg: "constexpr" if arg in numbers else signature_of(arg) for arg in kernel.arg_names}
    at = {arg: (i,) for i, arg in enumerate(kernel.arg_names)}
    aligned = {at[arg]: [["tt.divisibility", 16]] for arg, type in signature.items() if type.startswith("*")}
    source = ASTSource(kernel, signature, {at[arg]: value for arg, value in numbers.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    stores = set(re.findall(r"st\.global[\w.]*", made.asm["ptx"]))
    assert stores == {"st.global.v4.b32"}
