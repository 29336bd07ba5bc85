"""Soak: many forwards, each with inputs and a routing of its own, every output checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epsc.bench.contender import Contender
from epsc.bench.ranks import Ranks
from epsc.bench.reference import LIMITS, error
from epsc.bench.workloads import Workloads

OFTEN = 50
"""Forwards from one comparison of the yardstick itself with fp32 to the next."""


def memory(device: torch.device) -> int:
    """Bytes that this process holds: on the GPU what tensors take, else its resident set."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def soak(
    ranks: Ranks,
    contenders: list[Contender],
    workloads: Workloads,
    workload: str,
    tokens: list[int],
    forwards: int,
    oracle: Any,
    at: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, str]]:
    """What came out, and name -> reason of those that failed, which are not run on.

    The first contender is the yardstick of the others: it is compared with fp32 now and again, they with it each time.
    `oracle` has the right `result` of x, and which tokens are `clear`; `at` is told whose turn it is.
    """
    limit = LIMITS[workloads.dtype]
    start = time.monotonic()
    running, failed = list(contenders), dict[str, str]()
    errors = {c.name: 0.0 for c in contenders}
    warm, held = max(1, forwards // 10), 0
    given: list[tuple[Tensor, Tensor | None]] = []
    for i in range(forwards):
        size = workloads.sizes(workload, tokens[i % len(tokens)], i + 1)[i]
        x, wanted = workloads.make(workload, size)
        if i < 4:
            given.append((x, wanted))
        clear = oracle.clear(x)
        right: Tensor | None = oracle.result(x) if i % OFTEN == 0 else None
        for c in list(running):
            at(c.name)

            def forward(c: Contender = c, x: Tensor = x, clear: Tensor = clear, i: int = i) -> None:
                nonlocal right
                y = _forward(c, x, ranks)
                if right is None:
                    right = y.clone().float()
                off = error(y[clear], right[clear])
                errors[c.name] = max(errors[c.name], off)
                if off > limit:
                    raise RuntimeError(f"forward {i}: error {off:.2e}")

            # What ranks say to each other takes longer than a small forward: once for each.
            _, reason = ranks.attempt(forward)
            if reason:
                failed[c.name] = reason
                running.remove(c)
        if i + 1 == warm:
            held = memory(ranks.device)
        if not running:
            break
    at("")
    every = ranks.everyone(errors)
    found = {
        "workload": workload,
        "forwards": forwards,
        "tokens": tokens,
        "rows": workloads.achieved(given, ranks.everyone).as_json(),
        "against": f"{contenders[0].name}, and that against fp32 at each {OFTEN}th",
        "errors": {name: max(each[name] for each in every) for name in errors},
        "seconds": round(time.monotonic() - start, 1),
        "warm": warm,
        "grew_bytes": max(ranks.everyone(memory(ranks.device) - held)),
        "memory": "tensors on the device" if ranks.device.type == "cuda" else "resident set",
    }
    return found, failed


def _forward(contender: Contender, x: Tensor, ranks: Ranks) -> Tensor:
    contender.prepare([x])
    y = contender(x)
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    contender.status()
    return y
