"""Layers whose ranks share experts or tokens equal the interpreter, and what they share is printed and parsed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver
from epsc.ir.mesh import DeviceMesh
from epsc.ir.schedule import Schedule
from epsc.ir.source import Source
from tests.programs.ranks import Job, Ranks

LIMIT = 1e-5

LOADS = (((9, 5, 0, 14), "random"), ((2,) * 4, "one"), ((0, 0, 0, 1), "shunned"))

EXPERTS = """
layer shared(x: fp32[tokens, 32]) {
  a    = route(x, experts=6, top_k=3)
  wide = dispatch(x, a)
  up   = gemm(wide, up, 2*24, bias=true, transposed=true)
  h    = swiglu(up, interleaved=true, limit=7.0)
  one  = combine(gemm(h, down, 32, transposed=true), a)
  b    = route(x, experts=4, top_k=1)
  some = dispatch(x, b)
  g    = geglu(gemm(some, gate_up, 2*8, bias=true))
  two  = combine(gemm(g, out, 32) + gemm(g, more, 32), b)
  return one + two + x
}
cluster c { device = cpu  ep = 2  etp = 2 }
schedule whole { }
schedule cut {
  split wide, up, h, one by expert_group into 2
  split some, g, two by tokens into 3
  use dense for up
  run etp on inside
}
"""

SUMS = """
layer sums(x: fp32[tokens, 32]) {
  r    = route(x, experts=8, top_k=2)
  sent = select_local(x, r)
  back = scatter_rows(gemm(relu(gemm(sent, up, 24)), down, 32), r)
  mine = reduce_scatter(back, ep)
  more = mine + split_tokens(x, ep)
  y    = all_gather(more, ep)
  return y + mlp(x, swiglu, 16)
}
cluster c { device = cpu  ep = 4 }
schedule whole { }
"""


def layer_of(text: str) -> driver.Layer:
    return driver.understand(Source("meshes.eps", text))


@pytest.mark.distributed
@pytest.mark.parametrize("text", [EXPERTS, SUMS], ids=["experts", "sums"])
def test_equals_the_interpreter(text: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    layer = layer_of(text)
    for decl in layer.schedules:
        for seed, (tokens, routing) in enumerate(
            (((9, 5, 0, 14), "random"), ((2,) * 4, "one"), ((0, 0, 0, 1), "shunned"))
        ):
            results = ranks_of(4).run(prepare(layer, decl.name, tokens, seed=seed, routing=routing))
            assert max(result.error for result in results) < LIMIT, f"{decl.name}, tokens {tokens}"


@pytest.mark.distributed
def test_a_rank_that_takes_the_columns_of_another_is_noticed(
    tmp_path: Path, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    """The comparison sees which columns of an expert a rank has."""
    job = prepare(layer_of(EXPERTS), "whole", (4,) * 4)
    text = Path(job.program).read_text()
    broken = text.replace("weight, self.rank % ETP)", "weight, 0)")
    assert broken != text
    path = tmp_path / "broken.py"
    path.write_text(broken)
    results = ranks_of(4).run(Job(str(path), job.graph, (4,) * 4))
    assert max(result.error for result in results) > LIMIT


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("path", ["fsmoe", "parallel_folding"])
def test_on_eight_ranks(path: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    papers = Path(__file__).parents[2] / "examples" / "papers"
    layer = driver.understand(driver.read(papers / f"{path}.eps"), driver.Options(preset="small"))
    assert layer.cluster.ranks == 8
    for decl in layer.schedules:
        results = ranks_of(8).run(prepare(layer, decl.name, (5, 0, 7, 3, 9, 1, 2, 8)))
        assert max(result.error for result in results) < LIMIT, decl.name


@pytest.mark.parametrize("text", [EXPERTS, SUMS], ids=["experts", "sums"])
def test_what_is_shared_is_printed_and_parsed(text: str) -> None:
    layer = layer_of(text)
    for decl in layer.schedules:
        made = driver.plan(layer, decl.name).schedule
        assert str(Schedule.parse(str(made))) == str(made)
        assert Schedule.parse(str(made)).meshes == made.meshes


def test_groups_of_a_mesh() -> None:
    mesh = DeviceMesh("m", (("a", 2), ("b", 2), ("c", 3)))
    assert mesh.groups("a") == [[i, i + 6] for i in range(6)]
    assert mesh.groups("b") == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert mesh.groups("c") == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)]
    assert DeviceMesh.parse(str(mesh)) == mesh
