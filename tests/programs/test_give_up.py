"""A rank that fails, or refuses its input, ends the forward pass of all: nobody waits for it until a time limit."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from epsc import driver
from epsc.ir.source import Source
from tests.codegen.test_runs import start
from tests.programs.ranks import Job, Ranks

TEXT = """
layer moe(x: fp32[tokens, 16]) {
  r    = route(x, experts=8, top_k=2)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, up, 16))
  back = combine(gemm(h, down, 16), r)
  return back + x
}
cluster c { device = h200  ep = 2 }
tokens 1 .. 12
schedule one_sided { use copy for sent  use put for back  local_reduce back }
"""
SOON_S = 45
"""Of ranks that are there already, on a busy machine: far from the 300 s that a layer waits at most."""


def broken(job: Job, before: str, line: str, path: Path) -> Job:
    """The job with a line of its program put before another."""
    text = Path(job.program).read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, f"{line}\n        {before}"))
    return replace(job, program=str(path))


def faults(ranks: Ranks, job: Job) -> str:
    """What the ranks say, soon."""
    begin = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        ranks.run(job)
    assert time.monotonic() - begin < SOON_S, caught.value
    return str(caught.value)


@pytest.mark.distributed
@pytest.mark.parametrize("count", [2, 4])
def test_a_refused_input_ends_the_wait_of_the_others(
    count: int, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    layer, ranks = driver.understand(Source("moe.eps", TEXT), driver.Options({"ep": str(count)})), ranks_of(count)
    last = count - 1
    fine = prepare(layer, "one_sided", (8,) * count, seed=1)
    assert max(result.error for result in ranks.run(fine)) < 1e-5
    told = faults(ranks, prepare(layer, "one_sided", (*[8] * last, 13)))
    assert "ValueError: moe: 13 tokens, but the plan has room for 12 of each rank: compile it for more" in told
    for rank in range(last):
        assert f"moe: rank {rank} waited in vain for sent.tell of " in told
    assert f"rank {last}, which gave up" in told
    # That forward is over for all of them, and the next one is like any other; also if all refuse one.
    assert max(result.error for result in ranks.run(fine)) < 1e-5
    assert faults(ranks, prepare(layer, "one_sided", (13,) * count)).count("ValueError: moe: 13 tokens") == count
    assert max(result.error for result in ranks.run(fine)) < 1e-5


@pytest.mark.distributed
def test_a_rank_that_fails_midway_ends_the_wait_of_the_others(
    tmp_path: Path, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    layer, ranks = driver.understand(Source("moe.eps", TEXT)), ranks_of(2)
    job = prepare(layer, "one_sided", (8, 5))
    told = faults(ranks, broken(job, "# back.put, on compute", "1 // (1 - self.rank)", tmp_path / "fails.py"))
    assert "ZeroDivisionError" in told
    # A slow rank may hear of it at a wait before that.
    assert re.search(r"rank 0 waited in vain for (sent\.tell|sent\.copy|back\.put) of rank 1, which gave up", told)


@pytest.mark.distributed
def test_a_rank_that_says_nothing_is_waited_for_until_the_time_limit(
    tmp_path: Path, prepare: Callable[..., Job]
) -> None:
    """It sleeps, or it died: the others end and name the step and the rank."""
    layer = driver.understand(Source("moe.eps", TEXT))
    job = prepare(layer, "one_sided", (8, 8))
    job = broken(job, "# sent.copy, on compute", "time.sleep(200 * self.rank)", tmp_path / "sleeps.py")
    done = start(2, Path(job.program), "--check", "--tokens", "8", "--timeout", "15", "--device", "cpu")
    assert done.returncode != 0
    told = "rank 0 waited in vain for sent.copy of rank 1, which failed, or needs longer than the time limit"
    assert told in done.stderr
