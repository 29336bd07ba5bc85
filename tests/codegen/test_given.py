"""Modules that epsc does not look into: what a program asks of them, and what they are said to cost."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from epsc import driver
from epsc.interpret import interpret
from epsc.ir.amount import Amount
from epsc.ir.graph import Graph
from epsc.machine.cost import price
from epsc.passes.pipeline import lower

TEXT = """
layer net(x: fp32[tokens, 8]) {
  a = call(mix, x, gemm(x, w, 8), us=3 + tokens/2)
  b = call(wide, a, out=24, flops=2*8*24*tokens + tokens*tokens, bytes=1000000)
  c = call(idle, a)
  return swiglu(gemm(b + call(other, b), v, 16)) + c
}
layer twice(x: fp32[tokens, 8]) { return stack(net, x, 2) }
cluster c { device = h200  ep = 1 }
"""


def understood(layer: str = "net") -> driver.Layer:
    return driver.understand(driver.Source("net.eps", TEXT), driver.Options(layer=layer))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[ModuleType]:
    path = tmp_path / "net.py"
    path.write_text(driver.write(driver.plan(understood())).text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("net", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["net"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["net"]


def modules() -> dict[str, Any]:
    return {
        "mix": lambda x, y: (x * y).T.contiguous().T,  # columns lie together: the plan wants rows
        "wide": lambda a: a.repeat(1, 3).cos(),
        "idle": lambda a: a,  # its argument, whose memory the plan uses again
        "other": torch.tanh,
    }


def test_equals_the_interpreter(program: ModuleType) -> None:
    layer = program.Net(device="cpu", dtype=torch.float32, given=modules())
    weights = {name: torch.randn(weight.shape) for name, weight in program.WEIGHTS.items()}
    layer.load(weights)
    layer.run.poison = True
    for tokens in (5, 0):
        x = torch.randn(tokens, 8)
        (expected,) = interpret(understood().graph, {"x": x}, weights, modules=modules())
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_what_a_module_makes_has_memory_of_its_own(program: ModuleType) -> None:
    x = torch.randn(3, 8)
    for given in ({"idle": lambda x: x}, {"idle": lambda x: x.view(-1).view(3, 8)}):
        made = program.called(given, "idle", x)
        assert torch.equal(made, x)
        assert made.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    fresh = x * 2
    assert program.called({"idle": lambda _: fresh}, "idle", x) is fresh


def test_refuses_what_is_no_such_module(program: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"net: `given` lacks the modules mix, other$"):
        program.Net(
            device="cpu", given={name: made for name, made in modules().items() if name not in ("mix", "other")}
        )
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"module wide should make torch.float32 \[3, 24\], but made .* \[3, 8\]"):
        program.called({"wide": lambda x: x}, "wide", x)
    with pytest.raises(ValueError, match=r"should make torch.float32 \[3, 8\], but made torch.float64 \[3, 8\]"):
        program.called({"idle": lambda x: x.double()}, "idle", x)
    with pytest.raises(ValueError, match="but made tuple"):
        program.called({"idle": lambda x: (x,)}, "idle", x)


def test_layers_of_a_stack_have_modules_of_their_own() -> None:
    made = [node.attrs for node in understood("twice").graph.nodes if node.kind == "call"]
    assert [attrs.module for attrs in made[::4]] == ["layers.0.mix", "layers.1.mix"]  # type: ignore[union-attr]


def test_costs_are_those_that_were_said() -> None:
    layer = understood()
    schedule = driver.plan(layer).schedule
    device = layer.cluster.device
    named = {step.node: price(schedule, step, layer.cluster, 100) for step in schedule.steps}
    assert named["a"].seconds == pytest.approx(53e-6)
    assert named["b"].work.flops == 2 * 8 * 24 * 100 + 100 * 100
    assert named["b"].work.hbm_bytes == 1e6 + 4 * 100 * (8 + 24)
    assert named["b"].seconds >= device.kernel_s + named["b"].work.hbm_bytes / device.hbm_bytes_per_s
    # Nobody said: the four products of an attention of that width.
    assert named["c"].work.flops == 4 * 2 * 100 * 8 * 8


def test_amounts_print_and_parse() -> None:
    for amount in (Amount((0.0,)), Amount((1e16, -2.5, 1e-7, 3.0)), Amount()):
        assert Amount.parse(str(amount)) == amount
    graph = lower(understood().said)
    assert Graph.parse(str(graph)) == graph
