"""What the class in a program does besides computing: weights, conditions, choices."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.codegen.layers import written


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[ModuleType]:
    yield from load_program("tiny", "eps", tmp_path)


@pytest.fixture
def oss(tmp_path: Path) -> Iterator[ModuleType]:
    yield from load_program("oss", "grouped", tmp_path)


def load_program(layer: str, schedule: str, folder: Path, without: str = "") -> Iterator[ModuleType]:
    path = folder / "program.py"
    text = written(layer, schedule, ep="1").text
    assert without in text
    path.write_text(text.replace(without, "") if without else text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("program", path)
    assert spec and spec.loader
    program = importlib.util.module_from_spec(spec)
    sys.modules["program"] = program
    spec.loader.exec_module(program)
    yield program
    del sys.modules["program"]


def state(program: ModuleType) -> dict[str, torch.Tensor]:
    """Weights that keep numbers near one, the same ones every time."""
    made = torch.Generator().manual_seed(0)
    return {name: torch.randn(each.shape, generator=made) * each.scale for name, each in program.WEIGHTS.items()}


def make(program: ModuleType, **more: Any) -> Any:
    return program.Tiny(device="cpu", dtype=torch.float32, **more)


def test_loads_a_state_dict(tiny: ModuleType) -> None:
    given = state(tiny)
    layer = make(tiny).load(given)
    assert torch.equal(layer.gate_up, given["gate_up"])
    assert torch.equal(layer.r_weight, given["r.weight"])
    assert not any(p.requires_grad for p in layer.parameters())
    again = make(tiny).load(layer.state_dict())
    assert torch.equal(again.down, given["down"])


def test_loads_files(tiny: ModuleType, tmp_path: Path) -> None:
    given = state(tiny)
    torch.save(given, tmp_path / "weights.pt")
    assert torch.equal(make(tiny).load(tmp_path / "weights.pt").down, given["down"])
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(given, tmp_path / "weights.safetensors")
    assert torch.equal(make(tiny).load(str(tmp_path / "weights.safetensors")).down, given["down"])
    raw = tiny.source(make(tiny), SimpleNamespace(weights=str(tmp_path / "weights.safetensors"), seed=0))
    assert torch.equal(raw("down", 3), given["down"][3])


def test_takes_the_experts_of_its_rank(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    given = state(tiny)
    monkeypatch.setattr(tiny, "EP", 4)
    monkeypatch.setattr(tiny.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(tiny.dist, "get_world_size", lambda group=None: 4)
    monkeypatch.setattr(tiny.dist, "get_rank", lambda group=None: 2)
    monkeypatch.setattr(tiny, "Transport", lambda *args: None)
    assert torch.equal(make(tiny).load(given).gate_up, given["gate_up"][6:9])
    sharded = {**given, "gate_up": given["gate_up"][:3]}
    assert torch.equal(make(tiny).load(sharded).gate_up, given["gate_up"][:3])


def test_all_weights_that_do_not_fit_are_told(tiny: ModuleType) -> None:
    given = state(tiny)
    del given["r.weight"]
    given["down"] = given["down"][:, :5]
    with pytest.raises(ValueError, match="2 weights cannot be loaded") as error:
        make(tiny).load(given)
    assert "r.weight: missing" in str(error.value)
    assert "down: has shape [12, 5, 32], should have [12, 64, 32]" in str(error.value)


def test_other_inputs_are_refused(tiny: ModuleType) -> None:
    layer = make(tiny).load(state(tiny))
    with pytest.raises(
        ValueError, match=r"x should be torch.float32 \[tokens, 64\], but is torch.float32 \[3, 5, 64\]"
    ):
        layer(torch.zeros(3, 5, 64))
    with pytest.raises(ValueError, match=r"but is torch.bfloat16 \[3, 64\]"):
        layer(torch.zeros(3, 64, dtype=torch.bfloat16))


def test_counts_choices(tiny: ModuleType) -> None:
    layer = make(tiny).load(state(tiny))
    layer(torch.randn(2, 64))
    layer(torch.randn(200, 64))
    taken = {gemm for step, gemm in layer.choices if step.startswith("gate_up")}
    assert taken == {"grouped_gemm", "dense_gemm"}


def test_needs_are_checked_when_a_module_is_made(oss: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    oss.Oss(device="cpu", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="`gu = grouped`: on CUDA grouped_mm needs bfloat16"):
        oss.check_grouped(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(oss, "GROUPED", [("gate_up", "gate_up = grouped", ("cpu",), (30,))])
    with pytest.raises(ValueError, match="rows of gate_up have 60 bytes, no multiple of 16"):
        oss.Oss(device="cpu", dtype=torch.bfloat16)
    monkeypatch.setattr(oss, "grouped_mm", None)
    with pytest.raises(ValueError, match="no grouped_mm"):
        oss.Oss(device="cpu", dtype=torch.bfloat16)


def test_all_tokens_to_one_expert(tiny: ModuleType) -> None:
    layer = make(tiny).load(state(tiny))
    x = torch.ones(50, 64)
    alone = layer(x[:1])
    assert float((layer(x) - alone).abs().max()) <= 1e-5 * float(alone.abs().max())


REFUSAL = """        if self.device.type != "cuda":
            raise ValueError(f"{LAYER}: a CUDA graph holds what runs on CUDA, and this runs on {self.device}")
"""


class Recorded:
    """A CUDA graph without CUDA: what it would hold runs once, when it is recorded."""

    def replay(self) -> None: ...


@pytest.mark.parametrize("own", [False, True])
def test_a_graph_reads_a_copy_of_inputs_or_the_callers_own(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = next(loaded := load_program("tiny", "put", tmp_path))
    with pytest.raises(ValueError, match="a CUDA graph holds what runs on CUDA, and this runs on cpu"):
        make(refused).capture(torch.zeros(1, 64), own=own)
    loaded.close()
    program = next(loaded := load_program("tiny", "put", tmp_path, without=REFUSAL))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext(graph))
    layer = make(program).load(state(program))
    read: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    x, other = torch.randn(5, 64), torch.randn(5, 64)
    right, before = layer(x), x.clone()
    replay = layer.capture(x, own=own)
    torch.testing.assert_close(replay(*([] if own else [x])), right)
    assert (read[-1] is x) == own
    if own:
        with pytest.raises(ValueError, match="zip"):
            replay(other)
    else:
        replay(other)
        assert torch.equal(read[-1], other)
    assert torch.equal(x, before)
    loaded.close()
