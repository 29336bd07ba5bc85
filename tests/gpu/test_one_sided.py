"""One-sided transfers between GPUs: as they are and as CUDA graphs, at small and uneven loads, over many forwards.

They take all GPUs that there are; with one, nothing crosses a link.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from epsc import launch
from tests.gpu.test_programs import check, made

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

FILE = """
layer moe(x: bf16[tokens, 512]) {
  r    = route(x, experts=32, top_k=4, score=softmax, renorm=true)
  sent = dispatch(x, r)
  h    = swiglu(gemm(sent, gate_up, 2*256))
  back = combine(gemm(h, down, 512), r)
  return back + mlp(x, swiglu, 256)
}
cluster c { device = h200  ep = 2 }
tokens 1 .. 256
schedule put { use put for sent, back  dedup sent  local_reduce back }
schedule beside { use put for sent, back  dedup sent  local_reduce back  reserve 16 sms for sent  run mlp beside sent }
schedule direct { use put for sent, back }
schedule reduced { use put for sent, back  local_reduce back }
schedule tight { use copy for sent  use put for back  local_reduce back  room 1 for sent }
schedule copy { use copy for sent  use put for back  local_reduce back  run r, mlp beside sent }
schedule by_load = put when tokens <= 16 else serial when tokens <= 64 else copy
schedule serial { }
"""
SCHEDULES = ("put", "beside", "direct", "reduced", "copy")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "moe.eps"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_values(schedule: str, graph: bool, file: Path, tmp_path: Path) -> None:
    program = made(file, schedule, None, tmp_path)
    uneven = ",".join(str(256 - 255 * (rank % 2)) for rank in range(launch.gpus()))
    for tokens in ("256", uneven):
        check(program, "--tokens", tokens, "--dtype", "bf16", *(["--graph"] if graph else []))


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_plans_by_load(graph: bool, file: Path, tmp_path: Path) -> None:
    """Each is taken at its loads, by the tokens of the fullest rank; of one that asks the host there is no graph."""
    program = made(file, "by_load", None, tmp_path)
    fullest = ",".join("256" if rank == 0 else "3" for rank in range(launch.gpus()))
    for tokens in ("16", "64", "256", fullest):
        more = ["--graph"] if graph else []
        if graph and tokens == "64":
            with pytest.raises(AssertionError, match="the plan serial reads counts on the host"):
                check(program, "--tokens", tokens, "--dtype", "bf16", *more)
        else:
            check(program, "--tokens", tokens, "--dtype", "bf16", *more)


def test_rows_that_overflow_are_told_on_every_rank(file: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="overflows: rank"):
        check(made(file, "tight", None, tmp_path), "--tokens", "256", "--dtype", "bf16")


def test_a_rank_that_refuses_its_input_tells_the_others(file: Path, tmp_path: Path) -> None:
    """At once, and not when their time is up."""
    uneven = ",".join(str(256 + (rank == 0)) for rank in range(launch.gpus()))
    start = time.monotonic()
    with pytest.raises(AssertionError, match="room for 256"):
        check(made(file, "copy", None, tmp_path), "--tokens", uneven, "--dtype", "bf16")
    assert time.monotonic() - start < 60


def test_many_forwards_with_changing_routings(file: Path, tmp_path: Path) -> None:
    """Forwards of a few tokens follow each other at once: what outruns its signals shows here first."""
    folder = tmp_path / "programs"
    compile_all = [sys.executable, "-m", "benchmarks.compile_all", str(file), "-o", str(folder)]
    subprocess.run([*compile_all, "--ep", str(launch.gpus())], check=True, timeout=100)
    out = tmp_path / "soak.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(launch.gpus())]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command += ["-m", "epsc.bench", str(folder), "--graph", "--forwards", "400", "--tokens", "4", "256"]
    command += ["--workload", "random", "zipf", "hot-expert", "hot-rank", "empty-rank", "burst"]
    command += ["--patience", "30", "--json", str(out), "--only", "hand-no-ep", *SCHEDULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert not found["failed"]
    assert len(found["soaks"]) == 6
