"""Experts of other kinds than a weighted sum of all that are chosen: read, and run on ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import epsc
from epsc.ir.errors import EpsError
from tests.trace.ranks import Ranks
from tests.trace.styles import EXPERTS, HIDDEN, Full, Identities, Normed, OnInput, StackedExperts
from tests.trace.work import block_of, off

LIMIT = 1e-5
APART = "each copy is a token of its own, and the router runs as captured"
KINDS: dict[type[nn.Module], tuple[str, str, tuple[str, ...]]] = {
    Identities: ("dispatch(x, r, experts=4)", "return back + identity(x, r, first=4)", ()),
    Normed: (
        "ids: int64[tokens, 1]",
        "routing(ids, weights, experts=4)",
        (f"`experts.norm` stands behind each expert: {APART}",),
    ),
    Full: (
        "ids: int64[tokens, 2]",
        "routing(ids, weights, experts=4, partial=true)",
        ("the router is none that `route` can say: it runs as captured",),
    ),
    OnInput: (
        "ids: int64[tokens, 1]",
        "gelu(gemm(sent, up, 24, transposed=true))",
        (f"weights multiply what goes to experts: {APART}",),
    ),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_is_read_and_equal(kind: type[nn.Module]) -> None:
    block = block_of(kind.__name__)
    layer = epsc.trace(block, torch.randn(2, 5, HIDDEN))
    first, second, notes = KINDS[kind]
    assert first in layer.text
    assert second in layer.text
    assert layer.notes == notes
    compiled = epsc.compile(block, schedule="split sent, h, back by expert_group into 2")
    for shape in ((2, 9), (1, 1), (1, 0)):
        x = torch.randn(*shape, HIDDEN)
        with torch.no_grad():
            assert off(compiled(x), block(x)) < LIMIT


def test_plans_by_load_are_told_the_tokens_of_the_block() -> None:
    """A layer that gets each copy as a token of its own has more tokens than the block that it is part of."""
    block = block_of("OnInput")
    given = (
        "schedule serving = cut when tokens <= 16 else serial  schedule cut { split sent, h, back by tokens into 2 }"
    )
    compiled = epsc.compile(block, schedule=given, tokens=(1, 64))
    (runner,) = compiled.runner_of
    x = torch.randn(1, 8, HIDDEN)
    for most, plan in ((8, "cut"), (9, "serial")):
        compiled.most = most
        with torch.no_grad():
            assert off(compiled(x), block(x)) < LIMIT
        assert runner.layer.plan.name == plan


@pytest.mark.distributed
@pytest.mark.parametrize(
    "kind",
    [OnInput, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind is not OnInput)],
    ids=lambda kind: kind.__name__,
)
def test_a_kind_is_equal_on_ranks(kind: type[nn.Module], ranks_of: Callable[[int], Ranks]) -> None:
    assert max(ranks_of(2).run("style", kind.__name__, None)) < LIMIT


def test_the_state_dict_has_the_rows_that_no_expert_reads() -> None:
    block = block_of("Identities")
    compiled = epsc.compile(block)
    state = block.state_dict()
    assert len(state["experts.up"]) == EXPERTS + 2
    assert all(torch.equal(tensor, state[name]) for name, tensor in compiled.state_dict().items())
    other = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    compiled.load_state_dict(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in compiled.state_dict().items())


class Doubled(Identities):
    """One of those that do nothing hands back twice what it was given."""

    def __init__(self, twice: float = 2.0) -> None:
        super().__init__()
        self.experts = DoubledExperts(self.CHOICES)
        self.experts.twice = twice


class DoubledExperts(StackedExperts):
    twice: float

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, ids, weights * torch.where(ids == EXPERTS + 1, self.twice, 1.0))


def test_experts_that_neither_compute_nor_hand_back_are_refused() -> None:
    torch.manual_seed(0)
    assert "identity(" in epsc.trace(Doubled(1.0).eval(), torch.randn(2, 5, HIDDEN)).text
    with pytest.raises(EpsError, match="the experts of DoubledExperts compute nothing that the language can say"):
        epsc.trace(Doubled().eval(), torch.randn(2, 5, HIDDEN))
