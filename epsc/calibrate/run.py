"""The ranks' part: `torchrun ... -m epsc.calibrate FOLDER --journal FILE`. Needs torch and no compiler.

Everything that is found goes to the journal at once, by name, and what stands there already is not measured again. What
fails is noted with its reason, and fails alone; `at` is what was begun, should it break the process.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from epsc.bench.ranks import Ranks
from epsc.calibrate.machine import RATES, measured_of, worst
from epsc.calibrate.steps import Program

PATIENCE = 120.0
"""Seconds that a rank waits for another."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=220)
    given = parser.parse_args()
    manifest = json.loads((given.folder / "manifest.json").read_text(encoding="utf-8"))
    ranks = Ranks.join(manifest["backend"], PATIENCE)
    until = time.monotonic() + given.budget
    journal = _Journal(given.journal, ranks)
    jobs = [("machine", name) for name in RATES[manifest["backend"]]]
    jobs += [("program", probe["name"]) for probe in manifest["probes"]]
    todo = [job for job in jobs if ": ".join(job) not in {**journal.found, **journal.failed}]
    probes = {probe["name"]: probe for probe in manifest["probes"]}
    begun = time.monotonic()
    for number, (sort, name) in enumerate(todo):
        # All ranks must come to the same end.
        if ranks.everyone(time.monotonic() > until)[0]:
            journal.say(f"the budget is spent: {len(todo) - number} of {len(jobs)} are left; start again to go on")
            break
        start = time.monotonic()
        journal.say(_progress(len(jobs) - len(todo) + number, len(jobs), start - begun, number, name))
        journal.begin(f"{sort}: {name}")

        def one(sort: str = sort, name: str = name) -> Any:
            if sort == "machine":
                return measured_of(ranks, name)
            with torch.no_grad():
                return Program(ranks, given.folder / probes[name]["file"]).measure(probes[name])

        found, reason = ranks.attempt(one)
        if reason:
            journal.fail(f"{sort}: {name}", reason)
        else:
            every: list[Any] = ranks.everyone(found)
            journal.add(f"{sort}: {name}", worst(name, every) if sort == "machine" else every[0])
        # A program's weights are gone before the next one's come.
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
    else:
        failed = f", but for {len(journal.failed)} that failed" if journal.failed else ""
        journal.say(f"all {len(jobs)} are measured{failed}")
    ranks.settle()
    if dist.is_initialized():
        dist.destroy_process_group()


def _progress(done: int, of: int, seconds: float, measured: int, name: str) -> str:
    bar = "#" * round(20 * done / of)
    left = f", about {seconds / measured * (of - done):.0f} s left" if measured else ""
    return f"[{bar:<20}] {done}/{of}{left}: {name}"


class _Journal:
    """What was found, by name: rank 0 keeps the file, and every rank knows what it held at the start."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks
        here = json.loads(path.read_text(encoding="utf-8")) if ranks.rank == 0 and path.exists() else {}
        self.found: dict[str, Any] = ranks.everyone(here)[0]
        if ranks.device.type == "cuda":
            self.found.setdefault("hardware", torch.cuda.get_device_name())
            self.found.setdefault("sms", torch.cuda.get_device_properties(ranks.device).multi_processor_count)
            self.found.setdefault("memory", torch.cuda.get_device_properties(ranks.device).total_memory)
            self.found.setdefault("capability", list(torch.cuda.get_device_capability()))
            self.found.setdefault("nccl", ".".join(map(str, torch.cuda.nccl.version())))
        self.found.setdefault("torch", torch.__version__)
        self.failed: dict[str, str] = self.found.setdefault("failed", {})

    def begin(self, name: str) -> None:
        self.found["at"] = name
        self._save()

    def add(self, name: str, found: Any) -> None:
        self.found[name] = found
        self.found.pop("at", None)
        self._save()

    def fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self.found.pop("at", None)
        self._save()
        self.say(f"{name} failed, and is left out: {reason.splitlines()[-1]}")

    def _save(self) -> None:
        if self.ranks.rank == 0:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            part.replace(self.path)

    def say(self, text: str) -> None:
        if self.ranks.rank == 0:
            print(text, file=sys.stderr, flush=True)
