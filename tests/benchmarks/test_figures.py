"""What is computed from measurements, and what they are held against."""

import math

import pytest

from epsc.bench.alone import Alone
from epsc.bench.floor import Ceilings, floor
from epsc.bench.measure import Figures
from epsc.bench.shape import Shape
from epsc.bench.weights import flops_per_token

V2 = Shape("deepseek_v2", hidden=5120, width=1536, experts=160, top_k=6, shared=3072, groups=8, top_groups=3)
RATES = Ceilings(771e12, 4.3e12, 387e9, "as said")


def test_floor_of_deepseek_v2() -> None:
    """6 T h (k w + shared) operations; every weight once; both ways, nearly each token to the one other rank."""
    found = floor(V2.weights, V2.router, V2.hidden, 8192, 2, 2, RATES)
    assert found.products == pytest.approx(6 * 8192 * 5120 * (6 * 1536 + 3072) / 771e12 * 1e3)
    assert found.products == pytest.approx(4.01, abs=0.01)
    local = 80 * 3 * 1536 * 5120 + 3 * 3072 * 5120 + 160 * 5120
    assert found.memory == pytest.approx((local + 2 * 8192 * 5120) * 2 / 4.3e12 * 1e3)
    stay = math.comb(80, 6) / math.comb(160, 6)
    assert found.links == pytest.approx(2 * 8192 * (1 - stay) * 5120 * 2 / 387e9 * 1e3)
    assert (found.ms, found.bound_by) == (found.products, "products")


def test_floor_of_few_tokens_is_bound_by_weights() -> None:
    found = floor(V2.weights, V2.router, V2.hidden, 64, 2, 2, RATES)
    assert found.bound_by == "memory"
    assert floor(V2.weights, V2.router, V2.hidden, 64, 1, 2, RATES).links == 0


def test_flops_leave_the_router_out() -> None:
    assert flops_per_token(V2.weights, "r", 6) == 6 * 5120 * (6 * 1536 + 3072)


def test_figures() -> None:
    found = Figures.of([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    assert (found.median, found.most, found.runs) == (2.5, 6.0, (2.0, 4.0))
    assert found.p10 < found.median < found.p90


def test_hidden() -> None:
    """Of 2 ms of transfers beside 6 ms of the rest, all, half, none, or less than none."""
    parts = Alone(2.0, 6.0, 0.1)
    assert [parts.hidden(ms) for ms in (6.0, 7.0, 8.0, 9.0)] == [1.0, 0.5, 0.0, -0.5]
    assert Alone(0.0, 6.0, 0.1).hidden(6.0) is None
