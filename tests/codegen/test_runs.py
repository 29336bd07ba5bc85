"""Programs run under torchrun on CPU ranks, and agree with the oracle and with their own reference."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.codegen.layers import planned, program_of

WORKER = Path(__file__).with_name("worker.py")
LIMIT = 240

RUNS = {
    1: [("tiny", "many_cases"), ("tiny", "eps"), ("oss", "dense")],
    2: [
        ("tiny", "serial"),
        ("tiny", "eps"),
        ("tiny", "transfers_only"),
        ("tiny", "products_only"),
        ("tiny", "cut_in_order"),
        ("oss", "grouped"),
        ("oss", "batched"),
        ("v3", "tokens"),
        ("two", "serial"),
    ],
    4: [("tiny", "eps"), ("tiny", "tokens"), ("v3", "eps")],
}
"""By ranks: starting torchrun takes longer than all that is run there."""


def start(ranks: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script on several ranks, or without torchrun if one is asked for."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(script), *arguments], env=environment, timeout=LIMIT, capture_output=True, text=True, check=False
    )


@pytest.mark.distributed
@pytest.mark.timeout(LIMIT + 30)
@pytest.mark.parametrize("ranks", RUNS)
def test_agree_with_the_oracle(ranks: int, tmp_path: Path) -> None:
    import torch

    from epsc.interpret import interpret
    from epsc.interpret.weights import random_inputs, random_weights

    made = {f"{layer}_{schedule}": planned(layer, schedule, ep=str(ranks)) for layer, schedule in RUNS[ranks]}
    paths = [tmp_path / f"{name}.py" for name in made]
    for path, plan in zip(paths, made.values(), strict=True):
        path.write_text(program_of(plan).text, encoding="utf-8")
    # None anywhere; fewer than chunks; one rank without any; all different; more.
    loads = ["0", "1", ",".join(["37", "0", "5", "2"][:ranks]), ",".join(["3", "64", "20", "41"][:ranks]), "150"]
    done = start(ranks, WORKER, str(tmp_path), ":".join(loads), *map(str, paths))
    assert done.returncode == 0, done.stderr[-3000:]
    for name, plan in made.items():
        graph = plan.layer.said
        weights = random_weights(graph, 0, torch.float32)
        for load in loads:
            said = [int(n) for n in load.split(",")]
            for rank in range(ranks):
                inputs = random_inputs(graph, said[rank % len(said)], rank, torch.float32)
                (right,) = interpret(graph, inputs, weights)
                out = torch.load(tmp_path / f"{name}.{load}.{rank}.pt")
                assert out.shape == right.shape
                if out.numel():
                    assert float((out - right).norm() / right.norm()) < 1e-5, f"{name}, {load}, rank {rank}"


@pytest.mark.distributed
@pytest.mark.timeout(LIMIT + 30)
@pytest.mark.parametrize(("ranks", "tokens"), [(2, "33,0"), (4, "9")])
def test_checks_measures_and_traces_itself(ranks: int, tokens: str, tmp_path: Path) -> None:
    made = planned("tiny", "eps", ep=str(ranks))
    path = tmp_path / "program.py"
    path.write_text(program_of(made).text, encoding="utf-8")
    result, trace = tmp_path / "result.json", tmp_path / "trace.json"
    wanted = ["--check", "--bench", "--trace", str(trace), "--json", str(result)]
    done = start(ranks, path, *wanted, "--tokens", tokens, "--dtype", "bf16", "--timeout", "60")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PASS" in done.stdout
    found = json.loads(result.read_text())
    assert found["check"]["passed"] is True
    assert found["ranks"] == ranks
    assert found["bench"]["p10_ms"] <= found["bench"]["median_ms"] <= found["bench"]["p90_ms"]
    assert any("dense_gemm" in choice or "grouped_gemm" in choice for choice in found["choices"])
    events = json.loads(trace.read_text())["traceEvents"]
    for rank in range(ranks):
        names = [e["name"] for e in events if e["ph"] == "X" and e["pid"] == rank]
        assert sorted(names) == sorted(step.key for step in made.schedule.steps)
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")


@pytest.mark.distributed
@pytest.mark.timeout(LIMIT + 30)
def test_a_wrong_program_fails_its_check(tmp_path: Path) -> None:
    program = program_of(planned("tiny", "eps", ep="1"))
    line = "torch.index_select(sent_all2all, 0, sent_arrange_index[part.arrive], out=sent_1)"
    assert line in program.text
    broken = replace(program, text=program.text.replace(line, "pass"))
    path = tmp_path / "program.py"
    path.write_text(broken.text, encoding="utf-8")
    done = start(1, path, "--check", "--tokens", "40", "--dtype", "fp32")
    assert done.returncode == 1
    assert "FAIL" in done.stdout


@pytest.mark.distributed
@pytest.mark.timeout(LIMIT + 30)
def test_an_error_names_rank_and_step(tmp_path: Path) -> None:
    """One rank fails in the middle; the other, which waits for it, does not wait forever."""
    program = program_of(planned("tiny", "serial"))
    line = "sent_sizes = self.sent_layout.sizes("
    assert line in program.text
    path = tmp_path / "program.py"
    path.write_text(program.text.replace(line, f"1 // (1 - self.rank)\n            {line}"), encoding="utf-8")
    done = start(2, path, "--check", "--tokens", "8", "--timeout", "20")
    assert done.returncode != 0
    assert "rank 1, at sent.sizes: ZeroDivisionError" in done.stderr


@pytest.mark.distributed
@pytest.mark.timeout(LIMIT + 30)
def test_another_number_of_ranks_is_told(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(program_of(planned("tiny", "serial")).text, encoding="utf-8")
    done = start(1, path, "--check")
    assert done.returncode == 1
    assert "compiled for ep = 2, but runs on 1 rank(s)" in done.stderr
    assert "-D ep=1" in done.stderr
