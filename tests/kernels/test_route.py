"""The kernel of a router chooses and weighs what the torch function of the same router does, for every form of them.

topk may take any of equal experts, so those that chose differently would both be right: the inputs have no equals.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epsc import driver
from epsc.codegen.functions import route_function
from epsc.codegen.triton_kernels import ordering, route
from epsc.ir.attrs import Choose, GroupBy, RouteAttrs, Score
from epsc.ir.source import Source

Load = Callable[[str], Any]
Routers = tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], Callable[..., tuple[torch.Tensor, torch.Tensor]]]
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.eps"))
LOGITS = "def router_logits(x, weight):\n    return x.float() @ weight.float().T\n\n\n"
"""As in programs, on a CPU."""


def routers(load: Load, a: RouteAttrs) -> Routers:
    """Torch's, and Triton's."""
    torch_ = route_function("by_torch", a)
    text = "\n".join([*torch_.head, *torch_.doc_lines, *torch_.body])
    made = load(f"{LOGITS}{text}\n\n\n{ordering()}{route('by_triton', a)}")
    return made.by_torch, made.by_triton


def inputs(a: RouteAttrs, tokens: int, seed: int) -> list[torch.Tensor]:
    """Rows and weights such that x @ weight.T is exactly `logits`, and biases."""
    numbers = torch.Generator().manual_seed(seed)
    # Logits that lie 1 / 64 or more apart, in [-8, 8] for up to 1024 experts: so do not meet as scores in fp32.
    steps = torch.stack([torch.randperm(a.experts, generator=numbers) for _ in range(tokens)]) if tokens else None
    x = torch.empty(0, a.experts) if steps is None else (steps - a.experts // 2) / 64
    biases = [torch.randn(a.experts, generator=numbers) for there in (a.bias, a.choice_bias) if there]
    return [x, torch.eye(a.experts), *biases]


def least_gap(a: RouteAttrs, given: list[torch.Tensor]) -> float:
    """How close two numbers come of those that are compared: what experts, or groups, are chosen by."""
    x, _, *biases = given
    logits = x + (biases[0] if a.bias else 0)
    score = torch.sigmoid if a.score is Score.SIGMOID else lambda y: torch.softmax(y, -1)
    choice = (score(logits) if a.choose is Choose.BY_SCORE else logits) + (biases[-1] if a.choice_bias else 0)
    groups = choice.view(len(x), a.groups, -1)
    best = groups.topk(2, dim=-1).values.sum(-1) if groups.shape[2] > 1 else groups.amax(-1)
    ranked = [each.sort(-1).values.diff().amin() for each in (choice, groups.amax(-1), best) if each.shape[1] > 1]
    # Relative to what rounding is: the scores of a softmax over many experts are small.
    return min((float(gap) for gap in ranked), default=1.0) / (float(choice.abs().max()) or 1.0)


def distinct(a: RouteAttrs, tokens: int, seed: int) -> list[torch.Tensor]:
    """Inputs in which no two numbers lie close that are compared. Scores of logits alone do not, as these are."""
    found = inputs(a, tokens, seed)
    while tokens and (a.bias or a.choice_bias or a.groups > 1) and least_gap(a, found) < 1e-6:
        seed += 100
        found = inputs(a, tokens, seed)
    return found


def check(made: Routers, a: RouteAttrs, given: list[torch.Tensor]) -> None:
    by_torch, by_triton = made
    experts, weights = by_triton(*given)
    wanted, wanted_weights = by_torch(*given)
    assert experts.dtype == torch.int64 and weights.dtype == torch.float32
    assert torch.equal(experts, wanted)
    torch.testing.assert_close(weights, wanted_weights)


@st.composite
def attributes(draw: st.DrawFn) -> RouteAttrs:
    groups = draw(st.sampled_from([1, 1, 2, 3, 4]))
    size = draw(st.integers(1, 12))
    kept = draw(st.integers(1, groups))
    weighted = draw(st.booleans())
    return RouteAttrs(
        experts=groups * size,
        top_k=draw(st.integers(1, min(16, kept * size))),
        score=draw(st.sampled_from(Score)),
        choose=draw(st.sampled_from(Choose)),
        choice_bias=draw(st.booleans()),
        bias=draw(st.booleans()),
        groups=groups,
        top_groups=kept,
        group_by=draw(st.sampled_from(GroupBy)),
        renorm=weighted and draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
        threshold=draw(st.sampled_from([0.0, 0.0, 0.1])),
        weighted=weighted,
    )


@given(attributes(), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_router(load: Load, a: RouteAttrs, tokens: int, seed: int) -> None:
    check(routers(load, a), a, distinct(a, tokens, seed))


def of_examples() -> list[RouteAttrs]:
    found: dict[RouteAttrs, None] = {}
    for path in EXAMPLES:
        layer, _ = driver.check(Source(path.name, path.read_text()))
        found |= dict.fromkeys(n.attrs for n in layer.graph.nodes if isinstance(n.attrs, RouteAttrs))
    return list(found)


@pytest.mark.parametrize("a", of_examples(), ids=lambda a: f"{a.top_k} of {a.experts}")
def test_routers_of_examples(load: Load, a: RouteAttrs) -> None:
    check(routers(load, a), a, distinct(a, 5, 1))


@pytest.mark.parametrize("tokens", [1, 2])
def test_as_many_experts_as_there_may_be(load: Load, tokens: int) -> None:
    a = RouteAttrs(1024, 16, renorm=True)
    check(routers(load, a), a, inputs(a, tokens, 2))


def test_of_equal_experts_the_first(load: Load) -> None:
    a = RouteAttrs(6, 3)
    _, by_triton = routers(load, a)
    experts, weights = by_triton(torch.tensor([[0.0, 1, 0, 1, 0, 0], [2.0] * 6]), torch.eye(6))
    assert experts.tolist() == [[1, 3, 0], [0, 1, 2]]
    assert weights[1].tolist() == pytest.approx([1 / 6] * 3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy tells of NaN, by which Triton is interpreted
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "a",
    [
        RouteAttrs(12, 3),
        RouteAttrs(12, 3, choose=Choose.BY_LOGIT),
        RouteAttrs(12, 3, Score.SIGMOID, renorm=True),
        RouteAttrs(12, 3, Score.SIGMOID, choice_bias=True, groups=4, top_groups=2, group_by=GroupBy.TOP2),
    ],
    ids=lambda a: f"{a.score} {a.choose} {a.groups}",
)
def test_what_is_no_number_gives_experts_that_exist(load: Load, a: RouteAttrs, value: float) -> None:
    _, by_triton = routers(load, a)
    x, *more = inputs(a, 4, 3)
    made = [x.clone() for _ in range(2)]
    made[0][:, 5] = value
    made[1][:] = value
    for logits in made:
        # Not by a product with the identity: it makes NaN of every expert.
        by_triton.__globals__["router_logits"] = lambda x, weight: x
        experts, weights = by_triton(logits, *more)
        assert experts.min() >= 0 and experts.max() < a.experts
        assert all(len(set(row)) == a.top_k for row in experts.tolist())
    if value != value:
        assert (experts[0] == torch.arange(3)).all() or a.groups > 1
        assert weights.isnan().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_is_chosen_first_as_by_topk(load: Load) -> None:
    a = RouteAttrs(8, 2, Score.SIGMOID)
    by_torch, by_triton = routers(load, a)
    by_triton.__globals__["router_logits"] = lambda x, weight: x
    x = inputs(a, 3, 4)[0]
    x[:, 6] = torch.nan
    for made in (by_torch, by_triton):
        experts, weights = made(x, torch.eye(8))
        assert (experts[:, 0] == 6).all() and weights[:, 0].isnan().all() and not weights[:, 1].isnan().any()
    assert torch.equal(by_triton(x, torch.eye(8))[0], by_torch(x, torch.eye(8))[0])


def test_a_bias_of_the_choice_does_not_weigh(load: Load) -> None:
    a = RouteAttrs(4, 1, Score.SIGMOID, choice_bias=True)
    _, by_triton = routers(load, a)
    bias = torch.tensor([0.0, 0, 0, 9])
    experts, weights = by_triton(torch.tensor([[3.0, 2, 1, 0]]), torch.eye(4), bias)
    assert experts.tolist() == [[3]] and weights.tolist() == [[0.5]]
    assert routers(load, replace(a, choice_bias=False))[1](torch.tensor([[3.0, 2, 1, 0]]), torch.eye(4))[0].item() == 0
