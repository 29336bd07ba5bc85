"""Layers and schedules of papers run on ranks, and equal the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from epsc import driver
from epsc.ir.errors import EpsError
from tests.programs.ranks import Job, Ranks

PAPERS = Path(__file__).parents[2] / "examples" / "papers"
FILES = sorted(PAPERS.glob("*.eps"))
LIMIT = 1e-5
MESHES = {
    "parm_s1": {"ep": "4"},
    "parm_s2": {"ep": "4"},
    "fsmoe": {"ep": "2", "nodes": "2"},
    "tutel_two_level": {"ep": "4", "nodes": "2"},
    "parallel_folding": {"ep": "2", "tp": "2"},
}
"""Of papers about meshes: small ones, on 4 ranks."""
FOR_TWO = {"duo_llm", "pruned"}
"""Those with two experts of a kind."""


@pytest.mark.distributed
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_interpreter(path: Path, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    sizes = MESHES.get(path.stem, {"ep": "2"})
    layer = driver.understand(driver.read(path), driver.Options(sizes, preset="small"))
    count = layer.cluster.ranks
    for decl in layer.schedules:
        for seed, tokens in enumerate(((24, 24), (0, 7), (1, 0))):
            every = (tokens * count)[:count]
            results = ranks_of(count).run(prepare(layer, decl.name, every, seed=seed))
            assert max(result.error for result in results) < LIMIT, f"{decl.name}, tokens {tokens}"


@pytest.mark.distributed
@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in MESHES], ids=lambda path: path.stem)
def test_equals_the_interpreter_on_four(
    path: Path, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    if path.stem in FOR_TWO:
        with pytest.raises(EpsError, match="experts cannot be shared evenly by ep = 4"):
            driver.understand(driver.read(path), driver.Options({"ep": "4"}, preset="small"))
        return
    layer = driver.understand(driver.read(path), driver.Options({"ep": "4"}, preset="small"))
    for decl in layer.schedules:
        results = ranks_of(4).run(prepare(layer, decl.name, (9, 0, 17, 1)))
        assert max(result.error for result in results) < LIMIT, decl.name


@pytest.mark.distributed
@pytest.mark.parametrize("least", [0.02, 0.15, 0.9])
def test_ds_moe_sends_what_reaches_the_threshold(
    least: float, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    """Down to no copy at all."""
    given = driver.Options({"ep": "2", "k": "4", "least": str(least)}, preset="small")
    layer = driver.understand(driver.read(PAPERS / "ds_moe.eps"), given)
    for tokens in ((24, 24), (0, 7)):
        results = ranks_of(2).run(prepare(layer, "sparse", tokens))
        assert max(result.error for result in results) < LIMIT


@pytest.mark.distributed
@pytest.mark.parametrize("slots", [1, 3, 20])
def test_inf_moe_with_empty_experts(slots: int, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    """One expert gets all, most get nothing; slots that all experts share, and more than there are experts."""
    given = driver.Options({"ep": "2", "slots": str(slots)}, preset="small")
    layer = driver.understand(driver.read(PAPERS / "inf_moe.eps"), given)
    for routing in ("one", "skewed"):
        results = ranks_of(2).run(prepare(layer, "inf_moe", (9, 4), routing=routing))
        assert max(result.error for result in results) < LIMIT


@pytest.mark.distributed
def test_comet_on_four_ranks(ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    """More ranks than two: the order of the sources is not the order of the ranks."""
    layer = driver.understand(driver.read(PAPERS / "comet.eps"), driver.Options({"ep": "4"}, preset="small"))
    for seed, (tokens, routing) in enumerate((((24,) * 4, "random"), ((0, 7, 1, 3), "skewed"))):
        results = ranks_of(4).run(prepare(layer, "comet", tokens, routing=routing, seed=seed))
        assert max(result.error for result in results) < LIMIT
