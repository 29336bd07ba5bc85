"""Blocks of Hugging Face transformers: compiled, they give what they give. The table in the docs is made here."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import torch

import epsc
from epsc.ir.errors import EpsError

pytest.importorskip("transformers", reason="transformers is not installed")

from tests.trace.families import HIDDEN, Family, families, made
from tests.trace.work import off

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parents[2] / "docs" / "tracing.md"
FIRST = (
    "mixtral",
    "deepseek_v2",
    "deepseek_v3",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "dbrx",
    "olmoe",
    "phimoe",
    "glm4_moe",
    "nemotron_h",
    "ernie4_5_moe",
)
"""Between them every kind of router, layout and shared expert."""

QUICK = 3
"""So many of them are in the default run, which is to be quick; the others take no longer."""


@cache
def by_name() -> dict[str, Family]:
    return {family.name: family for family in families()}


def arguments(block: torch.nn.Module, tokens: int) -> tuple[torch.Tensor, ...]:
    """What the block is called with: tokens, and their ids where a router reads them."""
    x = torch.randn(2, tokens, HIDDEN)
    reads_ids = "input_ids" in inspect.signature(block.forward).parameters
    return (x, torch.randint(0, 64, (2, tokens))) if reads_ids else (x,)


def row(family: Family) -> str:
    """What the table says of a family."""
    if not family.block:
        return f"| {family.name} | - | no class of its own has a router and experts: no block to read |"
    try:
        block = made(family)
    except Exception as error:
        return f"| {family.name} | - | the test has no tiny config for it ({type(error).__name__}) |"
    try:
        compiled = epsc.compile(block, example_inputs=arguments(block, 5))
    except EpsError as error:
        why = error.diagnostics[0].message.splitlines()[0].replace("|", "/")
        return f"| {family.name} | - | {why[:160]} |"
    given = arguments(block, 9)
    with torch.no_grad():
        wanted, got = block(*given), compiled(*given)
    pairs = zip(*((each if isinstance(each, tuple) else (each,)) for each in (wanted, got)), strict=True)
    worst = max(off(b, a) for a, b in pairs if isinstance(a, torch.Tensor))
    assert worst < 1e-5, f"{family.name} is off by {worst}"
    lifted = compiled.traced[1]
    router = "fused" if lifted.router else "as captured"
    shared = "".join(" + shared" if branch.act else " + x" for branch in lifted.shared)
    return f"| {family.name} | {router}{shared} | {'; '.join(lifted.notes) or '-'} |"


def shown() -> dict[str, str]:
    """The rows of the table in the docs, by family."""
    rows = re.findall(r"^\| (\w+) \| .* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {name: next(line for line in lines if line.startswith(f"| {name} |")) for name in rows}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if i < QUICK else pytest.mark.slow) for i, name in enumerate(FIRST)]
)
def test_a_family_is_equal_and_as_the_docs_say(name: str) -> None:
    line = row(by_name()[name])
    assert line.split(" | ")[1] != "-", line
    assert shown()[name] == line


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_family_is_as_the_docs_say(update_golden: bool) -> None:
    lines = {name: row(family) for name, family in by_name().items()}
    if update_golden:
        text = PAGE.read_text(encoding="utf-8")
        head, _, rest = text.partition("| --- | --- | --- |\n")
        tail = rest[rest.index("\n\n") :]
        PAGE.write_text(head + "| --- | --- | --- |\n" + "\n".join(lines.values()) + tail, encoding="utf-8")
        return
    assert shown() == lines
