"""Start a comparison under torchrun, and see it through: within a budget, and without what broke its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from epsc import launch

GRACE = 30
"""Seconds for what was begun when the budget ended."""
WORTH = 60
"""Seconds that must be left for another start."""


def compare(folder: Path, ranks: int, arguments: list[str], out: Path, budget: float) -> dict[str, Any]:
    """Run `epsc.bench` on `ranks` ranks; what it found, as it wrote it to `out`. `failed` names whoever failed, also
    those that broke their process: the rest is then started again without them."""
    until, skip = time.monotonic() + budget, list[str]()
    broken: list[dict[str, str]] = []
    while True:
        out.unlink(missing_ok=True)
        left = until - time.monotonic()
        command = [*launch.torchrun(ranks), "-m", "epsc.bench", str(folder), *arguments]
        command += ["--json", str(out), "--no-table", "--budget", f"{max(1.0, left - GRACE):.0f}"]
        command += ["--skip", *skip] if skip else []
        code = _wait(command, ranks, left + GRACE)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else _nothing()
        if code == 0:
            break
        at = str(found.get("at") or "")
        broken.append(
            {"name": at or "the comparison", "where": "its process", "reason": f"ended with exit code {code}"}
        )
        if not at or at in skip or until - time.monotonic() < WORTH:
            break
        print(f"exit code {code} while at {at}: again, without it", file=sys.stderr, flush=True)
        skip.append(at)
    found["failed"] += broken
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _nothing() -> dict[str, Any]:
    return {"cells": [], "soaks": [], "notes": [], "failed": []}


def _wait(command: list[str], ranks: int, seconds: float) -> int:
    """The exit code; 124 for one that had to be stopped."""
    # From the folder above this package, so that ranks find the epsc that started them, installed or not.
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = {**launch.environment(ranks), "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    # A group of its own, so that stopping it stops its ranks.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return 124
    except BaseException:
        _stop(process)
        raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
