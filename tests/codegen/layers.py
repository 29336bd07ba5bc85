"""Layers to emit programs for: between them they use every op, router, activation, layout and implementation."""

from epsc.codegen import Program, emit
from epsc.driver import Options, Plan, plan, understand
from epsc.ir.source import Source

TINY = """
layer tiny(x: bf16[tokens, 64]) {
  r    = route(x, experts=12, top_k=3, score=softmax, renorm=true)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 2*32))
  back = combine(gemm(h, down, 64), r)
  return back + mlp(x, swiglu, 2*48)
}
cluster here { ep = 2 }
tokens 16 .. 64
schedule serial { }
schedule eps {
  split sent, gate_up, h, down, back by expert_group into 3
  use grouped for gate_up when rows < 20 else dense
  use batched for down when mean_rows >= 2 else dense
  reserve 16 sms for sent, back
  run mlp beside sent
}
schedule tokens {
  split sent, gate_up, h, down, back by tokens into 4
  use batched for gate_up when max_rows < 8 else dense
}
schedule many_cases {
  use batched for gate_up when max_rows < 8 else dense when mean_rows > 1000 else batched when tokens == 17
    else grouped when device == cuda else dense
}
schedule transfers_only {
  split sent, back by expert_group into 2
  run mlp beside sent
}
schedule products_only {
  split gate_up, h, down by expert_group into 3
}
schedule cut_in_order {
  split sent, gate_up, h, down, back by expert_group into 2
  overlap none
}
schedule torch_only {
  use torch for r, sent, h, back, mlp
  use grouped for gate_up, down
}
schedule kernels {
  split sent, gate_up, h, down, back by expert_group into 3
  use triton for r, sent, h, back, mlp
  use grouped for gate_up, down
}
schedule put {
  use put for sent, back
  dedup sent
  local_reduce back
  reserve 16 sms for sent
  run mlp beside sent
}
schedule copy {
  use copy for sent
  use put for back
  local_reduce back
  run mlp beside sent, back
}
schedule put_copies {
  use put for sent, back
  room 1.5 for sent
  reserve 16 sms for sent, back
}
schedule peers {
  split sent, h by peer into ep
  split back by columns into 2
  reserve 16 sms for sent, back
}
schedule put_groups {
  use put for sent, back
  split sent, h, back by expert_group into 3
}
schedule put_columns {
  use put for sent, back
  dedup sent
  local_reduce back
  split sent, h by expert_group into 2
  split back by columns into 2
}
schedule kernels_by_load {
  split sent, gate_up, h, down, back by tokens into 2
  use triton for r, sent when tokens < 20 else torch
  use triton for h when rows > 40 else torch when mean_rows < 2 else triton
  use torch for back when tokens < 20 else triton
}
"""

GPT_OSS = """
layer oss(x: bf16[tokens, 32]) {
  r    = route(x, experts=8, top_k=2, score=softmax, choose=by_logit, bias=true)
  sent = dispatch(x, r)
  gu   = gemm(sent, gate_up, 2*24, bias=true, transposed=true)
  h    = swiglu(gu, limit=0.5, alpha=1.702, offset=1, interleaved=true)
  back = combine(gemm(h, down, 32, bias=true, transposed=true), r)
  return back
}
cluster here { ep = 2 }
tokens 16 .. 64
schedule grouped { use grouped for gate_up, down }
schedule dense { use dense for gate_up, down }
schedule batched {
  split sent, gate_up, h, down, back by expert_group into 2
  use batched for gate_up, down
}
"""

DEEPSEEK = """
layer v3(x: bf16[tokens, 48]) {
  r    = route(x, experts=16, top_k=4, score=sigmoid, choice_bias=true, groups=4, top_groups=2, group_by=top2,
               renorm=true, scale=2.5)
  sent = dispatch(x, r)
  h    = geglu(gemm(sent, gate_up, 2*24))
  back = combine(gemm(h, down, 48), r)
  gate = sigmoid(gemm(x, shared_gate, 1))
  return back + mlp(x, swiglu, 2*48) * gate
}
cluster here { ep = 4 }
tokens 16 .. 64
schedule eps {
  split sent, gate_up, h, down, back by expert_group into 3
  run mlp beside sent
}
schedule tokens { split sent, gate_up, h, down, back by tokens into 3 }
"""

TWO = """
layer block(x: bf16[tokens, 32]) {
  r    = route(x, experts=8, top_k=1, score=sigmoid)
  sent = dispatch(x, r)
  back = combine(gemm(relu2(gemm(sent, up, 40)), down, 32), r)
  return x + back
}
layer two(x: bf16[tokens, 32]) {
  y = block(x)
  z = block(y)
  return z
}
cluster here { ep = 2 }
tokens 16 .. 64
schedule serial { }
"""

V3_BIG = """
layer v3(x: bf16[tokens, 7168]) {
  r    = route(x, experts=256, top_k=8, score=sigmoid, choice_bias=true, groups=8, top_groups=4, group_by=top2,
               renorm=true, scale=2.5)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 2*2048))
  back = combine(gemm(h, down, 7168), r)
  return back + mlp(x, swiglu, 2*2048)
}
cluster here { ep = 8 }
tokens 512 .. 16384
schedule eps {
  split sent, gate_up, h, down, back by expert_group into 16
  use grouped for gate_up, down when rows < 2048 else dense
  reserve 16 sms for sent, back
  run mlp beside sent
}
"""

LAYERS = {"tiny": TINY, "oss": GPT_OSS, "v3": DEEPSEEK, "two": TWO, "v3_big": V3_BIG}

ALL = [
    *(
        ("tiny", name)
        for name in ("serial", "eps", "tokens", "many_cases", "transfers_only", "products_only", "cut_in_order")
    ),
    *(("tiny", name) for name in ("torch_only", "kernels", "kernels_by_load", "put", "put_copies", "copy")),
    *(("tiny", name) for name in ("peers", "put_groups", "put_columns")),
    *(("oss", name) for name in ("grouped", "dense", "batched")),
    *(("v3", name) for name in ("eps", "tokens")),
    ("two", "serial"),
    ("v3_big", "eps"),
]


def planned(layer: str, schedule: str, **defines: str) -> Plan:
    """The schedule of a layer above; `defines` are as on the command line."""
    return plan(understand(Source(f"{layer}.eps", LAYERS[layer]), Options(defines=defines)), schedule)


def written(layer: str, schedule: str, **defines: str) -> Program:
    """The program of a schedule of a layer above."""
    return program_of(planned(layer, schedule, **defines))


def program_of(made: Plan) -> Program:
    return emit(made.schedule, spec_text=made.layer.source.text, version="0.1.0", load=made.layer.load)
