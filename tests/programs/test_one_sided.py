"""One-sided transfers in every form that rows can take: as the interpreter, and a clear end where there is no room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from epsc import driver
from epsc.ir.source import Source
from tests.programs.ranks import Job, Ranks

LIMIT = 1e-5
LAYER = """
layer moe(x: fp32[tokens, 24]) {{
  r    = route(x, experts=8, top_k=3, score=softmax)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 32))
  back = combine(gemm(h, down, 24), r)
  return {result}
}}
cluster c {{ ep = {ep} }}
tokens 0 .. 12
schedule s {{ {directives} }}
"""
DISPATCHES = {"put": "use put for sent", "put_dedup": "use put for sent dedup sent", "copy": "use copy for sent"}
COMBINES = {"put": "use put for back", "put_local_reduce": "use put for back local_reduce back"}


def layer_of(ep: int, directives: str, result: str = "back") -> driver.Layer:
    return driver.understand(Source("moe.eps", LAYER.format(ep=ep, directives=directives, result=result)))


@pytest.mark.distributed
@pytest.mark.parametrize("ep", [2, 4, 8])
@pytest.mark.parametrize("there, home", list(product(DISPATCHES, COMBINES)))
def test_every_form_equals_the_interpreter(
    there: str, home: str, ep: int, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    directives = f"{DISPATCHES[there]} {COMBINES[home]}"
    for seed, (result, more, tokens, routing) in enumerate(
        (
            ("back", "", (12,) * ep, "random"),
            ("back", f"room {ep} for sent reserve 16 sms for back", tuple(range(4, 4 + ep)), "one"),
            ("back + mlp(x, swiglu, 16)", "room 1.5 for sent run back on links", (0, 3) * (ep // 2), "skewed"),
        )
    ):
        job = prepare(layer_of(ep, f"{directives} {more}", result), "s", tokens, routing=routing, seed=seed)
        worst = max(found.error for found in ranks_of(ep).run(job))
        assert worst < LIMIT, f"{result}, {more or 'room for all'}, tokens {tokens}: {worst:.2e}"


@pytest.mark.distributed
@pytest.mark.parametrize("there", DISPATCHES)
def test_rows_that_overflow_their_room(
    there: str, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    """All tokens want the same three experts, of rank 0: every rank says so, and the layer goes on after it."""
    directives = f"{DISPATCHES[there]} {COMBINES['put']}"
    crowded, fits = (
        prepare(layer_of(2, f"{directives} room {room} for sent"), "s", (12, 12), routing="one") for room in (1.5, 2)
    )
    with pytest.raises(AssertionError) as error:
        ranks_of(2).run(crowded)
    assert str(error.value).count("Overflow: moe: sent overflows: rank 0 gets 72 rows, and there is room for 54") == 2
    for job in (replace(crowded, tokens=(9, 9)), fits):
        assert max(found.error for found in ranks_of(2).run(job)) < LIMIT


DIRECT = LAYER.replace("fp32", "bf16")
"""As the persistent product takes it; programs of it run in fp32 here all the same."""


@pytest.mark.distributed
@pytest.mark.parametrize("ep", [2, 4])
@pytest.mark.parametrize("there", DISPATCHES)
def test_rows_that_go_home_as_they_are_made(
    there: str, ep: int, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    for seed, (result, more, tokens, routing) in enumerate(
        (
            ("back", "", (12,) * ep, "random"),
            ("back + mlp(x, swiglu, 16)", f"room {ep} for sent", tuple(range(4, 4 + ep)), "one"),
            ("back", "split sent, h by expert_group into 2", (0, 3) * (ep // 2), "skewed"),
        )
    ):
        text = DIRECT.format(ep=ep, directives=f"{DISPATCHES[there]} use direct for back {more}", result=result)
        job = prepare(driver.understand(Source("moe.eps", text)), "s", tokens, routing=routing, seed=seed)
        assert "expert_gemm_put" in job.graph
        worst = max(found.error for found in ranks_of(ep).run(job))
        assert worst < LIMIT, f"{result}, {more or 'whole'}, tokens {tokens}: {worst:.2e}"


@pytest.mark.distributed
def test_a_bias_of_rows_that_go_home_as_they_are_made(
    ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]
) -> None:
    text = DIRECT.replace("down, 24", "down, 24, bias=true")
    text = text.format(ep=2, directives="use put for sent use direct for back", result="back")
    job = prepare(driver.understand(Source("moe.eps", text)), "s", (7, 12))
    assert max(found.error for found in ranks_of(2).run(job)) < LIMIT
