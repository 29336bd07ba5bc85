"""`benchmarks.models` with tiny sizes on CPU ranks: what it compares is equal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_small_comparison_is_equal() -> None:
    command = [sys.executable, "-m", "benchmarks.models", "--small", "--ranks", "2", "--device", "cpu", "--rounds", "2"]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [*command, "--tokens", "16"],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.strip().splitlines()
    assert table[-1].startswith("all equal")
    for name in (
        "epsc.compile ",
        "qwen3_30b_a3b.eps",
        "deepseek_v2.eps",
        "epsc.compile_model",
        "experts_implementation",
    ):
        assert any(line.strip().startswith(name) for line in table), name
