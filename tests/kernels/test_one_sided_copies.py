"""One-sided transfers of single copies, and rooms that overflow: kernels against torch, all ranks in one process."""

import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from epsc import driver
from epsc.ir.source import Source
from tests.kernels.test_one_sided import LAYER, Memory
from tests.programs.ranks import load_program

HIDDEN, EXPERTS, TOP_K, EP, MOST = 40, 6, 2, 2, 6
GUARD = 8
"""Rows behind the room, which nobody may write."""


@pytest.fixture
def program(tmp_path: Path, interpreted: None) -> ModuleType:
    layer = driver.understand(
        Source("moe.eps", LAYER.format(hidden=HIDDEN, experts=EXPERTS, top_k=TOP_K, ep=EP, most=MOST))
    )
    file = tmp_path / "moe_put.py"
    file.write_text(driver.write(driver.plan(layer, "put")).text)
    return load_program(str(file))


class Ranks:
    groups = (range(0),)
    """Of local experts, whose rows are moved one after the other; an empty one is all of them."""
    columns: tuple[tuple[int, int], ...] = ((0, HIDDEN),)
    """Those that go home together."""

    """The slots of every rank, tokens and their routing; all memory is NaN, or numbers that nobody may use."""

    def __init__(self, program: ModuleType, kernels: bool, tokens: tuple[int, ...], choose: str, **ways: Any) -> None:
        sizes = ("sent", "combine", EXPERTS, TOP_K, HIDDEN, HIDDEN)
        wanted = program.Slots.regions(*sizes, torch.float32, **ways)
        self.room = program.Slots.room_for(EXPERTS, TOP_K, ways.get("room", 0.0))
        blocks = [
            {name: self.empty(name, *of, ways.get("straight", False)) for name, of in wanted.items()} for _ in range(EP)
        ]
        # What asks for the type of its device gets the kernels, which Triton interprets on the CPU.
        device = SimpleNamespace(type="cuda" if kernels else "cpu")
        self.memories = [Memory(rank, blocks, device) for rank in range(EP)]
        self.slots = [program.Slots(memory, *sizes, **ways) for memory in self.memories]
        self.xs, self.chosen, self.weights = [], [], []
        for rank, count in enumerate(tokens):
            numbers = torch.Generator().manual_seed(rank)
            keys = torch.rand(count, EXPERTS, generator=numbers)
            keys[:, : EXPERTS // EP] += 10 * (choose == "first rank")
            self.chosen.append(keys.topk(TOP_K).indices)
            self.xs.append(torch.randn(count, HIDDEN, generator=numbers))
            self.weights.append(torch.rand(count, TOP_K, generator=numbers))
        for own, e, w in zip(self.slots, self.chosen, self.weights, strict=True):
            own.tell(e, w, *own.count(e))

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, straight: bool) -> torch.Tensor:
        if not dtype.is_floating_point:
            return torch.full(shape, -(10**6), dtype=dtype)
        if name == "sent rows" and straight:
            return torch.full((shape[0] + GUARD, shape[1]), torch.nan, dtype=dtype)
        return torch.full(shape, torch.nan, dtype=dtype)

    def dispatch(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Places, ends and rows of every rank, as its products read them."""
        if self.slots[0].straight:
            aimed = [own.aim() for own in self.slots]
            for group in self.groups:
                for own, x, e, (_, _, target) in zip(self.slots, self.xs, self.chosen, aimed, strict=True):
                    own.put_copies(x, e, target, group=group)
            rows = [own.own("rows") for own in self.slots]
            return [(place, ends, mine) for (place, ends, _), mine in zip(aimed, rows, strict=True)]
        for own, x, e in zip(self.slots, self.xs, self.chosen, strict=True):
            own.put_rows(x, e)
        found = []
        for own, x in zip(self.slots, self.xs, strict=True):
            rows = torch.full((own.rows + GUARD, HIDDEN), torch.nan)
            place, ends = own.locate()
            for group in self.groups:
                own.expand(x, place, rows, ends=ends if group else None, group=group)
            found.append((place, ends, rows))
        return found

    def layer(self, addend: bool) -> list[torch.Tensor]:
        """Dispatch, a product that is its input times its expert's number, and combine."""
        for own, (place, ends, rows) in zip(self.slots, self.dispatch(), strict=True):
            count = int(ends[-1])
            assert not rows[:count].isnan().any()
            assert rows[count:].isnan().all()
            counts = ends.diff(prepend=ends.new_zeros(1))
            factor = torch.arange(own.first, own.first + own.local).repeat_interleave(counts) + 1
            rows[:count] *= factor.unsqueeze(1)
            for first, stop in self.columns:
                some = rows[:, first:stop].contiguous()
                if not own.apart:
                    own.put_sums(some, place, first=first)
                for group in self.groups if own.apart else ():
                    own.put_back(some, place, ends=ends if group else None, group=group, first=first)
        outs = []
        for own, x, e, w in zip(self.slots, self.xs, self.chosen, self.weights, strict=True):
            out = torch.full_like(x, torch.nan)
            for first, stop in self.columns:
                some = out[:, first:stop]
                more = (torch.ones_like(x)[:, first:stop],) if addend else ()
                if own.apart:
                    own.sum_copies(w, some, *more, first=first)
                else:
                    own.sum_ranks(e, some, *more, first=first)
            torch.testing.assert_close(out, x * ((e + 1) * w).sum(1, keepdim=True) + addend, rtol=1e-5, atol=1e-5)
            outs.append(out)
        return outs


@pytest.mark.parametrize("tokens", [(6, 3), (0, 5)])
@pytest.mark.parametrize(
    "ways",
    [{"straight": True, "apart": True}, {"straight": True}, {"apart": True, "room": 2.0}],
    ids=lambda ways: "-".join(ways),
)
def test_kernels_and_torch(program: ModuleType, tokens: tuple[int, ...], ways: dict[str, Any]) -> None:
    by_torch, by_kernels = (
        Ranks(program, kernels, tokens, "any", **ways).layer(addend=bool(tokens[0])) for kernels in (False, True)
    )
    for a, b in zip(by_torch, by_kernels, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "ways", [{"straight": True, "apart": True}, {"straight": True}, {"apart": True}], ids=lambda ways: "-".join(ways)
)
@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
def test_groups_and_columns(program: ModuleType, kernels: bool, ways: dict[str, Any]) -> None:
    """In pieces it is the same. Nothing of a group may be touched by the others: what is missing would be NaN."""
    ranks = Ranks(program, kernels, (6, 3), "any", **ways)
    ranks.groups, ranks.columns = (range(1), range(1, 3)), ((0, 16), (16, HIDDEN))
    ranks.layer(addend=True)
    without = Ranks(program, kernels, (6, 3), "any", **ways)
    without.groups = (range(1),)
    for own, (_, ends, rows) in zip(without.slots, without.dispatch(), strict=True):
        count = int(ends[0])
        assert not rows[:count].isnan().any() and rows[count:].isnan().all(), own.rank


@pytest.mark.parametrize("straight", [True, False])
def test_rows_that_are_too_many_for_a_room(program: ModuleType, straight: bool) -> None:
    """Every rank notes the same rows of the same rank, and nobody writes past the room."""
    ways = {"straight": straight, "apart": True, "room": 1.25}
    ranks = Ranks(program, True, (6, 4), "first rank", **ways)
    assert ranks.room == 15
    for memory, (place, ends, rows) in zip(ranks.memories, ranks.dispatch(), strict=True):
        assert memory.fault.tolist()[:4] == [0, 1, 20, 0]  # in forward 1 rank 0 gets 20 rows
        assert int(ends[-1]) == (15 if memory.rank == 0 else 0)
        known = torch.cat([place[0, :6].flatten(), place[1, :4].flatten()])  # of tokens that are there
        assert sorted(known[known >= 0].tolist()) == list(range(int(ends[-1])))
        assert rows[int(ends[-1]) :].isnan().all()
    said = [own.overflow(own.memory.fault.tolist()[2 : 2 + EP]) for own in ranks.slots]
    assert said[0] == said[1]
    assert "rank 0 gets 20 rows, and there is room for 15" in said[0]
    for own in ranks.slots:
        host = object.__new__(program.Symmetric)  # as one finds what its device noted
        host.told, host.slots = own.memory.fault, [own]
        with pytest.raises(program.Overflow) as error:
            host.check()
        assert str(error.value) == f"{said[0]}. Nothing that came out since is right"
    on_cpu = Ranks(program, False, (6, 4), "first rank", **ways)
    for own in on_cpu.slots:
        own.memory.overflowed = lambda: None  # the other rank is in this process
        with pytest.raises(program.Overflow) as error:
            own.aim() if straight else own.locate()
        assert str(error.value) == said[0]


def test_rows_that_just_fit(program: ModuleType) -> None:
    ranks = Ranks(program, True, (6, 2), "first rank", straight=True, room=16 / 12)
    assert ranks.room == 16
    for memory, (_, ends, rows) in zip(ranks.memories, ranks.dispatch(), strict=True):
        assert not memory.fault.any()
        assert int(ends[-1]) == (16 if memory.rank == 0 else 0)
        assert rows[16:].isnan().all()


def test_what_was_found_first_stays(program: ModuleType) -> None:
    """Rows of a forward after one that went wrong say nothing: they may be torn."""
    ranks = Ranks(program, True, (6, 4), "first rank", straight=True, room=1.25)
    late, vain = ranks.memories
    late.fault[1], vain.fault[0] = 7, 3
    late.forward[0] = vain.forward[0] = 8
    for own in ranks.slots:
        own.aim()
    assert late.fault.tolist()[:4] == [0, 7, 0, 0]
    assert vain.fault.tolist()[:4] == [3, 0, 0, 0]


def test_nobody_waits_in_a_forward_after_rows_overflowed(program: ModuleType) -> None:
    """Ranks stop after different forwards: the others find no signal of them, and must not look for one. In the
    forward itself they wait as ever, so that none goes on before all have found out."""
    signals, given_up = torch.zeros(EP, dtype=torch.int32), torch.zeros(EP, dtype=torch.int32)
    forward, fault = torch.tensor([2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    program.wait_kernel[(1,)](signals, given_up, forward, fault, 0, 2**31 - 1, RANKS=EP)
    assert int(fault[0]) == 1
    fault[:] = torch.tensor([0, 2])
    later = threading.Timer(0.3, lambda: signals.fill_(2))
    later.start()
    program.wait_kernel[(1,)](signals, given_up, forward, fault, 0, 2**31 - 1, RANKS=EP)
    later.join()
    assert fault.tolist() == [0, 2]
