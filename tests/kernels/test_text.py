"""The text of kernels: the same each time, in lines as long as those of programs, and harmless without triton."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from epsc.codegen import triton_kernels as kernels
from epsc.codegen.lines import WIDTH
from epsc.codegen.triton_expert_gemm import expert_gemm
from epsc.ir.attrs import Act, ActAttrs, Choose, GroupBy, RouteAttrs, Score

EVERY = [
    kernels.head,
    kernels.weighted_sum,
    lambda: kernels.weighted_sum("some", selective=True),
    kernels.scatter_rows,
    kernels.copy_ranks,
    kernels.ordering,
    lambda: kernels.route("route", RouteAttrs(6, 2, choose=Choose.BY_LOGIT, bias=True)),
    lambda: kernels.route(
        "route_v3", RouteAttrs(256, 8, Score.SIGMOID, choice_bias=True, groups=8, top_groups=4, group_by=GroupBy.TOP2)
    ),
    lambda: kernels.route("route_k", RouteAttrs(6, 2, threshold=0.25, renorm=True)),
    kernels.tiles,
    lambda: kernels.activation("act", ActAttrs(Act.SWIGLU, 7.0, 1.702, 1.0, interleaved=True)),
    lambda: expert_gemm("gemm"),
    lambda: expert_gemm("gemm_swiglu", ActAttrs(Act.SWIGLU, 7.0, 1.702, 1.0, interleaved=True)),
    lambda: expert_gemm("gemm_geglu", ActAttrs(Act.GEGLU)),
    lambda: expert_gemm("gemm_tanh", ActAttrs(Act.GEGLU_TANH, limit=7.0, offset=1.0)),
    lambda: expert_gemm("gemm_capped", ActAttrs(Act.SWIGLU, offset=1.0, gate_softcap=4.0, up_softcap=25.0)),
    lambda: expert_gemm("gemm_biased", ActAttrs(Act.SWIGLU), bias=True, turned=True),
]


@pytest.mark.parametrize("render", EVERY)
def test_text(render) -> None:  # type: ignore[no-untyped-def]
    text = render()
    assert text == render()
    assert text.isascii()
    assert text.endswith("\n\n\n") and not text.endswith("\n\n\n\n")
    assert max(map(len, text.splitlines())) <= WIDTH
    ast.parse(text)


def test_without_triton(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    start = "from __future__ import annotations\nimport sys\nfrom typing import Any, NamedTuple\n"
    hide = "sys.modules['triton'] = None\n"
    path.write_text(start + hide + "".join(render() for render in EVERY) + "print(triton)\n")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("None\n", "")
