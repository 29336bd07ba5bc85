"""Blocks of Hugging Face transformers: compiled, they give what they give. The table in the docs is made here.

    pytest -m slow tests/trace/test_families.py --update-golden

writes the row of every family that it runs, so that it may be run in parts with `-k`.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import epsc
from epsc.api.compiling import stand_in
from epsc.grammar.trace.twin import dtype_of
from epsc.ir.errors import EpsError

pytest.importorskip("transformers", reason="transformers is not installed")

from tests.trace.families import Family, apart, arguments, families, halved, made
from tests.trace.forked import forked

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parents[2] / "docs" / "tracing.md"
FP32, BF16 = 1e-5, 2e-2
RANKS = 4
FIRST = (
    "mixtral",
    "deepseek_v2",
    "deepseek_v3",
    "qwen2_moe",
    "dots3_note",
    "gpt_oss",
    "dbrx",
    "jetmoe",
    "phimoe",
    "zaya",
    "nemotron_h",
    "ernie4_5_moe",
)
"""Between them every kind of router, layout and shared expert."""


@cache
def by_name() -> dict[str, Family]:
    return {family.name: family for family in families()}


def reason(error: EpsError) -> str:
    return error.diagnostics[0].message.splitlines()[0].replace("|", "/")[:160]


def row(family: Family, whole: bool = True) -> tuple[str, ...]:
    """What the table says of a family; without `whole`, nothing of bf16."""

    def none(why: str) -> tuple[str, ...]:
        return (family.name, "-", "-", "-", "-", "-", why)

    if not family.block and not family.experts:
        return none("no class of it has a router and experts: no block to read")
    try:
        block = made(family)
    except Exception as error:
        return none(f"the test has no tiny config for it ({type(error).__name__})")
    try:
        traced = epsc.trace(block, given(block))
    except EpsError as error:
        return none(reason(error))
    equal(family, block, traced, 1, FP32)
    equal(family, block, traced, RANKS, FP32)
    if whole:
        half = halved(family)
        equal(family, half, epsc.trace(half, given(half)), 1, BF16)
    router = "fused" if traced.lifted.router else "as captured" if family.block else "given"
    shared = "".join(" + shared" if branch.act else " + x" for branch in traced.lifted.shared)
    notes = traced.notes if family.block else ("a layer of the model does what blocks do: experts only",)
    in_bf16 = "equal" if whole else ""
    return (family.name, traced.path, router + shared, "equal", "equal", in_bf16, "; ".join(notes) or "-")


def given(block: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """Arguments to read a block by."""
    torch.manual_seed(1)
    dtype = dtype_of(block)
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in arguments(block, 5))


def equal(family: Family, block: torch.nn.Module, traced: epsc.Traced, ranks: int, limit: float) -> None:
    """The block, compiled for so many ranks, gives on each of them what it gives; on several, of other tokens each."""

    def worst(rank: int) -> float:
        compiled = stand_in(traced, dist.group.WORLD if ranks > 1 else None, ranks, None, None)
        torch.manual_seed(10 + rank)
        return max(apart(block, compiled, tokens) for tokens in (9 + 2 * rank, 1, 60))

    found = max(forked(ranks, worst)) if ranks > 1 else worst(0)
    assert found < limit, f"{family.name} is off by {found} on {ranks} rank(s)"


def shown() -> dict[str, tuple[str, ...]]:
    """The rows of the table in the docs, by family."""
    lines = re.findall(r"^\| (\w+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: (name, *rest.split(" | ")) for name, rest in lines if name != "Family"}


def summary(rows: dict[str, tuple[str, ...]]) -> str:
    compiled = [each for each in rows.values() if each[3] != "-"]
    fused = sum(each[2].startswith("fused") for each in compiled)
    captured = sum(each[2].startswith("as captured") for each in compiled)
    alone = len(compiled) - fused - captured
    return (
        f"Of the {len(rows)}, {len(compiled)} are compiled: {fused} with their router in the plan, {captured} with"
        f" their router as captured, {alone} as experts alone."
    )


def save(row: tuple[str, ...]) -> None:
    """Put a row into the table, and count again."""
    rows = dict(sorted((shown() | {row[0]: row}).items()))
    rows = {name: each for name, each in rows.items() if name in by_name()}
    lines = "\n".join(f"| {' | '.join(each)} |" for each in rows.values())
    text = PAGE.read_text(encoding="utf-8")
    text = re.sub(r"(\| Family \|.*\n\| --- .*\n)(?:\|.*\n)*", lambda found: found[1] + lines + "\n", text)
    text = re.sub(r"^Of the \d+, .*$", summary(rows), text, flags=re.MULTILINE)
    PAGE.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", FIRST)
def test_a_family_is_equal_and_as_the_docs_say(name: str) -> None:
    line = row(by_name()[name], whole=False)
    assert line[3:5] == ("equal", "equal"), line
    assert [each for each in line if each] == [each for i, each in enumerate(shown()[name]) if i != 5]


def test_the_table_has_every_family_and_is_counted() -> None:
    assert list(shown()) == sorted(by_name())
    assert summary(shown()) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_counts_as_equal_is_not_so_for_another_block(dtype: torch.dtype) -> None:
    """One expert of eight, off by a quarter; and experts that are taken for each other."""
    block = made(by_name()["qwen2_moe"]).to(dtype)
    compiled = epsc.compile(copy.deepcopy(block), example_inputs=given(block))  # whose weights are its own
    limit = {torch.float32: FP32, torch.bfloat16: BF16}[dtype]
    assert apart(block, compiled, 60) < limit
    state = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    state["experts.down_proj"][3] *= 1.25
    compiled.load_state_dict(state)
    assert apart(block, compiled, 60) > limit
    state["experts.down_proj"] = block.state_dict()["experts.down_proj"].roll(1, 0)
    compiled.load_state_dict(state)
    assert apart(block, compiled, 60) > limit


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(by_name()))
def test_every_family_is_as_the_docs_say(name: str, update_golden: bool) -> None:
    found = row(by_name()[name])
    if update_golden:
        save(found)
    assert shown()[name] == found
