"""Stand-ins: the results, signature and state of the block that they replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import epsc
from epsc.api.compiling import planned
from epsc.api.machines import equal_nodes
from epsc.api.tracing import trace
from epsc.ir.errors import EpsError
from tests.trace.ranks import Ranks
from tests.trace.styles import EXPERTS, HIDDEN, STYLES, Biased, Block, Dense, IndexAdd, Stacked
from tests.trace.test_styles import Odd
from tests.trace.work import Tower, block_of, off

LIMIT = 1e-5
ONE_SIDED = "use copy for sent  use put for back  local_reduce back"
SPLIT = "split sent, h, back by expert_group into 2"


@pytest.mark.parametrize("kind", STYLES, ids=lambda kind: kind.__name__)
def test_a_stand_in_gives_what_the_block_gives(kind: type[nn.Module]) -> None:
    block = block_of(kind.__name__)
    compiled = epsc.compile(block, schedule=SPLIT)
    for shape in ((2, 5), (1, 1), (3, 40)):
        x = torch.randn(*shape, HIDDEN)
        with torch.no_grad():
            wanted = block(x)
            assert wanted.abs().max() > 0.01
            assert off(compiled(x), wanted) < LIMIT


def test_plans_by_load_are_one_program() -> None:
    torch.manual_seed(0)
    block = block_of("IndexAdd")
    schedules = f"schedule serving = cut when tokens <= 9 else serial  schedule cut {{ {SPLIT} }}"
    compiled = epsc.compile(block, schedule=schedules, tokens=(1, 200))
    (runner,) = compiled.runner_of
    for shape, plan in (((2, 4), "cut"), ((3, 40), "serial"), ((1, 9), "cut")):
        x = torch.randn(*shape, HIDDEN)
        with torch.no_grad():
            assert off(compiled(x), block(x)) < LIMIT
        assert runner.layer.plan.name == plan
    compiled.most = 10
    with torch.no_grad():
        compiled(torch.randn(1, 4, HIDDEN))
        assert runner.layer.plan.name == "serial"
        with pytest.raises(ValueError, match="rank 0 has 12 tokens, and was told that no rank has more than 10"):
            compiled(torch.randn(1, 12, HIDDEN))


def test_between_machines_rows_travel_by_an_all2all() -> None:
    """Whatever is predicted to be faster on one; and who asks for more is told at the line that asks."""
    assert [equal_nodes(names) for names in ("aaaa", "aabb", "aab", "ab")] == [1, 2, 3, 2]
    traced, cpu = trace(block_of("IndexAdd"), None), torch.device("cpu")
    assert planned(traced, 4, "auto", 64, cpu, nodes=2).layer.cluster.nodes == 2
    assert planned(traced, 4, ONE_SIDED, 64, cpu).parts[0].schedule.capturable
    with pytest.raises(EpsError, match=r"`copy` cannot carry `sent`: .* the cluster has 2 nodes"):
        planned(traced, 4, ONE_SIDED, 64, cpu, nodes=2)


def test_a_captured_router_feeds_the_layer() -> None:
    torch.manual_seed(0)
    block = Odd().eval()
    compiled = epsc.compile(block)
    x = torch.randn(2, 9, HIDDEN)
    with torch.inference_mode():
        assert off(compiled(x), block(x)) < LIMIT
    assert "gate.weight" in dict(compiled.around.named_parameters())


@pytest.mark.parametrize("kind", [IndexAdd, Stacked, Dense], ids=lambda kind: kind.__name__)
def test_the_state_dict_is_that_of_the_block(kind: type[nn.Module]) -> None:
    block = block_of(kind.__name__)
    compiled = epsc.compile(block)
    state = block.state_dict()
    assert list(compiled.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in compiled.state_dict().items())
    torch.manual_seed(7)
    other = {name: 0.2 * torch.randn_like(tensor) for name, tensor in state.items()}
    # Inside another module, with a prefix.
    outer = nn.ModuleDict({"block": compiled})
    outer.load_state_dict({f"block.{name}": tensor for name, tensor in other.items()})
    fresh = kind().eval()
    fresh.load_state_dict(outer["block"].state_dict())
    x = torch.randn(1, 11, HIDDEN)
    with torch.no_grad():
        assert off(compiled(x), fresh(x)) < LIMIT


def test_bf16_and_autocast() -> None:
    block = block_of("Dense")
    x = torch.randn(1, 30, HIDDEN)
    with torch.no_grad():
        wanted = block(x)
        compiled = epsc.compile(block)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = compiled(x.bfloat16())
        assert made.dtype == torch.bfloat16
        assert off(made.float(), wanted) < 2e-2
        halved = epsc.compile(block.bfloat16())(x.bfloat16())
    assert halved.dtype == torch.bfloat16
    assert off(halved.float(), wanted) < 3e-2


def test_a_router_wider_than_its_block_is_not_rounded() -> None:
    block = block_of("Biased").bfloat16()
    assert isinstance(block, Biased)
    torch.manual_seed(3)
    block.bias = nn.Buffer(8 + 0.05 * torch.randn(EXPERTS))
    rounded = block_of("Biased").bfloat16()
    rounded.load_state_dict(block.state_dict())
    compiled = epsc.compile(block)
    assert compiled.traced[1].router is not None  # fused, and in fp32 all the same
    x = torch.randn(1, 200, HIDDEN, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = block(x)
        assert off(compiled(x).float(), wanted.float()) < 2e-2
        assert off(rounded(x).float(), wanted.float()) > 0.1


def test_equal_plans_share_lanes_and_not_weights() -> None:
    torch.manual_seed(0)
    model = Tower([IndexAdd, IndexAdd]).eval()
    x = torch.randn(2, 6, HIDDEN)
    with torch.no_grad():
        wanted = model(x)
        swapped = epsc.compile_model(model)
        assert [type(block) for block in swapped.blocks] == [epsc.Compiled] * 2
        assert off(swapped(x), wanted) < LIMIT
    first, second = (block.runner_of[0] for block in swapped.blocks)
    assert first is second


def refusal(code: str, module: object, **more: object) -> str:
    with pytest.raises(EpsError) as caught:
        epsc.compile(module, **more)  # type: ignore[arg-type]
    fault = caught.value.diagnostics[0]
    assert fault.code == code
    return str(fault)


def test_errors() -> None:
    assert "has no parameters" in refusal("not-moe", nn.ReLU().eval())
    assert "chooses no experts" in refusal("not-moe", nn.Sequential(nn.Linear(8, 8)).eval())
    assert "training mode" in refusal("training", IndexAdd().train())
    with torch.device("meta"):
        assert "meta device" in refusal("meta-weights", IndexAdd().eval())
    assert "epsc knows float32, bfloat16, float16" in refusal("bad-dtype", IndexAdd().double().eval())
    assert "cannot be called with one tensor" in refusal("bad-example", nn.Bilinear(8, 8, 8).eval())
    assert "not str" in refusal("not-a-module", "moe")
    assert "the layer has no `snt`" in refusal("unknown-target", block_of("IndexAdd"), schedule="use dense for snt")


def test_a_module_that_was_changed_after_its_trace_is_refused() -> None:
    block = block_of("IndexAdd")
    traced = epsc.trace(block, torch.randn(1, 4, HIDDEN))
    assert isinstance(block, Block)
    block.experts[0] = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(EpsError, match="IndexAdd has changed since it was traced"):
        traced.tensors()


def test_what_no_cuda_graph_can_hold_is_refused() -> None:
    x = torch.randn(1, 4, HIDDEN)
    with pytest.raises(EpsError, match="reads counts on the host in the middle of a pass") as caught:
        epsc.capture(epsc.compile(block_of("IndexAdd")), x)
    assert "one-sided" in str(caught.value.diagnostics[0].help)
    with pytest.raises(EpsError, match="needs inputs on CUDA, not cpu"):
        epsc.capture(epsc.compile(block_of("IndexAdd"), schedule=ONE_SIDED, tokens=(1, 64)), x)
    with pytest.raises(EpsError, match="nothing in IndexAdd is compiled"):
        epsc.capture(block_of("IndexAdd"), x)


def test_gradients_are_refused() -> None:
    compiled = epsc.compile(block_of("IndexAdd"))
    x = torch.randn(1, 4, HIDDEN, requires_grad=True)
    with pytest.raises(EpsError, match="compiled for inference"):
        compiled(x)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["IndexAdd", "Stacked", "Named"])
def test_on_two_ranks(kind: str, ranks_of: Callable[[int], Ranks]) -> None:
    assert max(ranks_of(2).run("style", kind, SPLIT if kind == "Stacked" else None)) < LIMIT


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["IndexAdd", "Stacked"])
def test_ranks_read_their_own_experts_from_a_file(kind: str, ranks_of: Callable[[int], Ranks], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(block_of(kind).state_dict(), path)
    assert max(ranks_of(2).run("from_file", str(path), kind)) < LIMIT


@pytest.mark.distributed
def test_a_missing_group_is_an_error(ranks_of: Callable[[int], Ranks]) -> None:
    assert (
        ranks_of(2).run("error", "no-group")
        == [("no-group", "2 ranks run, and nobody said which of them share the experts")] * 2
    )


class Flagged(IndexAdd):
    def forward(self, hidden: torch.Tensor, twice: bool = False, mask: torch.Tensor | None = None) -> torch.Tensor:
        out = super().forward(hidden)
        return out * (2 if twice else 1) * (1 if mask is None else mask.unsqueeze(-1))


def test_calls_are_those_of_the_block_that_was_traced() -> None:
    torch.manual_seed(0)
    block = Flagged().eval()
    x, mask = torch.randn(2, 5, HIDDEN), torch.rand(2, 5)
    plain, masked = epsc.compile(block), epsc.compile(block, example_inputs=(x, True, mask))
    with torch.no_grad():
        for given in ({"hidden": x}, {"hidden": x, "twice": False}):
            assert off(plain(**given), block(**given)) < LIMIT
        assert off(plain(x, False, None), block(x)) < LIMIT
        assert off(masked(x, True, mask=mask), block(x, True, mask)) < LIMIT
        for wrong in ((x, True), (x, False, mask)):
            with pytest.raises(EpsError, match="Flagged is called in another way than it was traced: `"):
                plain(*wrong)
        with pytest.raises(EpsError, match="argument 2 was True, and is False"):
            masked(x, False, mask)
        with pytest.raises(EpsError, match="argument 3 was a tensor, and is None"):
            masked(x, True)


@pytest.mark.parametrize("schedule", [None, ONE_SIDED])
def test_what_was_compiled_in_inference_mode_runs_and_loads_outside_of_it(schedule: str | None) -> None:
    block, x = block_of("IndexAdd"), torch.randn(1, 9, HIDDEN)
    with torch.inference_mode():
        compiled = epsc.compile(block, schedule=schedule, tokens=(1, 64))
        assert off(compiled(x), block(x)) < LIMIT
    compiled.load_state_dict(block.state_dict())
    with torch.no_grad():
        assert off(compiled(x), block(x)) < LIMIT


@pytest.mark.distributed
def test_experts_that_cannot_be_shared_evenly_are_refused(ranks_of: Callable[[int], Ranks]) -> None:
    for code, message in ranks_of(2).run("error", "five-experts"):
        assert code
        assert "5 experts cannot be shared evenly by ep = 2" in message


def test_training_mode_is_refused_afterwards_too() -> None:
    compiled = epsc.compile(block_of("IndexAdd")).train()
    with pytest.raises(EpsError, match="compiled for inference, and is in training mode"):
        compiled(torch.randn(1, 4, HIDDEN))
