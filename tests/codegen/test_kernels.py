"""Programs that run kernels: whole ones under Triton's interpreter, and refused where kernels cannot run."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from epsc.codegen import emit
from epsc.driver import plan, understand
from epsc.interpret import interpret
from epsc.interpret.weights import random_inputs, random_weights
from epsc.ir.errors import EpsError
from epsc.ir.source import Source
from epsc.machine.cluster import DEVICES
from epsc.machine.tiles import DEFAULT, Tile, TileTable
from tests.codegen.layers import planned, program_of, written

ACTIVATIONS = """
layer acts(x: bf16[tokens, 24]) {
  r    = route(x, experts=4, top_k=2)
  sent = dispatch(x, r)
  a    = swiglu(gemm(sent, gate_up, 2*12))
  h    = swiglu(gemm(a, wider, 2*20), limit=0.5, alpha=1.702, offset=1, interleaved=true)
  back = combine(gemm(h, down, 24), r)
  return back * sigmoid(x)
}
tokens 4 .. 8
schedule both { use triton for a, h, back, sigmoid }
"""


def load(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module; Triton reads the source of kernels, so it must be a file."""
    path = folder / "kernels.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("kernels", path)
    assert spec and spec.loader
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kernels", program)
    spec.loader.exec_module(program)
    return program


@pytest.mark.parametrize("schedule", ["kernels", "kernels_by_load"])
def test_kernels_agree_with_the_oracle(
    schedule: str, interpreted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned("tiny", schedule, ep="1")
    program = load(program_of(made).text, tmp_path, monkeypatch)
    layer = program.Tiny(device="cpu", dtype=torch.float32)
    program.fill(layer, program.source(layer, SimpleNamespace(weights=None, seed=0)))
    weights = random_weights(made.layer.said, 0, torch.float32)
    layer.run.poison = True
    for tokens in (0, 1, 13, 40):
        inputs = random_inputs(made.layer.said, tokens, 0, torch.float32)
        (right,) = interpret(made.layer.said, inputs, weights)
        torch.testing.assert_close(layer(*inputs.values()), right, rtol=1e-4, atol=1e-5)
    taken = {function for step, function in layer.choices if not step.startswith(("gate_up", "down"))}
    by_load = {"swiglu", "triton_swiglu", "put_rows", "scatter_rows", "weighted_sum", "triton_weighted_sum"}
    by_load |= {"route", "triton_route", "sort_rows", "rank_rows"}
    assert taken == (by_load if schedule == "kernels_by_load" else set())


def test_the_reference_runs_no_kernel(interpreted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = load(written("tiny", "kernels", ep="1").text, tmp_path, monkeypatch)
    layer = program.Tiny(device="cpu", dtype=torch.float32)
    raw = program.source(layer, SimpleNamespace(weights=None, seed=0))
    program.fill(layer, raw)
    given = program.inputs(layer, 9, 0)
    assert program.check(layer, given, raw)["passed"]

    def wrong(x: torch.Tensor, out: torch.Tensor) -> None:
        out.zero_()

    monkeypatch.setattr(program, "triton_swiglu", wrong)
    assert not program.check(layer, given, raw)["passed"]


def test_strided_rows_and_two_activations(interpreted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(understand(Source("acts.eps", ACTIVATIONS)), "both")
    program = load(program_of(made).text, tmp_path, monkeypatch)
    assert {"triton_swiglu", "triton_swiglu_2", "triton_sigmoid"} <= vars(program).keys()
    layer = program.Acts(device="cpu", dtype=torch.float32)
    program.fill(layer, program.source(layer, SimpleNamespace(weights=None, seed=0)))
    weights = random_weights(made.layer.said, 0, torch.float32)
    inputs = random_inputs(made.layer.said, 7, 0, torch.float32)
    (right,) = interpret(made.layer.said, inputs, weights)
    wide = torch.full((7, 48), torch.nan)
    wide[:, ::2] = inputs["x"]
    torch.testing.assert_close(layer(wide[:, ::2]), right, rtol=1e-4, atol=1e-5)


def test_refuses_a_device_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    program = load(written("tiny", "kernels_by_load", ep="1").text, tmp_path, monkeypatch)
    monkeypatch.setattr(program, "triton", object())
    with pytest.raises(ValueError, match="the plan cannot run on cpu") as error:
        program.Tiny(device="cpu", dtype=torch.float32)
    assert "`h = triton when rows > 40 else torch when mean_rows < 2 else triton`: Triton kernels need" in str(
        error.value
    )
    assert "mlp.act" not in str(error.value)
    monkeypatch.setattr(program, "triton", None)
    with pytest.raises(
        ValueError, match=r"`mlp\.act = triton when device == cuda else torch`: triton is not installed"
    ):
        program.check_triton(torch.device("cuda"), torch.bfloat16)


def test_programs_hold_only_the_kernels_that_they_launch() -> None:
    text = written("tiny", "torch_only").text
    assert "import triton" not in text
    assert "Needs torch, and nothing else." in text
    assert not [line for line in text.splitlines() if "triton" in line.lower() and not line.startswith("#|")]
    text = written("tiny", "kernels").text
    assert "Needs torch (and triton on CUDA), and nothing else." in text
    assert text.count("import triton\n") == text.count("def triton_swiglu(") == text.count("def scatter_rows(") == 1
    assert text.count("def triton_route(") == text.count("def rank_rows(") == text.count("def copy_ranks(") == 1
    assert "def sort_rows(" not in text
    assert "def put_rows(" not in text
    assert "def weighted_sum(" not in text


PRODUCTS = """
layer products(x: bf16[tokens, 24]) {
  r    = route(x, experts=4, top_k=2)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 2*16))
  back = combine(gemm(h, down, 24), r)
  return back
}
tokens 4 .. 8
schedule whole { use persistent for gate_up, down }
schedule cut {
  split sent, h, back by expert_group into 2
  use persistent for gate_up, down
}
schedule apart {
  split sent, h, back by expert_group into 2
  use persistent for gate_up, down
  use torch for h, back
}
schedule by_load {
  split sent, h, back by tokens into 2
  use persistent for gate_up when rows > 8 else dense when device == cpu else batched
}
"""
PAIRS = PRODUCTS.replace(
    "swiglu(gemm(sent, gate_up, 2*16))", "swiglu(gemm(sent, gate_up, 2*16), limit=0.5, alpha=1.7, interleaved=true)"
)

# As GPT-OSS has them.
BIASED = PAIRS.replace("2*16)", "2*16, bias=true, transposed=true)").replace("24), r", "24, bias=true), r")


@pytest.mark.parametrize(
    ("text", "schedule", "kind"),
    [
        (PRODUCTS, "whole", "expert_gemm_act"),
        (PAIRS, "whole", "expert_gemm_act"),
        (BIASED, "whole", "expert_gemm_act"),
        (BIASED, "apart", "activation"),
        (PRODUCTS, "cut", "expert_gemm_act"),
        (PRODUCTS, "apart", "activation"),
        (PRODUCTS, "by_load", "expert_gemm_act"),
    ],
    ids=["halves", "pairs", "biased", "biased, apart", "cut", "apart", "by_load"],
)
def test_persistent_products_agree_with_the_oracle(
    text: str, schedule: str, kind: str, interpreted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = understand(Source("products.eps", text))
    made = plan(layer, schedule)
    assert made.schedule.graph.node["h"].kind == kind
    program = load(program_of(made).text, tmp_path, monkeypatch)
    module = program.Products(device="cpu", dtype=torch.float16)
    weights = random_weights(layer.said, 0, torch.float16)
    module.load(weights)
    module.run.poison = True
    exact = {name: weight.float() for name, weight in weights.items()}
    for tokens in (0, 1, 19):
        inputs = random_inputs(layer.said, tokens, 0, torch.float16)
        (right,) = interpret(layer.said, {name: x.float() for name, x in inputs.items()}, exact)
        torch.testing.assert_close(module(*inputs.values()).float(), right, rtol=1e-2, atol=1e-2)


def test_products_are_cut_as_the_profile_of_the_cluster_says() -> None:
    """Each by the table of the nearest shape, with or without an activation; without a table as ever."""
    made = plan(understand(Source("products.eps", PRODUCTS)), "whole").schedule
    tile, low = Tile(64, 64, 64, 4), Tile(low=64)
    tables = [
        TileTable(4096, 4096, False, ((0, low),), "here", True),
        TileTable(64, 32, False, ((0, tile), (8, tile), (32, low)), "here", True),
    ]
    device = replace(DEVICES["h200"], tiles=tuple(tables))
    text = emit(made, spec_text="", version="0.1.0", load=(1, 2), device=device).text
    assert f"{{0: {tile}, 16: {low}}}," in text
    assert text.count(f"512: {DEFAULT[512]}") == 1  # no table is of products with an activation
    plain = emit(made, spec_text="", version="0.1.0", load=(1, 2)).text
    assert f"{{0: {DEFAULT[0]}, 512: {DEFAULT[512]}}}," in plain


def test_what_the_persistent_kernel_cannot_do_is_refused() -> None:
    exact = PRODUCTS.replace("bf16", "fp32")
    with pytest.raises(EpsError, match=r"cannot run `gate_up`: its tensor cores take bf16 and fp16"):
        plan(understand(Source("products.eps", exact)), "whole")
    assert plan(understand(Source("products.eps", PRODUCTS))).schedule.step["down"].impl.names == ("persistent",)


def test_programs_take_the_persistent_kernel_only_where_it_can_run() -> None:
    made = {
        name: plan(understand(Source("p.eps", text)), "serial")
        for name, text in {
            "plain": PRODUCTS,
            "biased": PRODUCTS.replace("2*16)", "2*16, bias=true)"),
            "narrow": PRODUCTS.replace("2*16", "2*18"),
            "exact": PRODUCTS.replace("bf16", "fp32"),
        }.items()
    }
    joined = {name for name, p in made.items() if p.schedule.graph.node["h"].kind == "expert_gemm_act"}
    assert joined == {"plain", "biased"}
    assert str(made["plain"].schedule.step["h"].impl) == "persistent when device == cuda else grouped"
    for name in made.keys() - joined:
        assert "persistent" not in made[name].schedule.step["gate_up"].impl.names


def test_an_activation_in_the_epilogue_is_in_the_program_once_and_alone() -> None:
    text = program_of(plan(understand(Source("p.eps", PRODUCTS)), "whole")).text
    assert text.count("def swiglu_product_kernel(") == text.count("def persistent_swiglu(") == 1
    assert "def triton_swiglu(" not in text, "nothing makes an activation in a launch of its own"
    assert "rows.new_empty(len(rows), weight.shape[-1])" not in text, "nothing is stored in between"
    # What may run on CUDA without the epilogue takes the kernel for the activation there.
    text = program_of(plan(understand(Source("p.eps", PRODUCTS)), "by_load")).text
    assert text.count("def triton_swiglu(") == text.count("def batched_swiglu(") == text.count("def dense_swiglu(") == 1
    assert "activation = triton_swiglu if rows.is_cuda else swiglu" in text
