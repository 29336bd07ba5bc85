"""How long compiling takes: `python -m benchmarks.compile_time`. Needs no GPU, and no torch.

Each figure is the median of fresh processes, with bytecode cached, as after a first use. Wall time is what a user
waits; CPU time depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter

ROOT = Path(__file__).parents[1]
V3 = ROOT / "examples/deepseek_v3.eps"
V2 = ROOT / "examples/deepseek_v2.eps"

LIGHT = """
import sys
from epsc.cli import main
sys.argv = ["epsc", *sys.argv[1:]]
try:
    main()
finally:
    heavy = sorted({"torch", "triton", "networkx", "numpy"} & set(sys.modules))
    assert not heavy, f"loaded {heavy}"
"""
"""The command line, which must not load what only running a layer needs."""

STAGES = """
import json, sys
from pathlib import Path
from time import process_time
from epsc import driver
from epsc.grammar import parse

took = {}
last = process_time()

def lap(name, *_):
    global last
    took[name] = took.get(name, 0.0) + process_time() - last
    last = process_time()

source = driver.read(Path(sys.argv[1]))
parse(source)
lap("parse")
# The first report comes after parsing again, building, and the first pass of the Graph: together they are "build".
layer = driver.understand(source, driver.Options(watch=lambda name, *_: lap("build" if "build" not in took else name)))
lap("resolve")
plan = driver.plan(layer, "eps")
from epsc.codegen import emit
lap("load the writers")
program = driver.write(plan)
lap("emit, templates cold")
driver.write(plan)
lap("emit, templates warm")
took["in all, emit once"] = sum(took.values()) - took["emit, templates warm"]
print(json.dumps({"steps": len(plan.schedule.steps), "lines": program.text.count("\\n"), "took": took}))
"""

STACK = """
layer block(x: bf16[tokens, 7168]) {{
  r    = route(x, experts=256, top_k=8, score=sigmoid, choice_bias=true, groups=8, top_groups=4, group_by=top2,
    renorm=true, scale=2.5)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 2*2048))
  back = combine(gemm(h, down, 7168), r)
  return back + mlp(x, swiglu, 2048)
}}
layer model(x: bf16[tokens, 7168]) {{ return stack(block, x, {layers}) }}
cluster h200x8 {{ device = h200  ep = 8 }}
tokens 512 .. 16384
schedule eps {{
  split sent, h, back by expert_group into {groups}
  use grouped for gate_up, down when mean_rows < 2048 else dense
  reserve 16 sms for sent, back
  run mlp beside sent
}}
"""


def timed(command: Sequence[str], times: int, bytecode: Path) -> tuple[float, float, float, str]:
    """Seconds of a fresh process (median, least) and of CPU (median), and what the last one printed."""
    wall, cpu, printed = [], [], ""
    # In a folder of our own: no other run interferes, and nothing is written beside the sources.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(times):
        before, start = os.times(), perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        wall.append(perf_counter() - start)
        after = os.times()
        cpu.append(after.children_user - before.children_user + after.children_system - before.children_system)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[-6:])}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        printed = done.stdout
    return median(wall), min(wall), median(cpu), printed


def growth(sizes: Sequence[int], seconds: Sequence[float]) -> str:
    """The exponent of growth from the second half of the sizes on: 1 is linear, 2 is quadratic."""
    pairs = [(math.log(n), math.log(s)) for n, s in zip(sizes, seconds, strict=True) if s > 1e-3][-3:]
    if len(pairs) < 2:
        return "-"
    x, y = (sum(each) / len(pairs) for each in zip(*pairs, strict=True))
    return f"n^{sum((a - x) * (b - y) for a, b in pairs) / sum((a - x) ** 2 for a, _ in pairs):.2f}"


def commands(times: int, bytecode: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        light = [sys.executable, "-c", LIGHT]
        rows = [
            ("python -c pass", [sys.executable, "-c", "pass"], ""),
            ("import epsc.cli", [sys.executable, "-c", "import epsc.cli"], ""),
            ("check deepseek_v2.eps", [*light, "check", str(V2)], "< 0.3 s"),
            (
                "compile deepseek_v3.eps, 16 groups",
                [*light, "compile", str(V3), "-s", "eps", "-D", "groups=16", "-o", scratch],
                "< 1 s",
            ),
            (
                "compile deepseek_v3.eps, best = auto",
                [*light, "compile", str(V3), "-s", "best", "-o", scratch],
                "",
            ),
        ]
        lines = [f"{'fresh process, seconds':38}{'wall':>8}{'least':>8}{'CPU':>8}  goal (wall)"]
        for name, command, goal in rows:
            timed(command, 1, bytecode)
            wall, least, cpu, _ = timed(command, times, bytecode)
            lines.append(f"{name:38}{wall:8.3f}{least:8.3f}{cpu:8.3f}  {goal}")
    return [*lines, "None of these loaded torch, triton, numpy or networkx."]


def stacks(sizes: list[int], groups: int, times: int, bytecode: Path) -> list[str]:
    took: dict[str, list[float]] = {}
    shapes = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in sizes:
            file = Path(scratch) / f"stack{n}.eps"
            file.write_text(STACK.format(layers=n, groups=groups))
            runs = []
            for _ in range(times):
                runs.append(json.loads(timed([sys.executable, "-c", STAGES, str(file)], 1, bytecode)[3]))
            shapes.append((runs[0]["steps"], runs[0]["lines"]))
            for stage in runs[0]["took"]:
                took.setdefault(stage, []).append(median(run["took"][stage] for run in runs))
    lines = [f"{f'stack of n layers, {groups} groups; CPU ms':28}" + "".join(f"{n:>9}" for n in sizes) + "   growth"]
    lines.append(f"{'steps':28}" + "".join(f"{steps:>9}" for steps, _ in shapes))
    lines.append(f"{'lines of program':28}" + "".join(f"{count:>9}" for _, count in shapes))
    for stage, seconds in took.items():
        cells = "".join(f"{s * 1e3:9.1f}" for s in seconds)
        lines.append(f"{stage:28}{cells}   {growth(sizes, seconds)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="fresh processes per figure")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 61], help="layers per stack")
    parser.add_argument("--groups", type=int, default=4, help="expert groups in the stack")
    given = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("lark", "jinja2", "click"))
    print(f"Python {platform.python_version()}, {versions}; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as bytecode:
        print("\n".join(commands(given.times, Path(bytecode))), flush=True)
        if given.sizes:
            print("\n" + "\n".join(stacks(given.sizes, given.groups, given.times, Path(bytecode))))


if __name__ == "__main__":
    main()
