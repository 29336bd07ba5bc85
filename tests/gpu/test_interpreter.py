"""DeepSeek-V2 at true size in bf16 on all GPUs, under every schedule, against the interpreter in fp32.

The check that a program carries shares its router with the program; the interpreter shares nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from epsc import driver, launch

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LOADS = ("1024", "4096")
LIMIT = 1e-2


def test_every_schedule_equals_the_interpreter(tmp_path: Path) -> None:
    options = driver.Options({"ep": str(launch.gpus())})
    layer = driver.understand(driver.read(ROOT / "examples" / "deepseek_v2.eps"), options)
    (tmp_path / "graph.txt").write_text(str(layer.said))
    for schedule in ("serial", "eps", "capacity"):
        program = driver.write(driver.plan(layer, schedule))
        (tmp_path / f"{program.name}.py").write_text(program.text)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(launch.gpus())]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command += ["-m", "tests.gpu.worker", str(tmp_path), *LOADS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    errors = {(name, load): float(e) for name, load, e in re.findall(r"(\w+) tokens (\d+) error (\S+)", done.stdout)}
    assert len(errors) == 3 * len(LOADS)
    assert {key: error for key, error in errors.items() if not error < LIMIT} == {}
