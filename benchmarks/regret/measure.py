"""Measuring what was compiled, layer by layer, within a budget; what an earlier call measured is not measured again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from epsc.bench.start import compare

LEAST = 45.0
"""Seconds that a layer needs at least: two processes, their weights, kernels to compile."""


def measure(folder: Path, out: Path, budget: float, layers: list[str], rounds: int, runs: int) -> bool:
    """Fill `out` with a file for each layer; whether nothing is left to measure."""
    until = time.monotonic() + budget
    wanted = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    whole = True
    for name, layer in wanted["layers"].items():
        if layers and name not in layers:
            continue
        path = out / f"{name}.json"
        found = read(path)
        done = {cell["tokens"] for cell in found.get("cells", ())}
        missing = [tokens for tokens in wanted["loads"] if tokens not in done]
        if not missing:
            continue
        left = until - time.monotonic()
        if left < LEAST:
            print(f"{name}: not begun, the time is up", file=sys.stderr, flush=True)
            whole = False
            continue
        arguments = ["--tokens", *map(str, missing), "--rounds", str(rounds), "--runs", str(runs), "--no-steps"]
        arguments += ["--only", *layer["plans"]]
        start = time.monotonic()
        more = compare(folder / name, wanted["ranks"], arguments, out / f"{name}.part.json", left)
        _keep(path, found, more)
        cells = len(more["cells"])
        print(
            f"{name}: {cells} of {len(missing)} loads in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True
        )
        for failed in more["failed"]:
            print(f"  {failed['name']}, {failed['where']}: {failed['reason'].splitlines()[-1]}", file=sys.stderr)
        whole = whole and cells == len(missing)
    return whole


def read(path: Path) -> dict[str, Any]:
    """What was found of a layer so far."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _keep(path: Path, found: dict[str, Any], more: dict[str, Any]) -> None:
    kept = {**more, "cells": [*found.get("cells", ()), *more["cells"]]}
    kept["failed"] = [*found.get("failed", ()), *more["failed"]]
    path.with_name(f"{path.stem}.part.json").unlink(missing_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
