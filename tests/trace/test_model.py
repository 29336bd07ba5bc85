"""Whole models: which blocks are swapped, which are not and who is told, and where weights are read from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import epsc
from epsc.ir.errors import EpsError
from tests.trace.ranks import Ranks
from tests.trace.styles import HIDDEN, TOP_K, IndexAdd
from tests.trace.test_styles import Unlike
from tests.trace.work import Tower, off

LIMIT = 1e-5


def test_blocks_that_stay_are_named_with_the_reason() -> None:
    torch.manual_seed(0)
    model = Tower([IndexAdd, Unlike, Unlike]).eval()
    x = torch.randn(2, 6, HIDDEN)
    with torch.no_grad():
        wanted = model(x)
        with pytest.warns(UserWarning, match="and 1 more like it of Tower stays as it is, not compiled") as told:
            swapped = epsc.compile_model(model)
        assert off(swapped(x), wanted) < LIMIT
    (one,) = told
    assert "`blocks.1`" in str(one.message)
    assert "Unlike has experts that epsc cannot tell from the rest of its code" in str(one.message)
    assert "test_styles.py" in str(one.message)
    assert [type(block).__name__ for block in model.blocks] == ["Compiled", "Unlike", "Unlike"]


def test_a_model_whose_blocks_all_stay_is_refused_with_the_reason_of_a_block() -> None:
    with pytest.raises(EpsError, match="Unlike has experts that epsc cannot tell"):
        epsc.compile_model(Tower([Unlike]).eval())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(EpsError, match="Sequential has no MoE blocks"):
        epsc.compile_model(nn.Sequential(nn.Linear(8, 8)).eval())


class Slice:
    """What a file gives for a name: it notes what is read of it."""

    def __init__(self, tensor: Tensor, read: list[int]) -> None:
        self.tensor, self.read = tensor, read

    def __getitem__(self, index: Any) -> Tensor:
        found = self.tensor[index].clone()
        self.read.append(found.numel())
        return found


def test_of_a_checkpoint_only_the_own_experts_are_read() -> None:
    from epsc.api.compiling import weights_of
    from epsc.api.state import State

    torch.manual_seed(0)
    from tests.trace.styles import Stacked

    block = Stacked().eval()
    traced = epsc.trace(block, torch.randn(1, 5, HIDDEN))
    read: list[int] = []
    state = State.of(traced, 1, 2)
    get = state.reader(block, {name: Slice(tensor, read) for name, tensor in block.state_dict().items()})  # type: ignore[misc]
    weights = weights_of(traced, state, get, torch.device("cpu"))
    assert torch.equal(weights["up"], block.up[2:])
    assert sum(read) == block.gate.numel() + (block.up.numel() + block.down.numel()) // 2


class Tempered(IndexAdd):
    """Its router, which runs as captured, has a buffer that a checkpoint knows and the code does not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temper", torch.zeros(()))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = (self.gate(x).tanh() + self.temper).topk(TOP_K, dim=-1)
        return ids, weights


class Shifted(Tower):
    def __init__(self) -> None:
        super().__init__([Tempered])
        self.register_buffer("shift", torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + self.shift
        return out


def test_buffers_are_those_of_the_weights_that_are_given(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = Shifted().eval()
    model.blocks[0].temper.fill_(0.7)
    model.shift.fill_(3.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    empty = Shifted().eval()
    for owner in empty.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_parameter(name, nn.Parameter(parameter.to("meta")))
    x = torch.randn(2, 5, HIDDEN)
    compiled = epsc.compile_model(empty, weights=tmp_path)
    with torch.no_grad():
        assert off(compiled(x), model(x)) < LIMIT


def test_weights_are_the_models_or_the_files() -> None:
    model = Tower([IndexAdd]).eval()
    with pytest.raises(EpsError, match=r"Tower has weights, such as `\S+`, and `weights=` gives others"):
        epsc.compile_model(model, weights=model.state_dict())
    with pytest.raises(EpsError, match="IndexAdd has weights, such as"):
        epsc.compile(IndexAdd().eval(), weights=IndexAdd().state_dict())


@pytest.mark.distributed
def test_a_model_on_the_meta_device_is_read_from_a_folder(ranks_of: Callable[[int], Ranks], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = Tower([IndexAdd, IndexAdd]).state_dict()
    names = list(state)
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        save_file({name: state[name] for name in part}, tmp_path / f"model-{i}.safetensors")
    assert max(ranks_of(2).run("model_from_folder", str(tmp_path))) < LIMIT
    (tmp_path / "model-0.safetensors").unlink()
    with torch.device("meta"):
        empty = Tower([IndexAdd, IndexAdd]).eval()
    with pytest.raises(EpsError, match="is not among the weights"):
        epsc.compile_model(empty, weights=tmp_path)
    empty.register_buffer("scale", torch.ones(1, device="meta"))
    with pytest.raises(EpsError, match="has buffers on the meta device, such as `scale`: nobody knows"):
        epsc.compile_model(empty, weights=tmp_path)
    del empty.scale
    with pytest.raises(EpsError, match=r"is no `.safetensors` file, nor a folder of them"):
        epsc.compile_model(empty, weights=tmp_path / "nothing.safetensors")
