"""Nine ways in which people write MoE blocks by hand, read as layers. What is accepted was verified by `trace`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import epsc
from epsc.ir.errors import EpsError
from tests.trace.styles import EXPERTS, HIDDEN, INNER, STYLES, Block, Dense, Named, Stacked

ROUTE = f"route(x, experts={EXPERTS}, top_k=2, renorm=true)"
GATED = f"swiglu(gemm(sent, gate_up, 2*{INNER}))"
SAID = {
    Stacked: (f"route(x, experts={EXPERTS}, top_k=2)", f"gelu(gemm(sent, up, {INNER}, transposed=true))"),
    Named: (
        f"route(x, experts={EXPERTS}, top_k=2, score=sigmoid, bias=true)",
        f"relu(gemm(sent, up, {INNER}, bias=true))",
    ),
}


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", STYLES, ids=lambda kind: kind.__name__)
def test_a_style_is_read_whole(kind: type[nn.Module]) -> None:
    layer = epsc.trace(made(kind), torch.randn(2, 5, HIDDEN))
    route, experts = SAID.get(kind, (ROUTE, GATED))
    assert route in layer.text
    assert experts in layer.text
    assert layer.path == "torch.fx"
    assert not layer.notes


def test_a_shared_expert_is_found_by_dataflow() -> None:
    layer = epsc.trace(made(Dense), torch.randn(2, 5, HIDDEN))
    assert f"shared = mlp(x, swiglu, {INNER})" in layer.text
    assert "return back + sigmoid(gemm(x, shared_gate, 1))*shared" in layer.text
    weights = layer.tensors()
    assert torch.equal(weights["shared_gate"], layer.module.get_parameter("always_gate.weight"))


def test_places_are_in_the_users_python() -> None:
    layer = epsc.trace(made(Named), torch.randn(2, 5, HIDDEN))
    route = layer.spec.layers[0].body[0].span
    assert route is not None
    assert route.source.name.endswith("styles.py")
    assert "topk" in route.source.line(route.line)


def test_errors_of_the_driver_are_told_in_the_users_python() -> None:
    from epsc.driver import Options

    layer = epsc.trace(made(Named), torch.randn(2, 5, HIDDEN))
    with pytest.raises(EpsError, match="4 experts cannot be shared evenly by ep = 3") as caught:
        layer.layer(Options({"ep": "3"}))
    (fault,) = caught.value.diagnostics
    assert fault.span is not None
    assert fault.span.source.name.endswith("styles.py")


class Marked(Block):
    """A way that no tracer follows, with its experts marked."""

    def run(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = [torch.zeros(HIDDEN, dtype=hidden.dtype)] * len(hidden)
        for row, chosen in enumerate(ids.numpy().tolist()):
            for slot, e in enumerate(chosen):
                out[row] = out[row] + weights[row, slot] * self.experts[e](hidden[row])
        return torch.stack(out)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.view(-1, HIDDEN)
        ids, weights = self.choose(x)
        return epsc.mark_experts(self.run, x, ids, weights).view(hidden.shape)


class Unmarked(Marked):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.view(-1, HIDDEN)
        return self.run(x, *self.choose(x)).view(hidden.shape)


def test_marked_experts_are_read() -> None:
    layer = epsc.trace(made(Marked), torch.randn(2, 5, HIDDEN))
    assert ROUTE in layer.text
    assert GATED in layer.text
    assert layer.path == "torch.export"


def test_what_cannot_be_traced_is_refused_with_advice() -> None:
    with pytest.raises(EpsError) as caught:
        epsc.trace(made(Unmarked), torch.randn(2, 5, HIDDEN))
    (fault,) = caught.value.diagnostics
    assert fault.code == "not-moe"
    assert fault.help is not None
    assert "mark_experts" in fault.help
    assert fault.span is not None


class Odd(Block):
    """A router that `route` cannot say: every token's weights are those of the token before it."""

    def choose(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, weights = super().choose(x)
        return ids, weights * torch.tanh(x.abs().mean(-1, keepdim=True))

    forward = STYLES[0].forward


def test_a_router_of_another_kind_runs_as_captured() -> None:
    layer = epsc.trace(made(Odd), torch.randn(2, 5, HIDDEN))
    assert "r    = routing(ids, weights, experts=4)" in layer.text
    assert layer.notes == ("the router is none that `route` can say: it runs as captured",)


class Unlike(Block):
    """Experts with a square root between the products, which the language does not have."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.view(-1, HIDDEN)
        ids, weights = self.choose(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, slot = torch.where(ids == e)
            h = torch.sqrt(expert.w1(x[rows]).abs()) * expert.w3(x[rows])
            out.index_add_(0, rows, expert.w2(h) * weights[rows, slot, None])
        return out.view(hidden.shape)


def test_experts_of_another_kind_are_refused() -> None:
    with pytest.raises(EpsError, match="Unlike has experts that epsc cannot tell from the rest of its code"):
        epsc.trace(made(Unlike), torch.randn(2, 5, HIDDEN))


class Capacity(Block):
    """Drops what is beyond four tokens of an expert: right on small loads only."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.view(-1, HIDDEN)
        ids, weights = self.choose(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, slot = torch.where(ids == e)
            rows, slot = rows[:16], slot[:16]
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, slot, None])
        return out.view(hidden.shape)


def test_a_lift_that_is_off_is_refused_with_the_size_of_the_error() -> None:
    with pytest.raises(EpsError, match=r"it is off by .* of the largest value") as caught:
        epsc.trace(made(Capacity), torch.randn(2, 5, HIDDEN))
    (fault,) = caught.value.diagnostics
    assert fault.code == "mismatch"
    assert fault.span is not None
    assert "index_add_" in fault.span.source.line(fault.span.line)
