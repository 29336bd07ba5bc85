"""One-sided transfers by kernels against those by torch: several ranks in one process, each with its own memory."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from epsc import driver, plans
from epsc.ir.source import Source
from tests.programs.ranks import load_program

LAYER = """
layer moe(x: fp32[tokens, {hidden}]) {{
  r    = route(x, experts={experts}, top_k={top_k}, score=softmax)
  sent = dispatch(x, r)
  also = dispatch(x, r)
  home = combine(gemm(also, up2, {hidden}), r)
  more = dispatch(x, r)
  last = combine(gemm(more, up3, {hidden}), r)
  return combine(gemm(sent, up, {hidden}), r) + home + last
}}
cluster c {{ ep = {ep} }}
tokens 1 .. {most}
schedule put {{
  use put for sent, combine, also, home, last
  use copy for more
  dedup sent
  local_reduce combine, last
}}
"""
"""Between them the three dispatches travel in every way, so that a program of it has all kernels."""


class Memory:
    """What `Symmetric` is to `Slots`, for one of several ranks of this process."""

    def __init__(self, rank: int, blocks: list[dict[str, torch.Tensor]], device: Any, most: int = 0) -> None:
        self.rank, self.blocks, self.device, self.most = rank, blocks, device, most
        self.slots: list[Any] = []
        self.forward = torch.ones(1, dtype=torch.int32)
        self.fault = torch.zeros(2 + len(blocks), dtype=torch.int32)
        self.pointers = {
            name: torch.tensor([block[name].data_ptr() for block in blocks], dtype=torch.int64) for name in blocks[0]
        }

    def of(self, rank: int, name: str) -> torch.Tensor:
        return self.blocks[rank][name]

    def own(self, name: str) -> torch.Tensor:
        return self.of(self.rank, name)


@pytest.fixture
def program(request: pytest.FixtureRequest, tmp_path: Path, interpreted: None) -> Iterator[ModuleType]:
    hidden, experts, top_k, ep, most, *by_load = request.param
    text = LAYER.format(hidden=hidden, experts=experts, top_k=top_k, ep=ep, most=most + 5 * len(by_load))
    if by_load:  # one of two plans has room for its own load only
        text += f"schedule by_load = put when tokens <= {most} else serial"
    layer = driver.understand(Source("moe.eps", text))
    file = tmp_path / "moe_put.py"
    file.write_text(plans.write(plans.plans(layer, "by_load" if by_load else "put")).text)
    module = load_program(str(file))
    module.sizes = request.param  # type: ignore[attr-defined]
    yield module


def ranks(program: ModuleType, kernels: bool) -> list[Any]:
    """The slots of every rank; all memory is NaN, or numbers that nobody may use."""
    hidden, experts, top_k, ep, most, *by_load = program.sizes
    more = {"most": most} if by_load else {}
    wanted = program.Slots.regions("sent", "combine", experts, top_k, hidden, hidden, torch.float32, **more)
    blocks = [
        {
            name: torch.full(shape, torch.nan if dtype.is_floating_point else -(10**6), dtype=dtype)
            for name, (shape, dtype) in wanted.items()
        }
        for _ in range(ep)
    ]
    # What asks for the type of its device gets the kernels, which Triton interprets on the CPU.
    device = SimpleNamespace(type="cuda" if kernels else "cpu")
    memories = [Memory(rank, blocks, device, most) for rank in range(ep)]
    return [program.Slots(memory, "sent", "combine", experts, top_k, hidden, hidden) for memory in memories]


def run(program: ModuleType, tokens: list[int], choose: str, copy: bool, kernels: bool) -> list[torch.Tensor]:
    """Dispatch, a product that is its input times its expert's number, and combine, of all ranks in turn."""
    hidden, experts, top_k, ep = program.sizes[:4]
    slots = ranks(program, kernels)
    xs, chosen, weights = [], [], []
    for rank, count in enumerate(tokens):
        numbers = torch.Generator().manual_seed(rank)
        xs.append(torch.randn(count, hidden, generator=numbers))
        keys = torch.rand(count, experts, generator=numbers)
        keys[:, 0] += 10 * (choose == "one")  # all of them want expert 0
        keys[:, experts // ep :] -= 10 * (choose == "first rank")
        chosen.append(keys.topk(top_k).indices)
        weights.append(torch.rand(count, top_k, generator=numbers))
    for own, x, e, w in zip(slots, xs, chosen, weights, strict=True):
        own.tell(e, w, *own.count(e))
        own.copy_rows(x) if copy else own.put_rows(x, e)
    for own, x in zip(slots, xs, strict=True):
        place, ends = own.locate()
        rows = torch.full((own.rows, hidden), torch.nan)
        own.expand(x, place, rows)
        count = int(ends[-1])
        assert not rows[:count].isnan().any()
        assert rows[count:].isnan().all()
        counts = ends.diff(prepend=ends.new_zeros(1))
        factor = torch.arange(own.first, own.first + own.local).repeat_interleave(counts) + 1
        rows[:count] *= factor.unsqueeze(1)
        own.put_sums(rows, place)
    outs = []
    for own, x, e in zip(slots, xs, chosen, strict=True):
        out = torch.full_like(x, torch.nan)
        own.sum_ranks(e, out)
        outs.append(out)
    for out, x, e, w in zip(outs, xs, chosen, weights, strict=True):
        torch.testing.assert_close(out, x * ((e + 1) * w).sum(1, keepdim=True), rtol=1e-5, atol=1e-5)
    return outs


@pytest.mark.parametrize(
    "program, tokens, choose, way",
    [
        ((96, 8, 2, 2, 16), [9, 16], "any", "put"),
        ((96, 8, 2, 2, 16), [9, 16], "first rank", "put"),  # nothing for the other one
        ((96, 8, 2, 2, 16), [9, 16], "one", "copy"),
        (
            (300, 12, 5, 3, 8),
            [8, 0, 1],
            "any",
            "put",
        ),  # more columns than a program moves at once; a rank without tokens
        ((300, 12, 5, 3, 8), [8, 0, 1], "one", "copy"),
        ((32, 6, 6, 2, 5), [0, 5], "any", "put"),  # every expert
        ((32, 4, 1, 1, 7), [3], "any", "put"),  # one rank
        ((96, 8, 2, 2, 16, "by load"), [9, 16], "any", "put"),
    ],
    indirect=["program"],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_kernels_and_torch(program: ModuleType, tokens: list[int], choose: str, way: str) -> None:
    by_torch = run(program, tokens, choose, way == "copy", kernels=False)
    by_kernels = run(program, tokens, choose, way == "copy", kernels=True)
    for a, b in zip(by_torch, by_kernels, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("program", [(32, 4, 1, 2, 4)], indirect=True, ids=str)
def test_signals(program: ModuleType) -> None:
    """A wait ends at the number of its forward or a later one, and tells which rank it waited for in vain."""
    blocks = [torch.zeros(3, 2, dtype=torch.int32) for _ in range(2)]
    given_up = torch.zeros(2, dtype=torch.int32)
    at = torch.tensor([block.data_ptr() for block in blocks])
    forward, fault = torch.tensor([5], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    step = 1
    program.signal_kernel[(1,)](at, forward, step * 2 + 1, RANKS=2)
    assert [block.tolist() for block in blocks] == [[[0, 0], [0, 5], [0, 0]]] * 2
    program.wait_kernel[(1,)](blocks[0][step], given_up, forward, fault, step * 2, 3, RANKS=2)
    assert int(fault[0]) - 1 == step * 2 + 0  # rank 0 has not signalled
    fault.zero_()
    blocks[0][step, 0] = 6  # it is ahead
    program.wait_kernel[(1,)](blocks[0][step], given_up, forward, fault, step * 2, 3, RANKS=2)
    assert int(fault[0]) == 0
    # A rank gave this forward up: no looking on, however long others may be waited for, and whatever it signals since.
    for signalled in (0, 5, 6):
        fault.zero_()
        given_up[0], blocks[0][step, 0] = 5, signalled
        program.wait_kernel[(1,)](blocks[0][step], given_up, forward, fault, step * 2, 10**9, RANKS=2)
        assert int(fault[0]) == -(1 + step * 2 + 0)
    # Nor once a wait was in vain; and what is told is the first.
    given_up[0], blocks[0][step] = 0, torch.tensor([5, 4])
    program.wait_kernel[(1,)](blocks[0][step], given_up, forward, fault, step * 2, 10**9, RANKS=2)
    assert int(fault[0]) == -(1 + step * 2 + 0)
    # A forward before this one, that all gave up, is over.
    fault.zero_()
    given_up[:], blocks[0][step] = 4, torch.tensor([5, 5])
    program.wait_kernel[(1,)](blocks[0][step], given_up, forward, fault, step * 2, 3, RANKS=2)
    assert int(fault[0]) == 0
