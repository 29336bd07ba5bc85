"""Emitted programs on CUDA, one rank a GPU over NCCL, against the plain reference that each carries (outputs poisoned).

Run them where there are GPUs: `python -m pytest tests/gpu`. They take all GPUs that there are.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from epsc import driver, launch, plans

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.eps"))
SCHEDULES = ("serial", "eps", "capacity", "one_sided")

LOAD = {"tokens": "333"}
"""One-sided programs have room for so many tokens of a rank, and no more."""


def made(path: Path, schedule: str, preset: str | None, folder: Path, defines: dict[str, str] | None = None) -> Path:
    """The program of one schedule for all GPUs of this machine, written to `folder`."""
    options = driver.Options({"ep": str(launch.gpus()), **(defines or {})}, preset)
    program = plans.write(plans.plans(driver.understand(driver.read(path), options), schedule))
    file = folder / f"{program.name}.py"
    file.write_text(program.text)
    return file


def check(program: Path, *arguments: str) -> None:
    """Run the program's own check on all GPUs; fails with what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(launch.gpus())]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command += [str(program), "--check", "--timeout", "120", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "PASS" in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_small_examples_in_bf16(path: Path, tmp_path: Path) -> None:
    for schedule in ("eps", "capacity", "one_sided"):
        check(made(path, schedule, "small", tmp_path, LOAD), "--tokens", "333", "--dtype", "bf16")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_deepseek_v2_at_true_size(schedule: str, tmp_path: Path) -> None:
    check(made(EXAMPLES[1], schedule, None, tmp_path), "--tokens", "1024", "--dtype", "bf16")


def test_uneven_and_empty_ranks(tmp_path: Path) -> None:
    """Different numbers of tokens per rank, none on the first."""
    tokens = ",".join(str(100 * rank) for rank in range(launch.gpus()))
    check(made(EXAMPLES[1], "eps", "small", tmp_path), "--tokens", tokens, "--dtype", "bf16")


def test_what_cannot_run_here_is_refused_with_its_reason(tmp_path: Path) -> None:
    """grouped_mm on CUDA takes bf16 only: fp32 must be refused before the first forward, not fall back."""
    program = made(EXAMPLES[1], "serial", "small", tmp_path)
    with pytest.raises(AssertionError, match="grouped"):
        check(program, "--tokens", "64", "--dtype", "fp32")


def test_one_host_synchronisation_in_a_forward(tmp_path: Path) -> None:
    """Torch's own watch for host synchronisation finds none but the one read of sizes, which is an event's."""
    for schedule in ("serial", "eps"):
        program = made(EXAMPLES[1], schedule, "small", tmp_path)
        text = program.read_text()
        # Only an explicit event wait stops the host: torch calls everything else that does an error.
        watched = text.replace(
            "        self.run.begin()\n", "        self.run.begin()\n        torch.cuda.set_sync_debug_mode('error')\n"
        )
        watched = watched.replace(
            "        self.run.join()\n", "        torch.cuda.set_sync_debug_mode('default')\n        self.run.join()\n"
        )
        assert watched.count("set_sync_debug_mode") == 2
        program.write_text(watched)
        check(program, "--tokens", "256", "--dtype", "bf16")
