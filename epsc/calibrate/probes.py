"""What is measured: layers of several shapes, by each implementation, whole and cut; as programs and a manifest.

A probe is an `.eps` text like any other, so whatever the compiler can emit can be calibrated, and is measured as it
will run. The manifest says what each step of a program is and has to do at each load, which the ranks need not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsc import driver
from epsc.ir.errors import EpsError
from epsc.ir.source import Source
from epsc.machine.cost import besides_bytes, coordinates, price

_LAYER = """
layer probe(x: bf16[tokens, {hidden}]) {{
  r    = route(x, experts={experts}, top_k={top_k})
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 2*{width}))
  back = combine(gemm(h, down, {hidden}), r)
  return back + mlp(x, swiglu, 2*{width})
}}
cluster here {{ device = {device}  ep = {ranks} }}
tokens 1 .. {most}
schedule probe {{ {directives} }}
"""


@dataclass(frozen=True)
class Shape:
    """A model's experts."""

    name: str
    hidden: int
    width: int
    experts: int
    top_k: int
    loads: tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """One program at several loads."""

    name: str
    shape: Shape
    directives: str
    together: bool = False
    """Also measured as it runs, for what its transfers and products do to each other."""


CUDA_SHAPES = (
    Shape("deepseek_v2", 5120, 1536, 160, 6, (256, 1024, 4096, 8192)),
    Shape("qwen3_30b", 2048, 768, 128, 8, (512, 2048, 8192)),
    Shape("mixtral", 4096, 14336, 8, 2, (512, 2048, 8192)),
)
CPU_SHAPES = (
    Shape("small", 64, 32, 16, 4, (16, 128, 1024)),
    Shape("wide", 256, 256, 8, 2, (16, 128, 1024)),
)
SMS = (0, 16, 24, 32)


def probes(backend: str) -> Iterator[Probe]:
    """What to measure, what is missed most first: a budget may end before the list does."""
    if backend == "cpu":
        for shape in CPU_SHAPES:
            yield Probe(f"{shape.name} serial", shape, "")
            yield Probe(f"{shape.name} dense", shape, "use dense for gate_up, down")
            yield Probe(f"{shape.name} 4 groups", shape, _cut(4, 0), together=True)
        return
    yield Probe("deepseek_v2 serial", CUDA_SHAPES[0], "")
    put = "use put for sent, back  dedup sent  local_reduce back"
    copy = "use copy for sent  use put for back  local_reduce back"
    yield Probe("deepseek_v2 put", CUDA_SHAPES[0], put)
    yield Probe("deepseek_v2 copy", CUDA_SHAPES[0], f"{copy}  run mlp beside sent", together=True)
    for sms in SMS[1:]:
        beside = f"reserve {sms} sms for sent, back  run mlp beside sent"
        yield Probe(f"deepseek_v2 put {sms} sms", CUDA_SHAPES[0], f"{put}  {beside}", together=True)
    for sms in SMS:
        yield Probe(f"deepseek_v2 2 groups {sms} sms", CUDA_SHAPES[0], _cut(2, sms), together=True)
    yield Probe("deepseek_v2 8 groups", CUDA_SHAPES[0], _cut(8, 0), together=True)
    for shape in CUDA_SHAPES[1:]:
        yield Probe(f"{shape.name} serial", shape, "")
    for impl in ("grouped", "dense"):
        for shape in CUDA_SHAPES:
            yield Probe(f"{shape.name} {impl}", shape, f"use {impl} for gate_up, down")
    for sms in SMS[1:]:
        use = "use grouped for gate_up, down"
        yield Probe(f"deepseek_v2 grouped 2 groups {sms} sms", CUDA_SHAPES[0], f"{use} {_cut(2, sms)}", together=True)


def _cut(groups: int, sms: int) -> str:
    reserve = f"reserve {sms} sms for sent, back" if sms else ""
    return f"split sent, h, back by expert_group into {groups} {reserve}"


def compile_probes(folder: Path, device: str, backend: str, ranks: int) -> list[str]:
    """Write the programs and `manifest.json` into `folder`; the names of probes that this machine cannot have."""
    made: list[dict[str, Any]] = []
    refused = []
    for probe in probes(backend):
        text = _LAYER.format(
            device=device,
            ranks=ranks,
            most=max(probe.shape.loads),
            directives=probe.directives,
            **{k: v for k, v in vars(probe.shape).items() if k in ("hidden", "width", "experts", "top_k")},
        )
        try:
            layer = driver.understand(Source(f"{probe.name}.eps", text))
            plan = driver.plan(layer, "probe")
            program = driver.write(plan)
        except EpsError:
            refused.append(probe.name)
            continue
        file = f"probe_{len(made)}.py"
        driver.save(folder / file, program.text)
        made.append({"name": probe.name, "file": file, "together": probe.together, "loads": _loads(plan, probe)})
    driver.save(folder / "manifest.json", json.dumps({"backend": backend, "ranks": ranks, "probes": made}, indent=1))
    return refused


def _loads(plan: driver.Plan, probe: Probe) -> list[dict[str, Any]]:
    """For each load, each step: its kind, implementation, role and coordinates."""
    schedule, cluster = plan.schedule, plan.layer.cluster
    found = []
    for load in probe.shape.loads:
        steps = {}
        for step in schedule.steps:
            priced = price(schedule, step, cluster, load)
            steps[step.key] = {
                "kind": priced.impl.kind,
                "impl": priced.impl.name,
                "role": str(schedule.node(step).info.role),
                "at": coordinates(schedule, step, cluster, priced.impl, priced.work),
                "besides_mb": besides_bytes(priced.work) / 1e6,
                "launches": priced.work.launches,
                "triton": priced.impl.cost.triton,
            }
        found.append({"tokens": load, "steps": steps})
    return found
