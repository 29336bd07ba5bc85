"""What a block writes in place is a value of its own in what is captured, or the block is refused: nothing is lost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import epsc
from epsc.ir.errors import EpsError
from tests.trace.styles import EXPERTS, HIDDEN, TOP_K, Block
from tests.trace.work import off

LIMIT = 1e-5


class Looped(Block):
    """Experts in a loop, as torch.fx traces them."""

    def mixed(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            rows, slot = torch.where(ids == e)
            out.index_add_(0, rows, self.experts[e](x[rows]) * weights[rows, slot, None])
        return out

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, HIDDEN)
        return self.mixed(x, *self.choose(x)).view(hidden.shape)


class Weights(Looped):
    """Of the router's weights: a division, a product and a fill."""

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).softmax(-1)
        weights, ids = scores.topk(TOP_K, dim=-1)
        weights.div_(weights.sum(-1, keepdim=True))
        weights *= 2.5
        weights.masked_fill_(weights < 0.4, 0.0)
        return ids, weights


class Result(Looped):
    """Of the result: a sum, activations as a function, with `inplace`, and as a module that has it; a product."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def mixed(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = super().mixed(x, ids, weights)
        out += x
        self.act(out)
        torch.sigmoid_(out)
        F.hardtanh(out, -0.6, 0.6, inplace=True)
        out.mul_(0.5)
        return out


class Alias(Looped):
    """Through another name of the same memory, which a tracer of names does not see."""

    def mixed(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = super().mixed(x, ids, weights)
        out.view(-1, 2)[:, 0].mul_(0.5)
        return out


class Out(Looped):
    """By `out=`."""

    def mixed(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = super().mixed(x, ids, weights)
        torch.add(out, x, out=out)
        return out


class Marked(Looped):
    """The same writes around marked experts, which torch.export captures."""

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.view(-1, HIDDEN)
        ids, weights = self.choose(x)
        weights.div_(weights.sum(-1, keepdim=True))
        out = epsc.mark_experts(self.mixed, x, ids, weights).clone()
        out.view(-1, 2)[:, 0].mul_(0.5)
        F.relu(out, inplace=True)
        torch.add(out, x, out=out)
        return out.view(hidden.shape)


@pytest.mark.parametrize("kind", [Weights, Result, Alias, Out, Marked], ids=lambda kind: kind.__name__)
def test_nothing_that_is_written_in_place_is_lost(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    block = kind().eval()
    try:
        compiled = epsc.compile(block, example_inputs=torch.randn(1, 5, HIDDEN))
    except EpsError as error:
        assert kind in REFUSED, error
        assert {each.code for each in error.diagnostics} <= {"mismatch", "not-moe"}
        return
    assert kind not in REFUSED, "it is read now: say so here"
    for tokens in (1, 30):
        x = torch.randn(1, tokens, HIDDEN)
        with torch.no_grad():
            assert off(compiled(x), block(x)) < LIMIT


REFUSED = (Alias,)
