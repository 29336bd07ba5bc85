"""What no step of a program shows: ceilings, and what launches, events and transfers cost that do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from epsc.bench.ranks import Ranks

REPEATS = 9


def measured_of(ranks: Ranks, name: str) -> float:
    """One number of the machine, in FLOP/s, bytes/s or seconds, on this rank."""
    return _MEASURES[name](ranks)


def worst(name: str, found: list[float]) -> float:
    """Of what ranks found that of the slowest."""
    return (min if name.endswith(("flops", "_per_s")) else max)(found)


def _bf16_flops(ranks: Ranks) -> float:
    return _flops(ranks, 8192 if ranks.device.type == "cuda" else 512, torch.bfloat16)


def _fp32_flops(ranks: Ranks) -> float:
    return _flops(ranks, 4096 if ranks.device.type == "cuda" else 1024, torch.float32)


def _flops(ranks: Ranks, n: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(n, n, device=ranks.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / _device_seconds(ranks, lambda: torch.mm(a, b, out=out))


def _copy_bytes_per_s(ranks: Ranks) -> float:
    size = 1 << (30 if ranks.device.type == "cuda" else 26)
    a = torch.empty(size, dtype=torch.uint8, device=ranks.device).zero_()
    b = torch.empty_like(a)
    return 2 * size / _device_seconds(ranks, lambda: b.copy_(a))


def _launch_s(ranks: Ranks) -> float:
    """Host time of one product of almost nothing."""
    a, b = (torch.randn(16, 16, device=ranks.device) for _ in range(2))
    out = torch.empty_like(a)
    found = []
    for _ in range(REPEATS):
        ranks.settle()
        start = time.perf_counter()
        for _ in range(200):
            torch.mm(a, b, out=out)
        found.append((time.perf_counter() - start) / 200)
    ranks.settle()
    return median(found)


def _kernel_s(ranks: Ranks) -> float:
    """Device time of a kernel that does almost nothing, in a row of them."""
    a = torch.zeros(16, device=ranks.device)

    def many() -> None:
        for _ in range(50):
            a.add_(1)

    return _device_seconds(ranks, many) / 50


def _event_s(ranks: Ranks) -> float:
    """From the end of a kernel to the start of one on another stream that waits for it, over that on its own."""
    a = torch.zeros(16, device=ranks.device)
    other = torch.cuda.Stream()

    def there_and_back() -> None:
        for _ in range(25):
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                a.add_(1)
            torch.cuda.current_stream().wait_stream(other)
            a.add_(1)

    return max(1e-7, _device_seconds(ranks, there_and_back) / 50 - _kernel_s(ranks))


def _transfer_s(ranks: Ranks) -> float:
    """An all2all of one element for each rank."""
    a = torch.zeros(ranks.world, device=ranks.device)
    out = torch.empty_like(a)
    if ranks.world == 1:
        return 1e-6

    def many() -> None:
        for _ in range(20):
            dist.all_to_all_single(out, a)

    # In a row: what one takes holds how far apart the hosts of the ranks began.
    return _device_seconds(ranks, many) / 20


def _link_bytes_per_s(ranks: Ranks) -> float:
    """What leaves a rank in a large all2all: what the line rate is taken for, if nobody knows it."""
    if ranks.world == 1:
        return _copy_bytes_per_s(ranks)
    size = 1 << (28 if ranks.device.type == "cuda" else 22)
    a = torch.zeros(size, dtype=torch.uint8, device=ranks.device)
    out = torch.empty_like(a)
    sent = size * (ranks.world - 1) / ranks.world
    return sent / _device_seconds(ranks, lambda: dist.all_to_all_single(out, a))


def _device_seconds(ranks: Ranks, work: Callable[[], object]) -> float:
    for _ in range(3):
        work()
    found = []
    for _ in range(REPEATS):
        ranks.settle()
        if ranks.device.type != "cuda":
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
            continue
        # The device idles while the host launches, so that launches do not count.
        torch.cuda._sleep(10_000_000)
        begins, ends = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begins.record()
        work()
        ends.record()
        ends.synchronize()
        found.append(begins.elapsed_time(ends) / 1e3)
    return median(found)


def _round_trip_s(ranks: Ranks) -> float:
    """A number that the host reads from the device."""
    a: Tensor = torch.zeros(16, device=ranks.device)
    found = []
    for _ in range(REPEATS * 4):
        ranks.settle()
        start = time.perf_counter()
        a.add_(1)
        a[0].item()
        found.append(time.perf_counter() - start)
    return median(found)


_MEASURES: dict[str, Callable[[Ranks], float]] = {
    "bf16_flops": _bf16_flops,
    "fp32_flops": _fp32_flops,
    "copy_bytes_per_s": _copy_bytes_per_s,
    "link_bytes_per_s": _link_bytes_per_s,
    "launch_s": _launch_s,
    "kernel_s": _kernel_s,
    "event_s": _event_s,
    "transfer_s": _transfer_s,
    "round_trip_s": _round_trip_s,
}
RATES = {"cuda": tuple(_MEASURES), "cpu": tuple(name for name in _MEASURES if name != "event_s")}
